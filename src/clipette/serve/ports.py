"""What the server needs of a collection and of a search: the shapes, so that a test can put its own in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from clipette.serve.schemas import SearchRequest
from clipette.types import Encoder, Sample


class RowPort(Protocol):
    """One row of a collection."""

    @property
    def key(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def text(self) -> str | None: ...

    @property
    def meta(self) -> Mapping[str, Any]: ...


class HitPort(Protocol):
    """One result; ``score`` is a cosine."""

    @property
    def key(self) -> str: ...

    @property
    def score(self) -> float: ...

    @property
    def kind(self) -> str: ...

    @property
    def text(self) -> str | None: ...

    @property
    def meta(self) -> Mapping[str, Any]: ...

    @property
    def duplicates(self) -> Sequence[str]: ...

    @property
    def confidence(self) -> float | None: ...

    @property
    def fits(self) -> bool | None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """Hits best first; ``threshold``: the cosine below which nothing fits, where there is one."""

    hits: Sequence[HitPort]
    below_threshold: bool = False
    threshold: float | None = None
    calibrated: bool = False


class SearchPort(Protocol):
    """Searches in a thread. ``quick``: leave out what is expensive (diversity, grouping)."""

    def texts(self, request: SearchRequest, /) -> Sequence[str]:
        """What the query will have encoded, so that it can be encoded together with other queries' texts."""
        ...

    def expensive(self, request: SearchRequest, /) -> bool:
        """Whether a quick answer would come notably sooner than the whole one."""
        ...

    def search(self, request: SearchRequest, image: bytes | None, /, *, quick: bool = False) -> Outcome: ...


class CollectionPort(Protocol):
    """A collection of vectors: rows by key, bytes of images, writes, and a number that grows with every write."""

    @property
    def generation(self) -> int: ...

    def find(self, key: str, /) -> RowPort | None:
        """The row of a key, or None."""
        ...

    def version(self, key: str, /) -> str:
        """Changes whenever the picture of a key looks different."""
        ...

    def image_bytes(self, key: str, /) -> bytes:
        """Raises ``BadImageError``."""
        ...

    def add(self, samples: Sequence[Sample], encoder: Encoder, /) -> None:
        """On disk when it returns. Raises ``BadImageError`` or ``DataError`` naming the sample; then none is added."""
        ...

    def delete(self, keys: Sequence[str], /) -> int:
        """On disk when it returns; how many there were."""
        ...

    def info(self) -> Mapping[str, Any]:
        """What ``schemas.IndexInfo`` holds."""
        ...

    def refresh(self) -> bool:
        """See what other processes have written; whether there was anything."""
        ...

    def close(self) -> None: ...
