"""Ensembles of prompts chosen on development images: forward selection, and weights by descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clipette.metrics.calibration import log_softmax
from clipette.metrics.classification import correct_at
from clipette.metrics.similarity import Doubles, cosines
from clipette.progress import track
from clipette.types import Floats, Ints


@dataclass(frozen=True)
class Labelled:
    """Images as vectors [N, D], their labels [N], and the scale of the model's logits."""

    vectors: Floats
    labels: Ints
    scale: float

    def correct(self, classes: Floats) -> Doubles:
        """[N]: 1 where the class text [C, D] nearest to the image is its own, a share where texts tie."""
        return correct_at(cosines(self.vectors, classes), self.labels, 1)

    def score(self, classes: Floats) -> tuple[float, float]:
        """(accuracy, −cross-entropy): the second decides where the first ties, as it often does on few images."""
        scores = cosines(self.vectors, classes)
        own = log_softmax(scores * np.float32(self.scale))[np.arange(len(self.labels)), self.labels]
        return float(correct_at(scores, self.labels, 1).mean()), float(own.mean())


def mixed(vectors: Floats, weights: Sequence[float] | Doubles) -> Floats:
    """unit(Σ_t w_t · v_tc) [C, D] of wordings' class vectors [T, C, D]: CLIP's ensemble, with weights."""
    total = np.tensordot(np.asarray(weights, dtype=np.float64), vectors.astype(np.float64), axes=1)
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-12), dtype=np.float32)


def even(rows: Sequence[int], count: int) -> Doubles:
    """Equal weights [count] on ``rows``, none elsewhere; they sum to 1."""
    weights = np.zeros(count)
    weights[list(rows)] = 1 / len(rows)
    return weights


@dataclass(frozen=True)
class Selection:
    """Wordings in the order they were taken, of which the first ``kept`` make the ensemble; development scores."""

    order: tuple[int, ...]
    kept: int
    scores: tuple[tuple[float, float], ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """The ensemble's members."""
        return self.order[: self.kept]


def greedy(vectors: Floats, dev: Labelled, most: int, *, progress: bool = False) -> Selection:
    """Forward selection: take the wording that helps the ensemble most, ``most`` times, and keep the best beginning.

    ``vectors`` [T, C, D]: unit class vectors of each wording. Each is taken at most once. By ``Labelled.score``; of
    equal ones the first wording, and the shorter beginning, is taken.
    """
    left = list(range(len(vectors)))
    order: list[int] = []
    scores: list[tuple[float, float]] = []
    total = np.zeros(vectors.shape[1:], dtype=np.float64)
    for _ in track(range(min(most, len(vectors))), description="choosing prompts", unit="rounds", enabled=progress):
        found = {row: dev.score(mixed((total + vectors[row])[None].astype(np.float32), [1.0])) for row in left}
        best = max(left, key=lambda row: (found[row], -row))
        left.remove(best)
        order.append(best)
        scores.append(found[best])
        total += vectors[best]
    kept = 1 + max(range(len(scores)), key=lambda place: (scores[place], -place))
    return Selection(tuple(order), kept, tuple(scores))


def weighted(vectors: Floats, dev: Labelled, *, steps: int = 100, rate: float = 0.1) -> Doubles:
    """Weights [T] on the simplex that lower the development images' cross-entropy: Adam on their logarithms.

    min over w of mean_i CE(scale · x_i · unit(Σ_t w_t v_t), y_i),  w = softmax(θ), θ = 0 at the start (the plain mean)
    """
    texts, images = torch.from_numpy(vectors), torch.from_numpy(dev.vectors)
    labels = torch.from_numpy(dev.labels)
    logs = torch.zeros(len(vectors), requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            classes = torch.nn.functional.normalize(torch.tensordot(torch.softmax(logs, 0), texts, dims=1), dim=-1)
            loss = torch.nn.functional.cross_entropy(images @ classes.T * dev.scale, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weights: Doubles = torch.softmax(logs.detach().double(), 0).numpy()
    return weights
