"""A convolutional tower with fewer multiply-adds: channels inside its blocks go, the least missed for their cost first.

    evidence (images, no labels) → order of each block → allocation over blocks → least squares → norms see the images

Without images the order is by norm, and neither weights nor statistics are mended.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clipette.data.dataset import Dataset
from clipette.data.loading import FailureLimit, iter_images
from clipette.data.preprocess import Preprocess
from clipette.export.allocation import Macs, allocate
from clipette.export.evidence import gather, order_by_norm, order_of, refit, see_again
from clipette.models.core import ImageTower
from clipette.models.slim import open_inner, slim
from clipette.types import Failure

IMAGES = 256
BATCH = 32

log = logging.getLogger(__name__)


def fewer_channels(tower: ImageTower, target: float, batches: Sequence[Tensor] = ()) -> dict[str, int]:
    """Prune ``tower`` in place to at most ``target`` multiply-adds an image; group → how many channels it keeps.

    ``batches``: pixels [B, 3, H, W] of the tower's size. Groups that keep all are not named.

    Raises ``ConfigError`` where it has no such channels, or too few.
    """
    groups = open_inner(tower)
    evidence = gather(tower, batches) if batches else {}
    orders = {
        inner.name: order_of(inner, evidence[inner.name]) if batches else order_by_norm(inner) for inner in groups
    }
    macs = Macs(tower, groups)
    kept = allocate(orders, macs, target)
    for inner in groups:
        if inner.name in kept and batches:
            refit(inner, evidence[inner.name], kept[inner.name])
    slim(tower, kept)
    if batches:
        see_again(tower, batches)
    found = {name: len(places) for name, places in kept.items()}
    for name, count in found.items():
        log.info("%s: %d of %d channels stay", name, count, macs.whole[name])
    return found


def read_pixels(data: Dataset, preprocess: Preprocess) -> list[Tensor]:
    """A sample of the images of ``data`` in batches [B, 3, H, W]. Raises ``DataError`` where too many are damaged."""
    samples = data.limit(IMAGES).samples
    read = [image for _, image in iter_images(samples, want=preprocess.size)]
    failures = [each for each in read if isinstance(each, Failure)]
    FailureLimit().check(failures, len(read), what="images to measure channels on")
    pixels = [preprocess(image) for image in read if not isinstance(image, Failure)]
    return [torch.from_numpy(np.stack(pixels[start : start + BATCH])) for start in range(0, len(pixels), BATCH)]
