"""Every error Clipette raises on purpose, in one tree.

::

    ClipetteError
    ├── UserError                exit code 2: the input is at fault, the message says what, where and what to do
    │   ├── ConfigError          a recipe, option or reference string
    │   ├── DataError            a data source, row or split
    │   │   └── BadImageError    one image that cannot be read (skipped and recorded, never fatal alone)
    │   ├── StoreError           a store that is damaged, of another teacher, or of another width
    │   ├── ModelError           a model that cannot be built, loaded or paired
    │   ├── GateError            a smaller artefact that lost more than its budget
    │   └── UnsupportedError     asked of something that cannot do it (text of an image-only model, ...)
    └── InternalError            a broken promise inside Clipette: please report
"""

from __future__ import annotations


class ClipetteError(Exception):
    """Base of all errors raised on purpose."""


class UserError(ClipetteError):
    """The user's input is at fault; the command line exits with code 2."""


class ConfigError(UserError):
    """A recipe, option or reference string is wrong."""


class DataError(UserError):
    """A data source, row or split is wrong."""


class BadImageError(DataError):
    """One image cannot be read."""


class StoreError(UserError):
    """A store is damaged, belongs to another teacher, or has another width."""


class ModelError(UserError):
    """A model cannot be built, loaded or paired."""


class GateError(UserError):
    """A smaller artefact has lost more quality than its budget allows; nothing was written."""


class UnsupportedError(UserError):
    """Something was asked of an object that cannot do it."""


class InternalError(ClipetteError):
    """A promise inside Clipette was broken."""
