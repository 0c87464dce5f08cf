"""``import clipette``: light, lazy, and its verbs stay callable after rooms of the same name are imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import clipette

SOURCE = Path(clipette.__file__).parents[1]


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=SOURCE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_is_light() -> None:
    program = "import sys, clipette; print(sorted({'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules)))"
    assert python(program) == "[]"


@pytest.mark.parametrize("name", [name for name in clipette.__all__ if name != "__version__"])
def test_every_public_name_is_callable(name: str) -> None:
    assert callable(getattr(clipette, name))
    assert name in dir(clipette)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'puor'"):
        clipette.puor  # noqa: B018


def test_a_room_of_a_verbs_name_stays_callable_and_importable() -> None:
    program = """
import types, sys
import clipette
import clipette.evaluate.zero_shot as room
from clipette.evaluate import zero_shot
assert room is zero_shot
fake = types.ModuleType("clipette.verbs")
fake.evaluate = lambda *args, **options: (args, options)
sys.modules["clipette.verbs"] = fake
print(clipette.evaluate("model", out=1))
"""
    assert python(program) == "(('model',), {'out': 1})"
