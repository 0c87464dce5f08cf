"""Which samples a batch brings together, where it is not every one once an epoch: rare classes, hard negatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from clipette.data.order import epoch_order, stable_hash
from clipette.errors import ConfigError
from clipette.types import Floats, Ints

# (epoch) → positions [n], of which each batch takes the next ones.
Order = Callable[[int], Ints]


class BalancedOrder:
    """As many draws an epoch as there are samples, with p(sample) ∝ n(its class)^-power.

    ``power`` 0 is the data's own distribution, 1 gives each class the same share, 0.5 lies between (Mahajan et al.,
    ECCV 2018, use the square root). Systematic resampling: a sample that is expected k times an epoch is drawn ⌊k⌋ or
    ⌈k⌉ times.
    """

    def __init__(self, labels: Sequence[int], seed: int, *, power: float) -> None:
        _, inverse, counts = np.unique(np.array(labels), return_inverse=True, return_counts=True)
        weights = counts[inverse].astype(np.float64) ** -power
        self._ends = np.cumsum(weights / weights.sum())
        self._seed = seed

    def __call__(self, epoch: int) -> Ints:
        count = len(self._ends)
        # A new order of the samples each epoch, so that the comb's teeth do not fall on the same ones.
        mixed = epoch_order(count, self._seed, 2 * epoch)
        ends = np.cumsum(np.diff(self._ends, prepend=0.0)[mixed])
        start = stable_hash("comb", self._seed, epoch) / 2**64
        drawn = np.searchsorted(ends, (np.arange(count) + start) / count, side="right").clip(max=count - 1)
        positions: Ints = mixed[drawn][epoch_order(count, self._seed, 2 * epoch + 1)]
        return positions


class NeighbourOrder:
    """Every sample once an epoch; groups of ``group`` samples that the teacher finds alike stand side by side.

    Batches then hold hard negatives (Robinson et al., ICLR 2021, motivate them; here they are mined once, from the
    teacher's store, and change no loss). ``vectors`` [n, D]: the teacher's, of unit length. From the epoch's order
    the first sample still free opens a group and takes the nearest free ones among its ``reach`` neighbours; where
    too few are free, the group stays smaller. Batches then take the groups in the order drawn.
    """

    def __init__(self, vectors: Floats, seed: int, *, group: int, reach: int = 32) -> None:
        if group < 2:
            raise ConfigError(f"sampling.neighbours {group} must be at least 2: a sample and one neighbour")
        self._seed = seed
        self._group = group
        self._nearest = nearest(vectors, min(reach, len(vectors) - 1))

    def __call__(self, epoch: int) -> Ints:
        free = np.ones(len(self._nearest), dtype=bool)
        out: list[int] = []
        for position in epoch_order(len(free), self._seed, epoch):
            if not free[position]:
                continue
            row = self._nearest[position]
            taken = [int(position), *row[free[row]][: self._group - 1].tolist()]
            free[taken] = False
            out += taken
        return np.array(out, dtype=np.int64)


def nearest(vectors: Floats, count: int, *, chunk: int = 1024) -> Ints:
    """[n, count] the positions of each vector's nearest others by cosine, nearest first; ties by position."""
    rows = []
    for start in range(0, len(vectors), chunk):
        part = vectors[start : start + chunk]
        cosines = part @ vectors.T
        cosines[np.arange(len(part)), np.arange(start, start + len(part))] = -np.inf
        best = np.argpartition(-cosines, min(count, cosines.shape[1] - 1), axis=1)[:, :count]
        best.sort(axis=1)
        order = np.argsort(-np.take_along_axis(cosines, best, axis=1), axis=1, kind="stable")
        rows.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(rows).astype(np.int64)
