"""Do confidences mean what they say? Softmax, reliability bins, expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipette.errors import DataError
from clipette.metrics.similarity import Doubles, Reals
from clipette.types import Ints


def log_softmax(logits: Reals) -> Doubles:
    """Row-wise log-probabilities [N, C] in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def softmax(logits: Reals) -> Doubles:
    """Row-wise probabilities [N, C] in float64."""
    return np.asarray(np.exp(log_softmax(logits)), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """Bin b covers (edges[b], edges[b+1]], the first one 0 too; ``confidence``, ``accuracy``: means, 0 where empty."""

    edges: Doubles
    confidence: Doubles
    accuracy: Doubles
    count: Ints


def reliability(confidence: Doubles, correct: Doubles, bins: int = 15) -> ReliabilityBins:
    """Equal-width bins of confidences [N] in 0..1 with the mean of ``correct`` [N] in each."""
    if bins < 1 or confidence.shape != correct.shape:
        raise DataError(f"need bins >= 1 and equal shapes, got {bins}, {confidence.shape}, {correct.shape}")
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, "left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)

    def mean(values: Doubles) -> Doubles:
        total = np.bincount(index, weights=values, minlength=bins)
        return np.divide(total, count, out=np.zeros(bins), where=count > 0)

    return ReliabilityBins(edges, mean(confidence), mean(correct), count.astype(np.int64))


def expected_calibration_error(confidence: Doubles, correct: Doubles, bins: int = 15) -> float:
    """ECE = sum_b (n_b / N) |accuracy_b - confidence_b| over equal bins, in 0..1; NaN if N = 0 (Guo et al., 2017)."""
    if not len(confidence):
        return float("nan")
    table = reliability(confidence, correct, bins)
    return float((table.count * np.abs(table.accuracy - table.confidence)).sum() / len(confidence))
