from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipette.index import values
from clipette.index.collection import Collection
from clipette.index.opening import create
from clipette.index.store import Row


def add(collection: Collection, *metas: dict[str, object], start: int = 0) -> None:
    rows = [Row(f"k{start + n}", "image", "", None, meta) for n, meta in enumerate(metas)]  # type: ignore[arg-type]
    collection.add_rows(rows, np.tile(np.float32([1, 0]), (len(rows), 1)))


def test_few_values_are_told_and_many_or_long_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "PIECE", 2)
    with create(tmp_path / "my.index", space="s", dim=2) as collection:
        assert collection.few_values(3) == {}
        long = {"about": "x" * 101}
        add(collection, {"domain": "photo", "name": "a", "year": 1}, {"domain": "sketch", "name": "b", **long}, {})
        add(collection, {"name": "c"}, {"domain": "photo", "name": "d", "late": "é"}, start=3)
        assert collection.few_values(3) == {"domain": ["photo", "sketch"], "late": ["é"]}
        assert collection.few_values(4)["name"] == ["a", "b", "c", "d"]
        # Only what is still there: of deleted and of replaced rows nothing can be found.
        collection.delete(["k1"])
        add(collection, {"domain": "painting", "name": "d"}, start=4)
        assert collection.few_values(3) == {"domain": ["painting", "photo"], "name": ["a", "c", "d"]}
