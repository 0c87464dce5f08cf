"""The command line: one thin file per verb, no logic."""

from clipette.cli.app import main

__all__ = ["main"]
