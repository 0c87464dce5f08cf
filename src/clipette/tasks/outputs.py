"""Where a teacher's outputs come from during training: a store, or any encoder's vectors in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipette.data.order import stable_hash
from clipette.errors import StoreError
from clipette.store.reader import Store, Table
from clipette.types import Encoder, Floats, Ints, Sample, View


@dataclass(frozen=True)
class Draw:
    """The views of one batch, which of each image's views they are [B], and the teacher's vectors of them [B, Dt]."""

    views: list[View]
    chosen: Ints
    vectors: Floats


class StoredOutputs:
    """A store's images, views and texts, joined to the training samples by key once, then read by row.

    ``images`` false: only texts are wanted, and the samples may have no images.
    """

    def __init__(
        self, store: Store, samples: Sequence[Sample], captions: Sequence[str], *, seed: int, images: bool = True
    ) -> None:
        self.dim = store.dim
        self._seed = seed
        self._keys = [sample.key for sample in samples]
        self._store = store
        self._views: Table | None = store.views
        self._images = store.images
        self._rows: Ints = np.zeros((0, 1), dtype=np.int64)
        if not images:
            self._views = None
        elif self._views is not None:
            self._rows = self._views.view_rows(self._keys)
        elif self._images is not None:
            self._rows = self._images.rows(self._keys)[:, None]
        else:
            raise StoreError(f"{store.path} holds no images: pour the training images first")
        self._text_rows: Ints | None = None
        if captions and store.texts is not None:
            self._text_rows = store.texts.rows(captions)
        self._parameters = self._read_views() if self._views is not None else None
        # An imported store knows no images, only their vectors.
        poured = store.identity.get("images") is not None
        table = self._views if self._views is not None else self._images
        self._content = table.columns["content"] if images and poured and table is not None else None

    def _read_views(self) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        assert self._views is not None
        return {name: np.asarray(column) for name, column in self._views.columns.items() if name != "content"}

    @property
    def has_texts(self) -> bool:
        """Whether every caption has a stored vector."""
        return self._text_rows is not None

    def content(self, position: int) -> str:
        """The digest of the image's bytes that were poured; empty where it is not known."""
        return "" if self._content is None else str(self._content[self._rows[position, 0]])

    def draw(self, positions: Ints, epoch: int) -> Draw:
        """One stored view of each sample, chosen by a hash of (seed, epoch, key)."""
        count = self._rows.shape[1]
        draws = [stable_hash("stored view", self._seed, epoch, self._keys[p]) % count for p in positions]
        chosen: Ints = np.array(draws, dtype=np.int64)
        rows = self._rows[positions, chosen]
        if self._views is None:
            assert self._images is not None
            return Draw([View()] * len(rows), chosen, self._images.vectors(rows))
        return Draw(self._cuts(rows), chosen, self._views.vectors(rows))

    def views_of(self, position: int) -> list[View]:
        """Every view of one sample: the whole image, where no views were poured."""
        return [View()] if self._views is None else self._cuts(self._rows[position])

    def _cuts(self, rows: Ints) -> list[View]:
        p = self._parameters
        assert p is not None
        return [
            View(
                box=(float(p["left"][r]), float(p["top"][r]), float(p["right"][r]), float(p["bottom"][r])),
                flip=bool(p["flip"][r]),
                brightness=float(p["brightness"][r]),
                contrast=float(p["contrast"][r]),
                saturation=float(p["saturation"][r]),
            )
            for r in rows
        ]

    def texts(self, captions: Ints) -> Floats:
        """[B, Dt] the teacher's vectors of captions by their position in the training captions."""
        if self._text_rows is None or self._store.texts is None:
            raise StoreError("the store holds no captions: pour with --captions, or use image-only losses")
        return self._store.texts.vectors(self._text_rows[captions])


class EncodedOutputs:
    """A teacher that is only stored embeddings (``stored:…``): one vector an image, no views.

    Captions' vectors are read where the teacher has them for every caption.
    """

    def __init__(self, teacher: Encoder, samples: Sequence[Sample], captions: Sequence[str]) -> None:
        encoded = teacher.encode_samples(samples)
        if encoded.keys != tuple(sample.key for sample in samples):
            first = encoded.failures[0] if encoded.failures else None
            raise StoreError(
                f"the teacher {teacher.name} has no vector for {len(samples) - len(encoded.keys)} of {len(samples)} "
                f"training images" + (f", first '{first.key}': {first.reason}" if first else "")
            )
        self.dim = teacher.dim
        self._images = encoded.vectors
        self._texts = teacher.encode_texts(captions) if captions and teacher.can_encode_text else None

    @property
    def has_texts(self) -> bool:
        return self._texts is not None

    def content(self, position: int) -> str:
        """Not known: nothing is poured."""
        return ""

    def draw(self, positions: Ints, epoch: int) -> Draw:
        """The whole image: stored embeddings belong to no augmented view."""
        return Draw([View()] * len(positions), np.zeros(len(positions), np.int64), self._images[positions])

    def views_of(self, position: int) -> list[View]:
        """The whole image alone."""
        return [View()]

    def texts(self, captions: Ints) -> Floats:
        if self._texts is None:
            raise StoreError("this teacher has no vectors for the captions: use image-only losses")
        return self._texts[captions]
