"""The order of the rooms (docs: "a room imports only rooms above it") and the PyTorch line, from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "clipette"

TORCH_FREE = (
    *("version", "types", "errors", "io", "plain_yaml", "config", "progress", "memory"),
    *("data", "metrics", "store", "runtime", "index", "serve"),
)
BELOW_TORCH_LINE = ("models", "losses", "adapt", "evaluate", "tasks", "train", "export")
GLUE = (
    "resolve",
    "adapting",
    "measuring",
    "exporting",
    "benching",
    "prompting",
    "pruning",
    "distilling",
    "showcase",
    "indexing",
    "serving",
    "verbs",
    "health",
    "cli",
    "__main__",
    "__init__",
)
ORDER = (*TORCH_FREE, *BELOW_TORCH_LINE, *GLUE)

# What drags PyTorch in.
TORCH = {"torch", "torchvision", "timm", "open_clip", "transformers", "accelerate", "sentence_transformers"}


def room_of(path: Path) -> str:
    """``data`` of ``src/clipette/data/views.py``, ``io`` of ``src/clipette/io.py``."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, at any depth: in functions, under TYPE_CHECKING, by import_module.

    ``from a.b import c`` gives ``a.b.c``: whether c is a module or a name, its room is the same.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func).rpartition(".")[2]
            first = node.args[0]
            if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def violations(room: str, source: str, package: str) -> list[str]:
    """What a file of ``room`` may not import, as ``line: why``."""
    found = []
    for line, name in imported(source, package):
        top, _, rest = name.partition(".")
        if top in TORCH and room in TORCH_FREE:
            found.append(f"{line}: {room} is above the PyTorch line and imports {name}")
        if top != "clipette":
            continue
        target = rest.partition(".")[0]
        target = target if target in ORDER else "__init__"  # a name of the package itself
        if target != room and ORDER.index(target) > ORDER.index(room):
            found.append(f"{line}: {room} imports {name}, a room below it")
    return found


def test_every_file_belongs_to_a_room() -> None:
    strangers = {room_of(path) for path in SOURCE.rglob("*.py")} - set(ORDER)
    assert not strangers, f"rooms without a place in ORDER: {sorted(strangers)}"


def test_rooms_import_only_rooms_above_them() -> None:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        package = ".".join(["clipette", *path.parent.relative_to(SOURCE).parts])
        for violation in violations(room_of(path), path.read_text(), package):
            found.append(f"{path.relative_to(SOURCE)}:{violation}")
    assert not found, "\n".join(found)


def modules_above_the_line() -> list[str]:
    names = []
    for path in sorted(SOURCE.rglob("*.py")):
        if room_of(path) in TORCH_FREE:
            parts = [part for part in path.relative_to(SOURCE).with_suffix("").parts if part != "__init__"]
            names.append(".".join(["clipette", *parts]))
    return names


def test_rooms_above_the_line_work_without_pytorch() -> None:
    program = f"""
import importlib, sys
BANNED = {sorted(TORCH)!r}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
for name in {modules_above_the_line()!r}:
    importlib.import_module(name)
print(*[name for name in BANNED if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=SOURCE.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("room", "source", "package", "expected"),
    [
        ("data", "def f():\n    import torch.nn\n", "clipette.data", "2: data is above"),
        ("store", "from importlib import import_module\nimport_module('timm')", "clipette.store", "2: store is above"),
        ("metrics", "from clipette.store import open_store", "clipette.metrics", "1: metrics imports clipette.store"),
        ("losses", "from ..tasks import task", "clipette.losses", "1: losses imports clipette.tasks"),
        ("models", "if TYPE_CHECKING:\n    from clipette import resolve", "clipette.models", "2: models imports"),
        ("tasks", "import clipette", "clipette.tasks", "1: tasks imports clipette"),
        ("data", "from . import views\nfrom clipette.types import View\nimport numpy", "clipette.data", None),
        ("train", "from clipette.tasks import task\nimport torch", "clipette.train", None),
        ("cli", "from clipette import verbs", "clipette.cli", None),
    ],
)
def test_the_checker_can_fail(room: str, source: str, package: str, expected: str | None) -> None:
    found = violations(room, source, package)
    assert (found == []) if expected is None else (len(found) == 1 and found[0].startswith(expected)), found
