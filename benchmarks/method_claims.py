"""What may be said of bench-methods' scores: means, paired bootstrap over seeds and items, who is ranked.

A replicate draws S training seeds and, independently of them, the items of every part; the same draws serve all
methods (paired) and, for the seeds, all data sets, since a seed is one initial head and one order of batches. Drawing
seeds anew for each set would let their luck cancel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from method_sets import Benchmark, Doubles, combined, ranked

# method → round → part ("test/base") → [S, N].
Values: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Doubles]]]


@dataclass(frozen=True)
class Table:
    """Scores of all methods, point estimates and replicates: ``points`` [M, S], ``drawn`` [M, B] for each benchmark."""

    methods: tuple[str, ...]
    points: Mapping[str, Doubles]
    drawn: Mapping[str, Doubles]


def drawn_means(values: Doubles, seeds: Doubles, items: Doubles) -> Doubles:
    """[M, B] replicates of the means of ``values`` [M, S, N], by weights ``seeds`` [B, S] and ``items`` [B, N]."""
    methods, count, width = values.shape
    by_item = (values.reshape(methods * count, width) @ items.T).reshape(methods, count, -1)
    return np.asarray(np.einsum("msb,bs->mb", by_item, seeds))


def weights(generator: np.random.Generator, draws: int, count: int) -> Doubles:
    """[draws, count] multinomial weights that sum to 1 in each row."""
    return np.asarray(generator.multinomial(count, np.full(count, 1.0 / count), size=draws) / count)


def tabulate(
    found: Sequence[Benchmark],
    values: Values,
    counted: Mapping[str, bool],
    *,
    side: str = "test",
    draws: int = 2000,
    seed: int = 0,
) -> Table:
    """Scores of every benchmark with a part that counts (``counted`` by ``round/part``); unranked parts are left out.

    A round's score combines its counted parts; a benchmark's is the mean of its rounds'.
    """
    methods = tuple(values)
    count = next(iter(next(iter(next(iter(values.values())).values())).values())).shape[0]
    generator = np.random.default_rng(seed)
    seeds = weights(generator, draws, count)
    points: dict[str, Doubles] = {}
    drawn: dict[str, Doubles] = {}
    for bench in found:
        rounds = []
        for each in bench.rounds:
            parts = [name for name in each.parts() if name.startswith(f"{side}/") and counted[f"{each.name}/{name}"]]
            if not parts:
                continue
            stacks = [np.stack([values[method][each.name][name] for method in methods]) for name in parts]
            whole = [stack.mean(axis=2) for stack in stacks]
            parted = [drawn_means(s, seeds, weights(generator, draws, s.shape[2])) for s in stacks]
            rounds.append(
                tuple(np.vectorize(lambda *v, how=each.combine: combined(v, how))(*w) for w in (whole, parted))
            )
        if rounds:
            points[bench.name] = np.mean([point for point, _ in rounds], axis=0)
            drawn[bench.name] = np.mean([replicate for _, replicate in rounds], axis=0)
    return Table(methods, points, drawn)


def means(table: Table) -> dict[str, dict[str, Any]]:
    """Each method: mean over benchmarks, standard deviation over seeds, 95 % interval; and by benchmark."""
    whole, drawn = _overall(table)
    out = {}
    for row, method in enumerate(table.methods):
        low, high = np.quantile(drawn[row], [0.025, 0.975])
        out[method] = {
            "mean": _rounded(whole[row].mean()),
            "sd": _rounded(whole[row].std(ddof=1)) if whole.shape[1] > 1 else 0.0,
            "low": _rounded(low),
            "high": _rounded(high),
            "sets": {
                name: {"mean": _rounded(p[row].mean()), "sd": _rounded(p[row].std(ddof=1)) if p.shape[1] > 1 else 0.0}
                for name, p in table.points.items()
            },
        }
    return out


def claims(table: Table, of: str = "default") -> dict[str, dict[str, Any]]:
    """``of`` minus each other method on the mean of the benchmarks, with 95 % intervals; ``beats``: all of it above 0.

    ``loses`` says the same of the other side; neither: not told apart.
    """
    whole, drawn = _overall(table)
    own = table.methods.index(of)
    out = {}
    for row, method in enumerate(table.methods):
        if row == own:
            continue
        difference = drawn[own] - drawn[row]
        low, high = np.quantile(difference, [0.025, 0.975])
        out[method] = {
            "difference": _rounded(whole[own].mean() - whole[row].mean()),
            "low": _rounded(low),
            "high": _rounded(high),
            "beats": bool(low > 0),
            "loses": bool(high < 0),
            "sets": {
                name: _interval(
                    points[own].mean() - points[row].mean(), table.drawn[name][own] - table.drawn[name][row]
                )
                for name, points in table.points.items()
            },
        }
    return out


def _interval(value: float, drawn: Doubles) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"difference": _rounded(value), "low": _rounded(low), "high": _rounded(high)}


def _overall(table: Table) -> tuple[Doubles, Doubles]:
    if not table.points:
        raise SystemExit("no part is ranked: the teacher is under three times chance everywhere")
    whole = np.mean(list(table.points.values()), axis=0)
    return np.asarray(whole), np.asarray(np.mean(list(table.drawn.values()), axis=0))


def _rounded(value: float) -> float:
    return round(float(value), 5)


def teacher_report(found: Sequence[Benchmark], teacher: Mapping[str, Mapping[str, Doubles]]) -> dict[str, Any]:
    """Of each part: the teacher's score, chance, and whether it is ranked. ``teacher``: round → part → [N]."""
    out = {}
    for bench in found:
        for each in bench.rounds:
            scores = {name: float(teacher[each.name][name].mean()) for name in each.parts()}
            chances = {name: part.chance for name, part in each.parts().items()}
            verdict = ranked(scores, chances)
            for name in scores:
                facts = {"teacher": _rounded(scores[name]), "chance": _rounded(chances[name])}
                out[f"{each.name}/{name}"] = {**facts, "ranked": verdict[name]}
    return out


def everything(found: Sequence[Benchmark], values: Values) -> dict[str, dict[str, dict[str, float]]]:
    """method → ``round/part`` → mean and sd over seeds: every figure, ranked or not."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for method, rounds in values.items():
        out[method] = {}
        for bench in found:
            for each in bench.rounds:
                for name in each.parts():
                    seeds = rounds[each.name][name].mean(axis=1)
                    spread = _rounded(seeds.std(ddof=1)) if len(seeds) > 1 else 0.0
                    out[method][f"{each.name}/{name}"] = {"mean": _rounded(seeds.mean()), "sd": spread}
    return out
