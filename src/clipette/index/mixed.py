"""Mixed-space search: another encoder's queries on an index that its teacher built, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipette.errors import DataError, UnsupportedError
from clipette.index.collection import Collection
from clipette.index.store import Found
from clipette.metrics.bootstrap import Bootstrap, Interval, difference_interval, mean_interval
from clipette.metrics.similarity import Doubles
from clipette.types import Encoder, Floats, Sample

KS = (1, 5, 10)
DEPTH = 10


@dataclass(frozen=True, slots=True)
class Side:
    """One kind of query, measured. Each figure is a mean over queries, with its interval over images.

    ``hit``: k → share of queries that find their own image among the first k, with the guest's queries. ``own_hit``:
    the same with the queries of the index's own encoder (for pictures: with the stored vectors). ``lost``: own - guest,
    paired. ``overlap``: share of the own encoder's first 10 that the guest's first 10 hold (recall@10 against it).
    ``cosine``: of the guest's query vectors with the own encoder's. None where the own encoder was not at hand.
    """

    queries: int
    hit: dict[int, Interval]
    own_hit: dict[int, Interval] | None = None
    lost: dict[int, Interval] | None = None
    overlap: Interval | None = None
    cosine: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        """For reports and manifests: ``hit@1``: [value, low, high], …"""
        told: dict[str, Any] = {"queries": self.queries}
        for name, table in (("hit", self.hit), ("own_hit", self.own_hit), ("lost", self.lost)):
            told |= {f"{name}@{k}": _plain(interval) for k, interval in (table or {}).items()}
        for name, interval in ((f"overlap@{DEPTH}", self.overlap), ("cosine", self.cosine)):
            if interval is not None:
                told[name] = _plain(interval)
        return told


@dataclass(frozen=True, slots=True)
class MixedReport:
    """What a guest's queries find on an index, beside the queries of the index's own encoder."""

    guest: str
    own: str
    images: int
    text: Side | None
    image: Side | None

    def to_json(self) -> dict[str, Any]:
        """For ``Collection.set_fact`` and the command line."""
        sides = {"text": self.text, "image": self.image}
        return {
            "guest": self.guest,
            "own": self.own,
            "images": self.images,
            **{name: None if side is None else side.to_json() for name, side in sides.items()},
        }


def measure_mixed(
    collection: Collection,
    guest: Encoder,
    samples: Sequence[Sample],
    *,
    own: Encoder | None = None,
    ks: Sequence[int] = KS,
    how: Bootstrap = Bootstrap(),
) -> MixedReport:
    """Ask ``collection`` the captions and the pictures of ``samples``, by ``guest`` and by its own encoder.

    Compared exactly, so that the encoders are measured and not the index. Captions ask for their own image (``hit@k``
    is what papers call R@k, where ``samples`` are the whole collection). Pictures ask for themselves; the vectors that
    the index holds stand for its own encoder, so those need no ``own``. Samples that are not in the collection are
    left out. Intervals resample images, an image's captions with it.

    Raises ``StoreError`` for another space, ``DataError`` where no sample is in the collection, ``UnsupportedError``
    where the guest has neither a text nor an image side.
    """
    for encoder in (guest, own):
        if encoder is not None:
            collection.check_space(encoder)
    if not (guest.can_encode_text or guest.can_encode_images):
        raise UnsupportedError(f"{guest.name} encodes neither texts nor images: it has no queries")
    known = [sample for sample in samples if sample.image is not None and sample.key in collection]
    if not known:
        raise DataError(
            f"none of the {len(samples)} samples is an image of {collection.path}: give the data that was indexed"
        )
    work = _Work(collection, guest, own, tuple(ks), how)
    return MixedReport(
        guest=guest.name,
        own=own.name if own is not None else str(collection.manifest.model.get("name", "")),
        images=len(known),
        text=work.texts(known) if guest.can_encode_text else None,
        image=work.images(known) if guest.can_encode_images else None,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    collection: Collection
    guest: Encoder
    own: Encoder | None
    ks: tuple[int, ...]
    how: Bootstrap

    def texts(self, samples: Sequence[Sample]) -> Side | None:
        pairs = [(caption, sample.key) for sample in samples for caption in sample.captions]
        if not pairs:
            return None
        captions, keys = [caption for caption, _ in pairs], [key for _, key in pairs]
        own = self.own.encode_texts(captions) if self.own is not None and self.own.can_encode_text else None
        return self._side(self.guest.encode_texts(captions), own, keys)

    def images(self, samples: Sequence[Sample]) -> Side | None:
        encoded = self.guest.encode_samples(samples)
        if not encoded.keys:
            return None
        return self._side(encoded.vectors, self.collection.vectors(encoded.keys), list(encoded.keys))

    def _side(self, guest: Floats, own: Floats | None, keys: Sequence[str]) -> Side:
        groups = np.unique(np.asarray(keys), return_inverse=True)[1].reshape(-1).astype(np.int64)
        depth = max(*self.ks, DEPTH)
        found = self.collection.search_vectors(guest, depth, exact=True, kind="image")
        hits = {k: _hits(found, keys, k) for k in self.ks}
        figures = {k: mean_interval(values, groups, self.how) for k, values in hits.items()}
        if own is None:
            return Side(len(keys), figures)
        expected = self.collection.search_vectors(own, depth, exact=True, kind="image")
        own_hits = {k: _hits(expected, keys, k) for k in self.ks}
        cosine = (guest.astype(np.float64) * own).sum(axis=1)
        return Side(
            len(keys),
            figures,
            {k: mean_interval(values, groups, self.how) for k, values in own_hits.items()},
            {k: difference_interval(own_hits[k], hits[k], groups, self.how) for k in self.ks},
            mean_interval(_overlap(found, expected), groups, self.how),
            mean_interval(cosine, groups, self.how),
        )


def _hits(found: Found, keys: Sequence[str], k: int) -> Doubles:
    """[Q] 1 where the query's own key is among the first k. Ties are ordered by key, as users see them."""
    return np.array([key in names[:k] for names, key in zip(found.keys, keys, strict=True)], dtype=np.float64)


def _overlap(found: Found, expected: Found) -> Doubles:
    """[Q] share of the expected first 10 that are among the found first 10."""
    shares = []
    for ours, theirs in zip(found.keys, expected.keys, strict=True):
        wanted = set(theirs[:DEPTH])
        shares.append(len(wanted & set(ours[:DEPTH])) / max(1, len(wanted)))
    return np.array(shares, dtype=np.float64)


def _plain(interval: Interval) -> list[float]:
    return [round(each, 4) for each in (interval.value, interval.low, interval.high)]
