from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clipette.store import open_store

from .test_pour import PLAN, data_of, files
from .tiny import tiny_teacher, write_pictures

CHILD = """
import sys
from pathlib import Path
from tests.tasks.test_pour import PLAN, data_of
from tests.tasks.tiny import tiny_teacher
from clipette.errors import ClipetteError
from clipette.tasks.pour import pour
plan = PLAN.model_copy(update={"max_failures": float(sys.argv[3])})
try:
    report = pour(tiny_teacher(), data_of(Path(sys.argv[1])), sys.argv[2], plan)
except ClipetteError as error:
    print(type(error).__name__, error)
    sys.exit(3)
print(report.images, report.texts, len(report.failures))
"""


def pour_in_two(project: Path, folder: Path, out: Path, *, max_failures: float = 0.2) -> list[tuple[int, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):
        environment = {
            **os.environ,
            "PYTHONPATH": f"{project / 'src'}:{project}",
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", CHILD, str(folder), str(out), str(max_failures)]
        children.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    ends = []
    for child in children:
        output, errors = child.communicate(timeout=300)
        ends.append((child.returncode, output or errors))
    return ends


@pytest.mark.slow
def test_two_processes_pour_the_store_of_one(project: Path, tmp_path: Path) -> None:
    from clipette.tasks.pour import pour

    folder = write_pictures(tmp_path / "pictures", 17)
    (folder / "p006.png").write_bytes(b"")
    pour(tiny_teacher(), data_of(folder), tmp_path / "one", PLAN)
    ends = pour_in_two(project, folder, tmp_path / "two")
    assert ends == [(0, "16 22 1\n"), (0, "16 22 1\n")]
    one, two = ({n: b for n, b in files(tmp_path / s).items() if not n.startswith("locks")} for s in ("one", "two"))
    assert set(one) == set(two)
    store = open_store(tmp_path / "two")
    store.verify()
    assert [name for name in one if one[name] != two[name]] == []


@pytest.mark.slow
def test_an_error_of_one_rank_ends_all_of_them_in_words(project: Path, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", 12)
    # All in the second shard, which is rank 1's.
    for number in range(5, 9):
        (folder / f"p{number:03d}.png").write_bytes(b"")
    ends = pour_in_two(project, folder, tmp_path / "two", max_failures=0.1)
    assert [code for code, _ in ends] == [3, 3]
    assert ends[0][1].startswith("StoreError rank 1 could not go on: 4 of 12")
    assert ends[1][1].startswith("DataError 4 of 12 samples")
