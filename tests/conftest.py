"""Fixtures shared by every test."""

from __future__ import annotations

import os
from pathlib import Path

# Models here are tiny: threads that wait for each other cost more than they bring (sixty-fold on a busy machine).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest

# The same examples every time, and no time limit on each: machines are busy.
hypothesis.settings.register_profile("clipette", deadline=None, derandomize=True)
hypothesis.settings.load_profile("clipette")

PROJECT = Path(__file__).resolve().parents[1]


def shared_folder() -> Path | None:
    """The folder of real data and weights (CLIPETTE_SHARED, default ../shared beside the project), where it exists."""
    folder = Path(os.environ.get("CLIPETTE_SHARED", PROJECT.parent / "shared"))
    return folder if (folder / "data").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and weights; the test is skipped, with the reason, where they are absent."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("real data absent: set CLIPETTE_SHARED to the folder that holds data/ and weights/")
    return folder


@pytest.fixture(scope="session")
def project() -> Path:
    """The project root."""
    return PROJECT
