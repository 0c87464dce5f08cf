from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_three_times_at_random_moments_and_resumed_equals_never_killed(project: Path, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/crash.py", "--what", "pour", "--kills", "3", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])["pour"]
    assert summary["kills"] == 3
    assert summary["equal"]
    assert summary["files"] > 60
    assert json.loads((tmp_path / "summary.json").read_text())["pour"] == summary
