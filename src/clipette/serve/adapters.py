"""``index/`` as the server's ports: what the rooms above offer, in the shapes of ``ports``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipette.errors import BadImageError, StoreError
from clipette.index.collection import Collection
from clipette.index.query import Query
from clipette.index.search import Searcher
from clipette.index.store import Row
from clipette.io import digest
from clipette.serve.ports import Outcome
from clipette.serve.schemas import SearchRequest
from clipette.types import Encoder, Sample

# Below this many rows re-ranking takes a few milliseconds: two stages would only make the page flicker.
WORTH_TWO_STAGES = 5_000
# Values of a text column that are told, for pages to offer them as filters.
MOST_VALUES = 50


class IndexPort:
    """``ports.CollectionPort`` over a collection.

    ``name``: what people call it; ``encoder``: that of the queries; ``searcher``: knows whether scores are calibrated.
    """

    def __init__(self, collection: Collection, name: str, encoder: Encoder, searcher: Searcher | None = None) -> None:
        self._collection, self._name, self._encoder_name = collection, name, encoder.name
        self._searcher = searcher
        self._values: tuple[int, dict[str, list[str]]] | None = None

    @property
    def generation(self) -> int:
        return self._collection.generation

    def find(self, key: str) -> Row | None:
        try:
            return self._collection.rows([key])[0]
        except StoreError:
            return None

    def version(self, key: str) -> str:
        # The vector is made of the picture: it changes when the picture does, and with no other write.
        return digest(self._collection.vectors([key]).tobytes())

    def image_bytes(self, key: str) -> bytes:
        return self._collection.image_bytes(key)

    def add(self, samples: Sequence[Sample], encoder: Encoder) -> None:
        report = self._collection.add(samples, encoder, replace=True)
        if report.failures:
            # Each picture was decoded before it was accepted, so this is a disk's or the model's failure.
            raise BadImageError("; ".join(failure.reason for failure in report.failures[:3]))

    def delete(self, keys: Sequence[str]) -> int:
        return self._collection.delete(keys)

    def info(self) -> Mapping[str, Any]:
        collection = self._collection
        facts, manifest = collection.facts, collection.manifest
        recall = facts.get("recall") or {}
        derived = manifest.derived
        return {
            "name": self._name,
            "items": len(collection),
            "generation": collection.generation,
            "columns": dict(collection.columns),
            "values": self._few_values(),
            "model": manifest.model.get("name"),
            # One space, two makers: a student at work on what its teacher has indexed.
            "mixed_space": manifest.model.get("name") != self._encoder_name,
            "recall": recall.get("recall"),
            "calibrated": self._searcher is not None and self._searcher.calibration is not None,
            # No folder's name is told: not everyone who may search may know this machine.
            "details": {
                "images": collection.count("image"),
                "texts": collection.count("text"),
                "store": manifest.store,
                "search": "exact" if derived is None else "approximate",
                "effort": None if derived is None else derived.effort,
                "recall": {name: recall[name] for name in ("k", "queries", "search", "asked", "met") if name in recall},
            },
        }

    def _few_values(self) -> dict[str, list[str]]:
        """Looked for once a generation, when somebody asks."""
        generation, known = self._collection.generation, self._values
        if known is None or known[0] != generation:
            known = self._values = generation, self._collection.few_values(MOST_VALUES)
        return known[1]

    def refresh(self) -> bool:
        return self._collection.refresh()

    def close(self) -> None:
        self._collection.close()


class IndexSearch:
    """``ports.SearchPort`` over a searcher. ``two_stages_from``: rows from which re-ranking counts as expensive."""

    def __init__(self, searcher: Searcher, *, two_stages_from: int = WORTH_TWO_STAGES) -> None:
        self._searcher, self._from = searcher, two_stages_from

    def texts(self, request: SearchRequest) -> Sequence[str]:
        query = _query(request, None)
        return [] if query is None else self._searcher.texts_of(query)

    def expensive(self, request: SearchRequest) -> bool:
        return (request.mmr is not None or request.group) and len(self._searcher.collection) >= self._from

    def search(self, request: SearchRequest, image: bytes | None, *, quick: bool = False) -> Outcome:
        found = self._searcher.search(
            _query(request, image),
            request.k,
            where=request.where,
            kind=request.kind,
            mmr=None if quick else request.mmr,
            group=request.group and not quick,
            threshold=request.threshold,
            liked=request.liked,
            disliked=request.disliked,
        )
        return Outcome(found.hits, found.below_threshold, found.threshold, found.calibrated)


def _query(request: SearchRequest, image: bytes | None) -> Query | None:
    """The query; None where marked results alone say what is wanted. Raises ``ConfigError``."""
    if not (request.text or request.image or request.image_key or request.negatives):
        return None
    weights = request.weights
    return Query.parse(
        request.text,
        # Before the picture is read, its texts are asked for: any bytes stand for it.
        image=image if image is not None or request.image is None else b"",
        key=request.image_key,
        negatives=tuple(request.negatives),
        weights={
            "text": weights.text,
            "image": weights.image,
            "key": weights.image,
            "negative": weights.negative,
        },
    )
