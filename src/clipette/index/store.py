"""What an index is made of, and the protocol that every vector store fulfils."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from clipette.types import Floats

if TYPE_CHECKING:
    from clipette.index.filters import Filter

Kind: TypeAlias = Literal["image", "text"]
KINDS: tuple[Kind, ...] = ("image", "text")
Value: TypeAlias = "str | int | float | bool | None"


@dataclass(frozen=True, slots=True)
class Row:
    """What the collection knows of one key.

    ``location``: where an image is, for people (``photos/a.jpg``, ``train.tar:a.jpg``; "" for a text). ``text``: the
    text itself, or an image's first caption. ``of``: the key of the image that this text was the caption of.
    """

    key: str
    kind: Kind
    location: str = ""
    text: str | None = None
    meta: Mapping[str, Value] = field(default_factory=dict)
    of: str | None = None


@dataclass(frozen=True, slots=True)
class VectorRows:
    """Rows for a vector store. ``vectors``: [N, D] float32 of unit length; ``columns``: name → N values."""

    keys: Sequence[str]
    vectors: Floats
    kinds: Sequence[Kind]
    columns: Mapping[str, Sequence[Value]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """The nearest rows of each query, best first; fewer than k where fewer match. Equal scores are ordered by key.

    ``keys[q][i]`` has the cosine ``scores[q][i]``.
    """

    keys: list[list[str]]
    scores: list[Floats]


class VectorStore(Protocol):
    """Vectors found by nearness: LanceDB in the process, or a Milvus server. One row per key.

    A store is derived: what it holds can be made again from the collection's shards at any time.
    """

    def upsert(self, rows: VectorRows) -> None:
        """Insert rows; a row whose key is there replaces it. Seen by every later search.

        Raises ``StoreError`` on another width, or where the engine refuses.
        """
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove rows; keys that are not there are no error."""
        ...

    def count(self) -> int:
        """How many rows there are."""
        ...

    def can_filter(self, where: Filter) -> bool:
        """Whether the engine can evaluate ``where``: its columns are there, and its operators known."""
        ...

    def search(
        self,
        queries: Floats,
        k: int,
        *,
        where: Filter | None = None,
        exact: bool = False,
        effort: int | None = None,
    ) -> Found:
        """The ``k`` rows nearest to each query [Q, D] by cosine.

        ``exact``: compare with every row. ``effort``: how many candidates the graph search keeps in sight (``ef``);
        more finds more and takes longer. Scores may be of quantized vectors unless ``exact``.
        """
        ...

    def get(self, keys: Sequence[str]) -> Floats:
        """[n, D] the stored vectors. Raises ``StoreError`` naming the first key that is not there."""
        ...

    def optimize(self) -> None:
        """Bring what was written since into the index, and tidy up files."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...
