"""The version, stated once: pyproject.toml, ``clipette --version`` and model cards read it here."""

VERSION = "0.1.0"
