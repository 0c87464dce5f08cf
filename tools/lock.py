"""Write requirements.lock: merge pip's resolutions for several Pythons into one file of exact versions and markers.

For each Python, oldest first, in a fresh virtual environment of it, from the project root::

    pip install --dry-run --ignore-installed --quiet --report 3.10.json '.[dev]' hatchling
    pip install --dry-run --ignore-installed --quiet --report 3.11.json '.[dev]' hatchling -c requirements.lock

then ``python tools/lock.py 3.10=3.10.json 3.11=3.11.json > requirements.lock``. The last Python's versions also serve
every later Python. Only names, versions and markers are written: where packages come from is the machine's business.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

# PyTorch's own dependencies on Linux with a GPU, and Milvus' server; elsewhere they do not exist.
LINUX_ONLY = re.compile(r"^(nvidia-|cuda-|triton$|milvus$)")
HEADER = """\
# Exact versions of everything `make install` installs: the dev extra and the build backend.
# Written by tools/lock.py (see its first lines); do not edit by hand.
"""


def normal(name: str) -> str:
    """PEP 503's normal form of a project name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_report(path: Path) -> dict[str, str]:
    """Name to version, without the project itself."""
    rows = json.loads(path.read_text())["install"]
    found = {normal(row["metadata"]["name"]): row["metadata"]["version"].partition("+")[0] for row in rows}
    return {name: version for name, version in found.items() if name not in ("clipette", "pip")}


def merge(resolutions: dict[str, dict[str, str]]) -> list[str]:
    """One line per package and version; a marker where Pythons differ. Keys are ``3.10``, ``3.11``, ... in order."""
    pythons = list(resolutions)
    lines = []
    for name in sorted({name for found in resolutions.values() for name in found}):
        groups: list[tuple[str | None, list[int]]] = []  # runs of neighbouring Pythons with equal version
        for position, python in enumerate(pythons):
            version = resolutions[python].get(name)
            if groups and groups[-1][0] == version:
                groups[-1][1].append(position)
            else:
                groups.append((version, [position]))
        for version, positions in groups:
            if version is None:
                continue
            markers = []
            if positions[0] > 0:
                markers.append(f'python_version >= "{pythons[positions[0]]}"')
            if positions[-1] < len(pythons) - 1:
                markers.append(f'python_version < "{pythons[positions[-1] + 1]}"')
            if LINUX_ONLY.match(name):
                markers.append('sys_platform == "linux"')
            lines.append(f"{name}=={version}" + (" ; " + " and ".join(markers) if markers else ""))
    return lines


def main(arguments: list[str]) -> None:
    """Print the lock of ``PYTHON=REPORT`` arguments."""
    pairs = [argument.partition("=") for argument in arguments]
    resolutions = {python: read_report(Path(path)) for python, _, path in pairs}
    print(HEADER + "\n".join(merge(resolutions)))


if __name__ == "__main__":
    main(sys.argv[1:])
