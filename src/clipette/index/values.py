"""The values of text columns that have few: what a page can offer as filters."""

from __future__ import annotations

import pyarrow as pa

from clipette.index.snapshot import Snapshot

# Rows looked at before a column with too many values is given up.
PIECE = 65_536
# Longer ones are descriptions: nobody chooses among them.
LONGEST = 100


def few_values(snapshot: Snapshot, most: int) -> dict[str, list[str]]:
    """Text column → the distinct values of its rows, sorted. Columns with more than ``most``, or long ones, are left
    out, and so are those without any.
    """
    columns = [name for name, kind in snapshot.manifest.columns.items() if kind == "text"]
    found = {name: _values(snapshot, name, most) for name in columns}
    return {name: sorted(values) for name, values in found.items() if values}


def _values(snapshot: Snapshot, name: str, most: int) -> set[str]:
    """Empty where there are too many."""
    found: set[str] = set()
    for shard, first in zip(snapshot.shards, snapshot.starts.tolist(), strict=False):
        if not len(shard):
            continue
        column = shard.filter_column(name, "text")
        for start in range(0, len(shard), PIECE):
            piece = column.slice(start, PIECE)
            live = pa.array(snapshot.live[first + start : first + start + len(piece)])
            found.update(piece.filter(live).unique().drop_null().to_pylist())
            if len(found) > most or any(len(value) > LONGEST for value in found):
                return set()
    return found
