"""The class of every sample, for what counts classes and can leave no sample out."""

from __future__ import annotations

from collections.abc import Sequence

from clipette.errors import ConfigError
from clipette.types import Sample


def labels_of(samples: Sequence[Sample], asked: str) -> list[int]:
    """The class of each sample; ``asked``: the recipe's key that reads it.

    Raises ``ConfigError`` where some have none.
    """
    bare = [sample.key for sample in samples if sample.label is None]
    if bare:
        raise ConfigError(
            f"{asked} needs a class for every sample, and {len(bare)} of {len(samples)} have none (the first: "
            f"{bare[0]!r}): give them one, leave them out of the data, or remove {asked} from the recipe"
        )
    return [sample.label for sample in samples if sample.label is not None]
