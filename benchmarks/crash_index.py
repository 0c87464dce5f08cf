"""Killed while it writes: adds, deletes and compactions under SIGKILL; every acknowledged write must be there.

A writer's process is killed again and again on one index. After each kill the index is opened and compared row by row
with what was acknowledged; the write that was under way may be there whole, or not at all. A second writer is tried
while the first lives, and must be refused. A reader's process searches throughout and must never see a wrong row.
``python benchmarks/crash_index.py --kills 50 --out DIR`` prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# This checkout's package, installed or not.
SOURCE = str(Path(__file__).resolve().parents[1] / "src")
sys.path.insert(0, SOURCE)

DIM, KEYS = 32, 400
# Small, so that the vector store is made, brought up to date and compacted often while the kills fall.
EXACT_ROWS, TAIL_ROWS = 60, 40


def vector(key: str, version: int) -> Any:
    """Unit vector [D] of one version of a key: whoever reads a row can tell whether it is whole."""
    import hashlib

    import numpy as np

    seed = int.from_bytes(hashlib.blake2b(f"{key}/{version}".encode(), digest_size=8).digest(), "little")
    drawn = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def step_of(seed: int, version: int) -> tuple[str, list[str]]:
    """What write ``version`` does: the same in the writer and in whoever checks it."""
    draw = random.Random(f"{seed}/{version}")
    keys = draw.sample(range(KEYS), draw.choice([1, 2, 5, 30]))
    what = draw.choices(["add", "delete", "optimize"], [6, 2, 1])[0]
    return what, [f"key{key:04d}" for key in keys]


def apply(state: Mapping[str, int], seed: int, version: int) -> dict[str, int]:
    """Key → version after one more write."""
    what, keys = step_of(seed, version)
    if what == "add":
        return {**state, **dict.fromkeys(keys, version)}
    return {key: old for key, old in state.items() if what != "delete" or key not in keys}


# ---------------------------------------------------------------- the children


def write(index: Path, journal: Path, seed: int, first: int) -> None:
    """Write without end; each write is noted in ``journal`` when it has been acknowledged."""
    import numpy as np

    from clipette.index import Row, open_index, tidying

    tidying.TAIL_ROWS, tidying.TAIL_SHARE = TAIL_ROWS, 0.0
    with open_index(index, write=True) as collection, journal.open("ab", buffering=0) as notes:
        notes.write(b"open\n")
        version = first
        while True:
            what, keys = step_of(seed, version)
            if what == "add":
                rows = [Row(key, "image", meta={"version": version}) for key in keys]
                collection.add_rows(rows, np.stack([vector(key, version) for key in keys]))
            elif what == "delete":
                collection.delete(keys)
            else:
                collection.optimize()
            notes.write(f"{version}\n".encode())
            version += 1


def read(index: Path, told: Path) -> None:
    """Search and read without end; what is wrong is written to ``told``, and how many looks were right."""
    import numpy as np

    from clipette.index import open_index

    looks, generation = 0, 0
    with open_index(index) as collection:
        while True:
            collection.refresh()
            query = np.random.default_rng(looks).normal(size=(1, DIM)).astype(np.float32)
            found = collection.search_vectors(query / np.linalg.norm(query), 20)
            rows = collection.rows(found.keys[0])
            expected = [vector(row.key, int(row.meta["version"])) for row in rows]  # type: ignore[arg-type]
            if expected and not np.array_equal(collection.vectors(found.keys[0]), np.stack(expected)):
                raise AssertionError(f"a row is not whole at generation {collection.generation}")
            if collection.generation < generation:
                raise AssertionError(f"generation {collection.generation} after {generation}")
            generation = collection.generation
            looks += 1
            told.with_suffix(".new").write_text(str(looks))
            os.replace(told.with_suffix(".new"), told)


CHILDREN = {"write": write, "read": read}


def start(what: str, *arguments: object) -> subprocess.Popen[bytes]:
    """One of ``CHILDREN`` in a process of its own."""
    command = [sys.executable, __file__, "--child", what, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": SOURCE}, stderr=subprocess.PIPE)


# ---------------------------------------------------------------- the judge


def acknowledged(journal: Path) -> tuple[int, list[int]]:
    """How often a writer was ready, and the versions that were acknowledged. A last half line was not."""
    lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    return lines.count(b"open"), [int(line) for line in lines if line != b"open"]


def differences(index: Path, state: Mapping[str, int]) -> list[str]:
    """How an index differs from what it must hold, row by row."""
    import numpy as np

    from clipette.index import open_index

    with open_index(index) as collection:
        keys = sorted(collection.keys())
        if keys != sorted(state):
            lost, extra = sorted(set(state) - set(keys)), sorted(set(keys) - set(state))
            return [f"{len(lost)} rows lost {lost[:3]}, {len(extra)} too many {extra[:3]}"]
        found = [f"{row.key} is {row.meta.get('version')}, not {state[row.key]}"
                 for row in collection.rows(keys) if row.meta.get("version") != state[row.key]]  # fmt: skip
        expected = [vector(key, state[key]) for key in keys]
        if not found and keys and not np.array_equal(collection.vectors(keys), np.stack(expected)):
            found.append("a vector is not the one that was written")
        report = collection.verify(recall=False)
        return found + list(report["damaged"])


def crash(kills: int, seed: int, folder: Path, store: str) -> dict[str, Any]:
    """Kill ``kills`` writers; what was found."""
    from clipette.errors import StoreError
    from clipette.index import create, open_index

    index, journal, told = folder / "i.index", folder / "journal", folder / "looks"
    exact_rows = EXACT_ROWS if store != "none" else 10**9
    create(index, space="crash", dim=DIM, store="lance" if store == "none" else store, exact_rows=exact_rows).close()
    draw = random.Random(seed)
    state: dict[str, int] = {}
    version, wrong, refused, half = 0, [], 0, 0
    begun = time.monotonic()
    reader = start("read", index, told)
    try:
        for kill in range(kills):
            ready, done = acknowledged(journal)
            writer = start("write", index, journal, seed, version)
            while acknowledged(journal)[0] == ready and writer.poll() is None:
                time.sleep(0.01)
            if kill % 10 == 0 and writer.poll() is None:
                try:
                    open_index(index, write=True).close()
                    wrong.append("a second writer was let in")
                except StoreError as error:
                    refused += "is writing to this index" in str(error)
            # So many more writes and a moment: on a slow machine too the kill falls into the middle of things.
            wanted = len(done) + draw.randint(0, 15)
            while len(acknowledged(journal)[1]) < wanted and writer.poll() is None:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
            _, errors = writer.communicate()
            if writer.returncode != -signal.SIGKILL:
                wrong.append(f"the writer ended by itself: {errors.decode(errors='replace')[-500:]}")
                break
            for each in acknowledged(journal)[1][len(done) :]:
                state = apply(state, seed, each)
                version = each + 1
            under_way = apply(state, seed, version)
            found = differences(index, state)
            if found and under_way != state and not differences(index, under_way):
                # Written, but killed before it could say so.
                state, version, half, found = under_way, version + 1, half + 1, []
            wrong += [f"kill {kill}: {each}" for each in found]
            if reader.poll() is not None:
                wrong.append("the reader ended")
                break
    finally:
        reader.send_signal(signal.SIGKILL)
        _, errors = reader.communicate()
    if reader.returncode != -signal.SIGKILL:
        wrong.append(f"the reader failed: {errors.decode(errors='replace')[-1000:]}")
    return {
        "kills": kill + 1 if kills else 0,
        "store": store,
        "acknowledged": len(acknowledged(journal)[1]),
        "written_but_unsaid": half,
        "second_writers_refused": refused,
        "reader_looks": int(told.read_text() or 0) if told.exists() else 0,
        "rows": len(state),
        "wrong": wrong[:20],
        "sound": not wrong,
        "seconds": round(time.monotonic() - begun, 1),
    }


def main(given: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if given is None else given)
    if words[:1] == ["--child"]:
        what, paths, numbers = words[1], [Path(word) for word in words[2:4]], [int(word) for word in words[4:]]
        CHILDREN[what](*paths, *numbers)  # type: ignore[operator]
        return 0
    from common import arguments, finish, machine

    parser: argparse.ArgumentParser = arguments(__doc__, "bench-crash-index")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--store", choices=["lance", "none"], default="lance", help="none: the rows alone")
    parser.add_argument("--seed", type=int, default=0, help="draws the writes and the moments of the kills")
    options = parser.parse_args(words)
    kills = 3 if options.smoke else options.kills
    with tempfile.TemporaryDirectory(prefix="clipette-crash-index-", ignore_cleanup_errors=True) as folder:
        found = crash(kills, options.seed, Path(folder), options.store)
    finish({**found, "seed": options.seed, "machine": machine()}, options.out)
    return 0 if found["sound"] else 1


if __name__ == "__main__":
    sys.exit(main())
