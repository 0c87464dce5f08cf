"""Weights of images by how common their class is, so that the losses over class texts hear rare classes too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from clipette.types import Floats

Reweight = Literal["none", "inverse", "effective"]

# Cui et al. try 0.9 to 0.9999: n counts in full while it is far below 1 / (1 - BETA) = 1,000 images.
BETA = 0.999


def class_weights(labels: Sequence[int], rule: Reweight) -> Floats:
    """Weight [C] of an image of each class, of mean 1 over these images; 0 for a class without images.

    ``inverse``: w_c ∝ 1 / n_c. ``effective``: w_c ∝ (1 - β) / (1 - β^n_c), β = 0.999: the inverse of the effective
    number of images (Cui et al., CVPR 2019, arXiv:1901.05555, equations 2 and 4), which grows ever slower than n_c.
    Deviation: the paper scales the weights to a sum of C over the classes; here their mean over the images is 1, so
    that the loss keeps its size.
    """
    counts = np.bincount(labels).astype(np.float64)
    weights = np.zeros_like(counts)
    there = counts > 0
    if rule == "inverse":
        weights[there] = 1 / counts[there]
    elif rule == "effective":
        weights[there] = (1 - BETA) / -np.expm1(counts[there] * np.log(BETA))
    else:
        weights[there] = 1.0
    return np.asarray(weights * counts.sum() / (weights * counts).sum(), dtype=np.float32)
