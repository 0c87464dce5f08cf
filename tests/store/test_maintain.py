from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipette.errors import StoreError
from clipette.store import StoredFailure, StoreWriter, compact, open_store, repair

from .helpers import DIM, IDENTITY, contents, rows, small_store, unit, view_rows


def test_compact_removes_superseded_rows_and_keeps_the_rest(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    with StoreWriter(path, IDENTITY, DIM) as writer:
        writer.append({"images": rows(["k2", "k4"], salt="new"), "views": view_rows(["k2", "k4"], salt="new")})
        writer.append({}, [StoredFailure("k5", "k5.jpg", "gone", "", ("images", "views"))])
        writer.finish()
    before = open_store(path)
    keys = before.table("images").keys
    views = before.table("views").vectors()
    second_view = before.views_of("k2")[1][1]
    assert compact(path, shard_size=4) == 3 + 6
    after = open_store(path)
    after.verify()
    assert after.table("images").keys == keys
    np.testing.assert_array_equal(after.table("views").vectors(), views)
    np.testing.assert_allclose(
        after.table("images").vectors(after.table("images").rows(["k4"])), unit(["k4new"]), atol=1e-3
    )
    assert after.views_of("k2")[1][1] == second_view
    assert [failure.key for failure in after.failures] == ["k5"]
    assert len(list((path / "images").iterdir())) == 2 * 2
    assert after.texts is not None
    assert after.texts.keys == ("a cat", "a dog")


def test_compact_of_a_store_without_superseded_rows_changes_nothing(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    before = contents(path)
    assert compact(path) == 0
    assert contents(path) == before


def test_repair_drops_damaged_shards_only(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    assert repair(path) == ()
    shard = path / "images" / "000001.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StoreError):
        open_store(path)
    assert repair(path) == (1,)
    store = open_store(path)
    store.verify()
    assert store.table("images").keys == ("k0", "k1", "k2", "k6")
    with StoreWriter(path, IDENTITY, DIM) as writer:
        assert "k3" not in writer.known("images")


def test_maintenance_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store here"):
        compact(tmp_path)
    with pytest.raises(StoreError, match="no store here"):
        repair(tmp_path)
