"""``index/`` as the server's ports: what the rooms above offer, in the shapes of ``ports``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipette.errors import BadImageError
from clipette.index.collection import Collection
from clipette.index.store import Row
from clipette.types import Encoder, Sample


class IndexPort:
    """``ports.CollectionPort`` over a collection. ``name``: what people call it."""

    def __init__(self, collection: Collection, name: str) -> None:
        self._collection, self._name = collection, name

    @property
    def generation(self) -> int:
        return self._collection.generation

    def find(self, key: str) -> Row | None:
        return self._collection.rows([key])[0] if key in self._collection else None

    def version(self, key: str) -> str:
        return f"{self._collection.manifest.id}:{self._collection.generation}"

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
        return {
            "name": self._name,
            "items": len(collection),
            "generation": collection.generation,
            "columns": dict(collection.columns),
            "model": collection.manifest.model.get("name"),
            "calibrated": "calibration" in collection.facts,
            "details": {"images": collection.count("image"), "texts": collection.count("text")},
        }

    def refresh(self) -> None:
        self._collection.refresh()

    def close(self) -> None:
        self._collection.close()
