"""How well a search answers what users clicked: their queries asked again, their clicks as the right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from clipette.errors import DataError
from clipette.index.clicks import Click, Judged, judged
from clipette.index.query import Query
from clipette.index.search import How, Results, Searcher
from clipette.index.store import Kind
from clipette.metrics.bootstrap import Bootstrap, Interval, mean_interval

KS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class ClickReport:
    """Figures over distinct queries, each with its interval over queries.

    ``hit``: k → share of queries with a chosen item among the first k now. ``mrr``: mean of 1 / rank of the first
    chosen item now (0 where it is not among ``depth``). ``mrr_then``: the same of the ranks at which users clicked.
    ``gone``: chosen items that the collection no longer has; ``unanswerable``: queries left out because all their
    items are gone, or what they asked with is.

    Clicks favour what was shown first: a search is judged by what another one put before the users. So a difference
    between ``mrr`` and ``mrr_then`` speaks for the new one only where it is positive.
    """

    queries: int
    clicks: int
    depth: int
    hit: dict[int, Interval]
    mrr: Interval
    mrr_then: Interval
    gone: int
    unanswerable: int

    def to_json(self) -> dict[str, Any]:
        """For the command line."""
        told: dict[str, Any] = {name: getattr(self, name) for name in ("queries", "clicks", "depth")}
        for name, interval in {**{f"hit@{k}": each for k, each in self.hit.items()}, "mrr": self.mrr,
                               "mrr_then": self.mrr_then}.items():  # fmt: skip
            told[name] = [round(each, 4) for each in (interval.value, interval.low, interval.high)]
        return {**told, "gone": self.gone, "unanswerable": self.unanswerable}


def evaluate_clicks(
    searcher: Searcher,
    clicks: Sequence[Click],
    *,
    kind: Kind | Literal["any"] = "image",
    ks: Sequence[int] = KS,
    depth: int = 100,
    how: Bootstrap = Bootstrap(),
) -> ClickReport:
    """Ask every distinct query of ``clicks`` again for items of ``kind``, and see where the chosen ones are now.

    Queries with pictures or vectors cannot be asked again: they are not in the log. Raises ``DataError`` where no
    query with a chosen item remains.
    """
    collection = searcher.collection
    known: list[tuple[Judged, Query]] = []
    gone, unanswerable = 0, 0
    for each in judged(clicks):
        kept = tuple(key for key in each.chosen if key in collection)
        gone += len(each.chosen) - len(kept)
        asked = each.query.get("key")
        if not kept or (asked is not None and asked not in collection):
            unanswerable += 1
        else:
            known.append((replace(each, chosen=kept), _query(each.query)))
    if not known:
        raise DataError("no click that says anything: no query in the log has a chosen item that is still there")
    depth = max(depth, *ks)
    results = searcher.search_many([query for _, query in known], How(k=depth, kind=kind, threshold=None))
    ranks = np.array([_rank(found, each.chosen) for found, (each, _) in zip(results, known, strict=True)])
    then = np.array([each.best_rank for each, _ in known], dtype=np.float64)
    reciprocal = np.where(np.isfinite(ranks), 1.0 / ranks, 0.0)
    return ClickReport(
        queries=len(known),
        clicks=sum(each.clicks for each, _ in known),
        depth=depth,
        hit={k: mean_interval((ranks <= k).astype(np.float64), how=how) for k in ks},
        mrr=mean_interval(reciprocal, how=how),
        mrr_then=mean_interval(1.0 / then, how=how),
        gone=gone,
        unanswerable=unanswerable,
    )


def _query(told: Mapping[str, Any]) -> Query:
    """The inverse of ``Query.describe``."""
    return Query(
        text=told.get("text"),
        key=told.get("key"),
        negatives=tuple(told.get("negatives", ())),
        weights=dict(told.get("weights", {})),
    )


def _rank(found: Results, chosen: Sequence[str]) -> float:
    """The rank of the first chosen item, infinite where none was found."""
    return next((float(hit.rank) for hit in found.hits if hit.key in chosen), float("inf"))
