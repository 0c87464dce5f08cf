from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clipette.errors import InternalError, StoreError
from clipette.store import Rows, StoredFailure, StoreWriter, folder_key, open_store, store_path

from .helpers import DIM, IDENTITY, contents, rows, small_store, unit, view_rows

KEYS = [f"k{i}" for i in range(10)]
WANTED = [(("images", "views"), KEYS), (("texts",), ["one", "two"])]


def pour(path: Path, *, stop_after: int | None = None, rank: int = 0, world: int = 1) -> None:
    """What a task does: plan or resume, commit the open chunks, finish."""
    with StoreWriter(path, IDENTITY, DIM, rank=rank) as writer:
        plan = writer.resume("request") or writer.plan("request", WANTED, shard_size=4)
        done = 0
        for chunk in plan.share(rank, world):
            if writer.is_committed(chunk):
                continue
            if stop_after is not None and done == stop_after:
                return
            keys = [key for key in chunk.keys if key != "k5"]
            failures = [StoredFailure("k5", "k5.jpg", "bad", "c", chunk.tables)] if "k5" in chunk.keys else []
            tables = (
                {"texts": rows(keys)}
                if chunk.tables == ("texts",)
                else {"images": rows(keys), "views": view_rows(keys)}
            )
            writer.commit(chunk.number, tables, failures)
            done += 1
        if world == 1:
            writer.finish()


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    assert contents(small_store(tmp_path / "a")) == contents(small_store(tmp_path / "b"))


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    pour(tmp_path / "whole")
    for stop in range(4):
        part = tmp_path / f"part{stop}"
        pour(part, stop_after=stop)
        assert (part / "plan.parquet").exists()
        (part / "images").mkdir(exist_ok=True)
        (part / "images" / "000007.npy").write_bytes(b"left behind by a kill before the commit")
        (part / "images" / ".000003.npy.abc.tmp").write_bytes(b"half")
        (part / ".manifest.json.abc.tmp").write_bytes(b"half")
        pour(part)
        assert contents(part) == contents(tmp_path / "whole")


def test_ranks_write_disjoint_shards_and_equal_one_rank(tmp_path: Path) -> None:
    pour(tmp_path / "one")
    pour(tmp_path / "two", stop_after=0)
    pour(tmp_path / "two", rank=0, world=2)
    pour(tmp_path / "two", rank=1, world=2)
    with StoreWriter(tmp_path / "two", IDENTITY, DIM) as writer:
        writer.finish()
    two = {name: data for name, data in contents(tmp_path / "two").items() if not name.startswith("locks")}
    one = {name: data for name, data in contents(tmp_path / "one").items() if not name.startswith("locks")}
    assert two == one


def test_known_names_poured_and_failed_keys(tmp_path: Path) -> None:
    pour(tmp_path)
    with StoreWriter(tmp_path, IDENTITY, DIM) as writer:
        assert writer.known("images") == dict.fromkeys(KEYS, "c")
        assert set(writer.known("texts")) == {"one", "two"}
        assert [failure.key for failure in writer.failures()] == ["k5"]
    assert '"reason": "bad"' in (tmp_path / "failures.jsonl").read_text()


def test_a_plan_of_another_request_is_dropped(tmp_path: Path) -> None:
    pour(tmp_path, stop_after=1)
    with StoreWriter(tmp_path, IDENTITY, DIM) as writer:
        assert writer.resume("another") is None
        assert not (tmp_path / "plan.parquet").exists()
        assert writer.next_number == 1


def test_finishing_with_open_chunks_is_a_broken_promise(tmp_path: Path) -> None:
    pour(tmp_path, stop_after=1)
    with StoreWriter(tmp_path, IDENTITY, DIM) as writer, pytest.raises(InternalError, match="before shard 1"):
        writer.finish()


