"""The version, stated once: pyproject.toml, ``clipette --version`` and model cards read it here."""

from __future__ import annotations

from pathlib import Path

VERSION = "0.1.0"


def commit() -> str | None:
    """The commit of the checkout that this package runs from; None where it was installed from elsewhere."""
    folder = Path(__file__).resolve().parents[2] / ".git"
    try:
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head or None
        name = head.removeprefix("ref: ")
        if (folder / name).is_file():
            return (folder / name).read_text().strip()
        packed = (line.split(" ") for line in (folder / "packed-refs").read_text().splitlines())
        return next((line[0] for line in packed if line[1:] == [name]), None)
    except OSError:
        return None
