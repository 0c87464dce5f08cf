"""Outputs of frozen trunks, computed once: their heads then train in seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipette.data.images import DecodeSettings
from clipette.data.loading import load_image, map_ordered
from clipette.data.preprocess import Bytes
from clipette.data.views import ViewPolicy, draw_view
from clipette.errors import DataError
from clipette.io import cache_root, digest, digest_json, write_atomic
from clipette.models.core import ImageTower, TextTower, weights_digest
from clipette.models.saved import state_bytes
from clipette.progress import track
from clipette.types import Failure, Sample, View


def cache_folder() -> Path:
    """Where trunk outputs are kept."""
    return cache_root() / "trunks"


def trunk_is_frozen(tower: ImageTower | TextTower) -> bool:
    """Whether nothing below the head learns."""
    return not any(p.requires_grad for p in tower.trunk.parameters())


def _trunk_facts(tower: ImageTower | TextTower) -> dict[str, object]:
    """What changes a trunk's output: its weights, and what they do not tell (pooling, arguments, the tokenizer)."""
    blueprint = tower.blueprint
    return {
        "weights": weights_digest(tower.trunk),
        "kind": blueprint.kind,
        "arguments": {name: value for name, value in blueprint.arguments.items() if name not in ("head", "dim")},
        "assets": {name: digest(content) for name, content in blueprint.assets.items()},
    }


def _stamp(sample: Sample) -> list[object]:
    """Where an image is, with its file's size and time, so that another or a changed image is another."""
    if sample.image is None:
        return []
    location = sample.image.location
    try:
        status = os.stat(location)
    except OSError:  # inside a tar, or in memory
        return [location]
    return [location, status.st_size, status.st_mtime_ns]


def _cached(path: Path) -> Tensor | None:
    try:
        return load_file(path)["features"]
    except (OSError, SafetensorError, KeyError):
        return None


def _keep(path: Path, features: Tensor) -> Tensor:
    write_atomic(path, state_bytes({"features": features}))
    return features


def image_trunk_features(
    tower: ImageTower,
    samples: Sequence[Sample],
    *,
    policy: ViewPolicy | None,
    views: int,
    seed: int,
    folder: Path,
    device: torch.device,
    settings: DecodeSettings,
    stored: Sequence[Sequence[View]] | None = None,
    batch_size: int = 64,
) -> Tensor:
    """[n, views, W] trunk outputs: the whole image, and ``views - 1`` drawn ones. Kept in ``folder``.

    ``stored``: each sample's views, in place of drawn ones: those that a teacher's outputs belong to.

    Raises ``DataError`` where an image cannot be read: a frozen trunk reads every image before training starts, so
    list what is damaged and leave it out.
    """
    what = {
        "trunk": _trunk_facts(tower),
        "preprocess": tower.preprocess.to_dict(),
        # Two sources may use the same keys for other images.
        "samples": [[sample.key, _stamp(sample)] for sample in samples],
        "decode": settings.to_dict(),
        "views": views,
        "policy": None if policy is None else policy.to_dict(),
        "seed": seed,
        **({} if stored is None else {"stored": digest_json([[astuple(v) for v in each] for each in stored])}),
    }
    path = folder / f"image-{digest_json(what)[:16]}.safetensors"
    known = _cached(path)
    if known is not None:
        return known
    jobs = [(i, v) for i in range(len(samples)) for v in range(views)]

    def cut(job: tuple[int, int]) -> Bytes | Failure:
        sample = samples[job[0]]
        image = load_image(sample, settings=settings)
        if isinstance(image, Failure):
            return image
        return tower.preprocess.pixels(image, view_of(sample, image.size, *job))

    def view_of(sample: Sample, size: tuple[int, int], position: int, number: int) -> View:
        if stored is not None:
            return stored[position][number]
        return View() if number == 0 or policy is None else draw_view(policy, size, seed, sample.key, number)

    tower = tower.to(device).eval()
    rows: list[Tensor] = []
    waiting: list[Bytes] = []
    bar = track(map_ordered(cut, jobs), total=len(jobs), description="frozen image trunk", unit="views")
    for index, pixels in enumerate(bar):
        if isinstance(pixels, Failure):
            raise DataError(f"{pixels.location}: {pixels.reason}; leave this image out to train over a frozen trunk")
        waiting.append(pixels)
        if len(waiting) == batch_size or index == len(jobs) - 1:
            rows.append(_forward(tower, waiting, device))
            waiting = []
    return _keep(path, torch.cat(rows).view(len(samples), views, -1))


def _forward(tower: ImageTower, pixels: list[Bytes], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(tower.preprocess.normalize(np.stack(pixels))).to(device)
    with torch.no_grad():
        out: Tensor = tower.trunk(tensor.contiguous(memory_format=torch.channels_last))
    return out.float().cpu()


def text_trunk_features(
    tower: TextTower, texts: Sequence[str], *, folder: Path, device: torch.device, batch_size: int = 128
) -> Tensor:
    """[n, W] trunk outputs of the captions, encoded in order of length (little padding). Kept in ``folder``."""
    what = {"trunk": _trunk_facts(tower), "texts": digest_json(list(texts))}
    path = folder / f"text-{digest_json(what)[:16]}.safetensors"
    known = _cached(path)
    if known is not None:
        return known
    tower = tower.to(device).eval()
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    starts = range(0, len(texts), batch_size)
    out: Tensor | None = None
    for start in track(starts, total=len(starts), description="frozen text trunk", unit="batches"):
        rows = order[start : start + batch_size]
        tokens = {k: torch.from_numpy(v).to(device) for k, v in tower.tokenizer([texts[i] for i in rows]).items()}
        with torch.no_grad():
            values = tower.trunk(tokens).float().cpu()
        if out is None:
            out = torch.zeros(len(texts), values.shape[1])
        out[torch.tensor(rows)] = values
    if out is None:
        raise DataError("there are no captions to encode")
    return _keep(path, out)