def test_a_second_writer_of_the_same_rank_is_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, IDENTITY, DIM):
        with pytest.raises(StoreError, match="another process is pouring"):
            StoreWriter(tmp_path, IDENTITY, DIM)
        other = StoreWriter(tmp_path, IDENTITY, DIM, rank=1)
    with pytest.raises(StoreError, match=r"another process is pouring .*rank 1"):
        StoreWriter(tmp_path, IDENTITY, DIM)
    other.close()
    StoreWriter(tmp_path, IDENTITY, DIM).close()


def test_another_teacher_width_or_folder_is_refused(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    other = {**IDENTITY, "encoder": {"weights": "w1", "mean": [0.5, 0.5]}}
    with pytest.raises(StoreError, match=r"encoder\.weights: stored 'w0', asked 'w1'"):
        StoreWriter(path, other, DIM)
    with pytest.raises(StoreError, match="8 wide, the encoder 9"):
        StoreWriter(path, IDENTITY, 9)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"not empty and not a store \(it holds 'a\.jpg'\)"):
        StoreWriter(tmp_path / "photos", IDENTITY, DIM)
    assert [entry.name for entry in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    with pytest.raises(StoreError, match="cannot be written"):
        StoreWriter(tmp_path / "photos" / "a.jpg", IDENTITY, DIM)
    StoreWriter(path, IDENTITY, DIM).close()  # the refused writers let go of their locks


def test_killed_while_writing_the_header_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / ".store.json.x1.tmp").write_bytes(b"{")
    small_store(tmp_path)
    assert not (tmp_path / ".store.json.x1.tmp").exists()


def test_a_part_that_was_none_may_be_added_but_not_changed(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    with StoreWriter(path, {**IDENTITY, "views": None, "texts": {"length": 77}}, DIM) as writer:
        assert writer.views_per_key == 2
    assert open_store(path).identity["texts"] == {"length": 77}
    with pytest.raises(StoreError, match=r"texts\.length: stored 77, asked 64"):
        StoreWriter(path, {**IDENTITY, "texts": {"length": 64}}, DIM)


def test_bad_vectors_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, IDENTITY, DIM) as writer:
        with pytest.raises(StoreError, match="do not fit a store of width 8"):
            writer.append({"images": Rows(["a"], ["c"], unit(["a"], 9))})
        broken = unit(["a", "b"])
        broken[1, 3] = np.nan
        with pytest.raises(StoreError, match="vector of 'b' holds numbers"):
            writer.append({"images": Rows(["a", "b"], ["c", "c"], broken)})
        with pytest.raises(InternalError, match="needs 2 consecutive views"):
            writer.append({"views": view_rows(["a"], 3)})
        assert writer.commits == ()


def test_folder_key_follows_everything_in_the_identity(tmp_path: Path) -> None:
    assert folder_key(IDENTITY) == folder_key(dict(reversed(IDENTITY.items())))
    assert folder_key(IDENTITY) != folder_key({**IDENTITY, "views": {"count": 2, "seed": 1}})
    assert store_path(tmp_path, IDENTITY) == tmp_path / folder_key(IDENTITY)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.name != "posix", reason="tmpfs is Linux's")
def test_a_full_disk_loses_nothing_and_the_pour_goes_on_afterwards(small_disk: Path, tmp_path: Path) -> None:
    path = small_disk / "s"
    ballast = small_disk / "ballast"
    pour(path, stop_after=1)
    ballast.write_bytes(b"0" * 100_000)
    keys = [f"k{i}" for i in range(20_000)]
    with StoreWriter(path, IDENTITY, DIM) as writer, pytest.raises(StoreError, match="no space left on the device"):
        writer.append({"images": Rows(keys, ["c"] * 20_000, np.zeros((20_000, DIM), np.float16))})
    assert len(open_store(path, unfinished=True).table("images")) == 4
    ballast.unlink()
    pour(path)
    pour(tmp_path / "whole")
    assert contents(path) == contents(tmp_path / "whole")


def test_a_full_disk_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    with StoreWriter(tmp_path, IDENTITY, DIM) as writer:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="every committed shard is safe"):
            writer.append({"images": rows(["a"])})
        assert writer.commits == ()
