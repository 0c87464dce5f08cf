"""Vectors found by key, behind the ``Encoder`` protocol: no model needed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clipette.errors import StoreError, UnsupportedError
from clipette.io import digest_json
from clipette.store import Store
from clipette.store.clip_retrieval import plain_key
from clipette.types import Encoded, Failure, Floats, ImageInput, Ints, Sample

CLIP_SCALE = 100.0

# Below this length a vector counts as zero.
SHORTEST = 1e-12

# Numbers looked at together: 64 MB as float32.
BLOCK = 2**24


class Lookup(Protocol):
    """Vectors by key: a store's table, or arrays in memory."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key, in row order."""
        ...

    def find(self, keys: Sequence[str]) -> Ints:
        """[n] row of each key, or -1."""
        ...

    def vectors(self, rows: Ints) -> Floats:
        """[n, D] float32."""
        ...


class ArrayLookup:
    """Arrays [n, D] with a key for each row.

    Raises ``StoreError`` on another number of keys, a key twice, or a row that has no direction: all rows are
    read once.
    """

    def __init__(self, keys: Sequence[str], vectors: npt.NDArray[Any], where: str) -> None:
        if vectors.ndim != 2 or vectors.dtype.kind != "f":
            raise StoreError(f"{where}: {vectors.dtype} of shape {list(vectors.shape)}; expected floats [rows, width]")
        if len(keys) != len(vectors):
            raise StoreError(f"{where}: {len(vectors)} rows but {len(keys)} keys; they do not belong together")
        self._vectors = vectors
        self._keys = tuple(keys)
        self._rows = {key: row for row, key in enumerate(self._keys)}
        if len(self._rows) != len(self._keys):
            twice = next(key for row, key in enumerate(self._keys) if self._rows[key] != row)
            raise StoreError(f"{where}: the key {twice!r} is there twice; every row needs a key of its own")
        row, found = _without_direction(vectors)
        if found:
            raise StoreError(
                f"{where}: row {row} ({self._keys[row]!r}) {found}: compute that vector anew, or take its row and its "
                "key out"
            )

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key, in row order."""
        return self._keys

    def find(self, keys: Sequence[str]) -> Ints:
        """[n] row of each key, or -1."""
        return np.array([self._rows.get(key, -1) for key in keys], dtype=np.int64)

    def vectors(self, rows: Ints) -> Floats:
        """[n, D] float32."""
        return np.asarray(self._vectors[rows], dtype=np.float32)


def _without_direction(vectors: npt.NDArray[Any]) -> tuple[int, str]:
    """The first row that no length makes a unit vector, and what it holds; words are empty where there is none."""
    height = max(1, BLOCK // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), height):
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.linalg.norm(np.asarray(vectors[start : start + height], dtype=np.float32), axis=1)
        wrong = np.flatnonzero(~((norms >= SHORTEST) & (norms < np.inf)))
        if len(wrong):
            row = int(wrong[0])
            short = norms[row] < SHORTEST
            return start + row, "is all zeros" if short else "holds NaN, infinity or numbers too large"
    return -1, ""


@dataclass(frozen=True)
class StoredFacts:
    """What a table of numbers cannot tell: see ``types.Encoder`` for the meaning of each."""

    name: str
    space: str
    dim: int
    logit_scale: float = CLIP_SCALE
    logit_bias: float = 0.0


class StoredEncoder:
    """``types.Encoder`` over stored vectors: samples are found by key, texts by their exact wording.

    A key is found without its image suffix too (``a`` and ``a.jpg``), where that is unambiguous.
    """

    def __init__(self, facts: StoredFacts, images: Lookup | None, texts: Lookup | None) -> None:
        self.facts = facts
        self._images = images
        self._texts = texts

    @staticmethod
    def of_store(store: Store, *, name: str | None = None, scale: float | None = None) -> StoredEncoder:
        """A store's images and texts; scale and bias are those of the encoder that was poured."""
        info, encoder = store.info, store.identity.get("encoder") or {}
        facts = StoredFacts(
            name=name or str(info.get("name", store.path.name)),
            space=str(encoder.get("space") or digest_json(dict(store.identity))),
            dim=store.dim,
            logit_scale=scale if scale is not None else float(info.get("logit_scale", CLIP_SCALE)),
            logit_bias=float(info.get("logit_bias", 0.0)),
        )
        return StoredEncoder(facts, store.images, store.texts)

    def with_facts(self, facts: StoredFacts) -> StoredEncoder:
        """The same vectors under other facts."""
        return StoredEncoder(facts, self._images, self._texts)

    @property
    def name(self) -> str:
        """For tables."""
        return self.facts.name

    @property
    def space(self) -> str:
        """Id of the embedding space."""
        return self.facts.space

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return self.facts.dim

    @property
    def logit_scale(self) -> float:
        """The factor on cosines."""
        return self.facts.logit_scale

    @property
    def logit_bias(self) -> float:
        """Added after scaling."""
        return self.facts.logit_bias

    @property
    def texts(self) -> tuple[str, ...]:
        """Every stored wording; none where no texts are stored."""
        return () if self._texts is None else self._texts.keys

    @property
    def can_encode_text(self) -> bool:
        """Whether texts are stored: those wordings only."""
        return self._texts is not None

    @property
    def can_encode_images(self) -> bool:
        """Whether images are stored: those samples only, never new pixels."""
        return self._images is not None

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of every image that has a vector."""
        return self._images.keys if self._images is not None else ()

    def encode_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Floats:
        """Raises ``UnsupportedError``: numbers on a disk cannot look at pixels."""
        raise UnsupportedError(
            f"{self.name} is stored embeddings: it knows the samples that were stored, by key, and cannot encode new "
            "images; name the model itself, or a student of it"
        )

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        """Vectors of the samples whose keys are stored; the others are failures."""
        if self._images is None:
            raise UnsupportedError(f"{self.name} holds no images, only texts")
        rows = self._find([sample.key for sample in samples])
        found = np.flatnonzero(rows >= 0)
        failures = tuple(
            Failure(samples[i].key, samples[i].key, f"no vector of this key is stored in {self.name}")
            for i in np.flatnonzero(rows < 0).tolist()
        )
        return Encoded(
            tuple(samples[i].key for i in found.tolist()), _unit(self._images.vectors(rows[found])), failures
        )

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Floats:
        """[N, D] unit vectors. Raises ``StoreError`` naming a text that is not stored, and the nearest one that is."""
        if self._texts is None:
            raise UnsupportedError(f"{self.name} holds no texts: it can only be used with image-only losses")
        rows = self._texts.find(texts)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            asked = texts[int(missing[0])]
            near = difflib.get_close_matches(asked, self._texts.keys[:20_000], 1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise StoreError(
                f"{self.name}: no vector of {asked!r} is stored ({len(missing)} of {len(texts)} texts are missing)"
                f"{hint}; texts are found by their exact wording: use the templates they were stored with"
            )
        return _unit(self._texts.vectors(rows))

    def _find(self, keys: Sequence[str]) -> Ints:
        assert self._images is not None
        rows = self._images.find(keys)
        for place in np.flatnonzero(rows < 0).tolist():
            rows[place] = self._plain_rows.get(plain_key(keys[place]), -1)
        return rows

    @cached_property
    def _plain_rows(self) -> dict[str, int]:
        """Key without an image's suffix → row; keys that two rows would share are left out."""
        found: dict[str, int] = {}
        twice: set[str] = set()
        for row, key in zip(_first_rows(self._images), self.keys, strict=True):
            plain = plain_key(key)
            if plain in found:
                twice.add(plain)
            found[plain] = row
        return {key: row for key, row in found.items() if key not in twice}


def _first_rows(images: Lookup | None) -> range:
    return range(len(images.keys) if images is not None else 0)


def _unit(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: Floats = vectors / np.maximum(norms, SHORTEST)
    return out
