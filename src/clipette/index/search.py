"""Search: queries of every kind against one collection, refined, calibrated and explained."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from clipette.errors import ConfigError, StoreError, UnsupportedError
from clipette.index.background import length_of
from clipette.index.calibrate import FACT, Calibration, kept_calibrations, probe_of
from clipette.index.collection import Collection
from clipette.index.filters import Filter
from clipette.index.mixing import Reference, mixed, rocchio
from clipette.index.query import Query, unit
from clipette.index.refine import Picked, Wanted, refined
from clipette.index.scales import Scale
from clipette.index.store import KINDS, Kind, Value
from clipette.types import Encoder, Floats

Threshold: TypeAlias = "Literal['auto'] | float | None"
Asked: TypeAlias = "Query | str"

# Items that a query's spread of scores is measured on: 2,000 tell a standard deviation within 2 %.
SAMPLED = 2000
# The sample is drawn anew when the collection has grown or shrunk by more than this share.
DRIFT = 0.1
# A threshold that lets through more than this share of unanswered queries says nothing.
MOST_ACCEPTED = 0.5
RETRIES = 3


@dataclass(frozen=True, slots=True)
class Hit:
    """One result.

    ``score``: its cosine with the (mixed) query. ``confidence``: where the collection is calibrated for such queries,
    the share of queries without an answer that score lower (for pictures: see ``scales.Scale.confidence``). ``fits``:
    whether the score reaches the threshold; None without one. ``duplicates``: near-duplicates folded into this hit.
    """

    rank: int
    key: str
    score: float
    kind: Kind
    text: str | None = None
    location: str = ""
    meta: Mapping[str, Value] = field(default_factory=dict)
    duplicates: tuple[str, ...] = ()
    confidence: float | None = None
    fits: bool | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """Hits, best first, and what they are worth.

    ``below_threshold``: a threshold was asked for and no hit reaches it; the hits are the nearest there are.
    ``threshold``: the cosine compared with (of images, where both kinds were asked for). ``calibrated``: whether the
    collection knows what scores of such queries mean. ``false_accept``: the rate the threshold was chosen for; for
    pictures the rate of false rejects. ``generation``: of the collection that answered.
    """

    hits: tuple[Hit, ...]
    below_threshold: bool = False
    threshold: float | None = None
    calibrated: bool = False
    false_accept: float | None = None
    generation: int = 0
    took_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class How:
    """Everything about a search but the query. See ``Searcher.search``."""

    k: int = 20
    where: Filter | str | None = None
    kind: Kind | Literal["any"] = "image"
    mmr: float | None = None
    group: bool = False
    threshold: Threshold = "auto"
    exact: bool | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"search: k is {self.k}; ask for at least 1 result")
        if self.kind not in (*KINDS, "any"):
            raise ConfigError(f"search: no kind {self.kind!r}; there are {', '.join(KINDS)}, any")
        if self.mmr is not None and not 0.0 <= self.mmr <= 1.0:
            raise ConfigError(f"search: mmr {self.mmr} is no balance; give 0 (diverse) to 1 (relevant)")
        if isinstance(self.threshold, str) and self.threshold != "auto":
            raise ConfigError(f"search: no threshold {self.threshold!r}; give 'auto', a cosine, or none")
        if isinstance(self.threshold, float) and not math.isfinite(self.threshold):
            raise ConfigError(f"search: no threshold {self.threshold}; give 'auto', a cosine, or none")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A query in vectors: parts with weights, the negatives [M, D], and which scale its scores are read on."""

    parts: tuple[tuple[Floats, float], ...]
    negatives: Floats
    negative_weight: float
    asked: str | None
    skip: frozenset[str] = frozenset()


class Searcher:
    """Searches one collection with one encoder; safe to use from several threads.

    The encoder must be of the collection's space: the model that built the index, or a student distilled into that
    model's space (**mixed-space search**; ``mixed.measure_mixed`` says what it costs). Without an encoder, items and
    vectors can still be searched with. Raises ``StoreError`` for another space.
    """

    def __init__(self, collection: Collection, encoder: Encoder | None = None) -> None:
        if encoder is not None:
            collection.check_space(encoder)
        self.collection = collection
        self.encoder = encoder
        self._lock = threading.Lock()
        self._references: dict[Kind, tuple[int, Reference]] = {}
        self._calibration: tuple[object, Calibration | None] | None = None
        self._probe: tuple[float, ...] | None = None

    # ------------------------------------------------------------ searching

    def search(
        self,
        query: Asked | None = None,
        k: int = 20,
        *,
        where: Filter | str | None = None,
        kind: Kind | Literal["any"] = "image",
        mmr: float | None = None,
        group: bool = False,
        threshold: Threshold = "auto",
        liked: Sequence[str] = (),
        disliked: Sequence[str] = (),
        exact: bool | None = None,
    ) -> Results:
        """The ``k`` items that answer ``query`` best.

        Args:
            query: what is looked for; a string is read as people type it (``beach -people``). May be left out where
                ``liked`` says enough.
            k: hits wanted; fewer come back where fewer match.
            where: a filter on the collection's columns.
            kind: images, texts, or both in one list (compared by how far each stands out among its kind).
            mmr: 0 (diverse) to 1 (relevant): re-rank for diversity (``rerank.mmr``).
            group: fold near-duplicates into one hit (``rerank.groups``).
            threshold: ``auto``: the collection's own for such queries (none where it is not calibrated, or where
                scores tell answered queries from others no better than a coin); a number: a cosine; None: none. Hits
                are never left out for it: they are marked.
            liked: keys of results marked as right: they refine the query (``mixing.rocchio``).
            disliked: keys marked as wrong; they are not shown again.
            exact: compare with every item.

        Raises:
            ConfigError: a query, option or filter that is wrong.
            UnsupportedError: a text or picture where there is no encoder for it.
            StoreError: a key that is not in the collection.
            BadImageError: a picture that cannot be read.
        """
        how = How(k, where, kind, mmr, group, threshold, exact)
        return self._answered([query], how, tuple(liked), tuple(disliked))[0]

    def search_many(self, queries: Sequence[Asked], how: How = How()) -> list[Results]:
        """``search`` for each of many queries: encoded together, and compared with the collection together."""
        return self._answered(list(queries), how, (), ()) if len(queries) else []

    def texts_of(self, query: Asked) -> list[str]:
        """What of a query is given to the text encoder: for caches and batches that encode ahead."""
        read = Query.parse(query) if isinstance(query, str) else query
        return [*([read.text] if "text" in read.parts and read.text else []), *read.negatives]

    def _answered(
        self, queries: Sequence[Asked | None], how: How, liked: tuple[str, ...], disliked: tuple[str, ...]
    ) -> list[Results]:
        started = time.perf_counter()
        read = [Query.parse(query) if isinstance(query, str) else query for query in queries]
        table = self._encode(read)
        for attempt in range(RETRIES):
            generation = self.collection.generation
            try:
                encoded = [self._encoded(query, table, liked, disliked) for query in read]
                return self._results(encoded, how, generation, started)
            except StoreError:
                # A key that was found may have been deleted since by another thread: then the answer is another now.
                if self.collection.generation == generation or attempt == RETRIES - 1:
                    raise
        raise AssertionError("unreachable")

    # ------------------------------------------------------------ queries to vectors

    def _encode(self, queries: Sequence[Query | None]) -> Mapping[str | int, Floats]:
        """The vector of every text, and of every query's picture by the query's identity."""
        asked = [query for query in queries if query is not None]
        texts = list(dict.fromkeys(text for query in asked for text in self.texts_of(query)))
        table: dict[str | int, Floats] = {}
        if texts:
            encoder = self._encoder("texts", can=self.encoder is not None and self.encoder.can_encode_text)
            table.update(zip(texts, encoder.encode_texts(texts), strict=True))
        images = [query.image for query in asked if "image" in query.parts and query.image is not None]
        if images:
            encoder = self._encoder("images", can=self.encoder is not None and self.encoder.can_encode_images)
            owners = [id(query) for query in asked if "image" in query.parts]
            table.update(zip(owners, encoder.encode_images(images), strict=True))
        return table

    def _encoder(self, what: str, *, can: bool) -> Encoder:
        if self.encoder is None or not can:
            name = "this search has no model" if self.encoder is None else f"{self.encoder.name} encodes no {what}"
            raise UnsupportedError(f"{name}: it cannot search by {what}; give it a model of the index' space that can")
        return self.encoder

    def _encoded(
        self, query: Query | None, table: Mapping[str | int, Floats], liked: tuple[str, ...], disliked: tuple[str, ...]
    ) -> tuple[Encoded, Floats, Floats]:
        """The query, and the vectors [L, D] and [M, D] of what was marked."""
        marked = self.collection.vectors(liked), self.collection.vectors(disliked)
        dim = self.collection.dim
        none = np.zeros((0, dim), dtype=np.float32)
        if query is None:
            if not liked:
                raise ConfigError("search: nothing to look for; give a query, or results that are liked")
            return (Encoded((), none, 0.0, None, frozenset(disliked)), *marked)
        parts = []
        for name in query.parts:
            if name == "text" and query.text is not None:
                vector = table[query.text]
            elif name == "image":
                vector = table[id(query)]
            elif name == "key" and query.key is not None:
                vector = self.collection.vectors([query.key])[0]
            else:
                vector = _own(query.vector, dim)
            parts.append((vector, query.weight(name)))
        negatives = np.stack([table[text] for text in query.negatives]) if query.negatives else none
        asked = None if liked or disliked else self._asked(query)
        skip = frozenset(disliked) | (frozenset([query.key]) if query.key is not None else frozenset())
        return (Encoded(tuple(parts), negatives, query.weight("negative"), asked, skip), *marked)

    def _asked(self, query: Query) -> str | None:
        """Which scale a query's scores are read on: mixtures have none."""
        if query.parts == ("text",) and query.text is not None:
            return length_of(query.text)
        if query.parts == ("image",):
            return "image"
        if query.parts == ("key",) and query.key is not None:
            return "image" if self.collection.rows([query.key])[0].kind == "image" else None
        return None

    # ------------------------------------------------------------ vectors to results

    def _results(
        self, queries: Sequence[tuple[Encoded, Floats, Floats]], how: How, generation: int, started: float
    ) -> list[Results]:
        kinds = [
            kind for kind in KINDS if how.kind in (kind, "any") and (how.kind == kind or self.collection.count(kind))
        ]
        answers: list[list[tuple[Kind, Picked]]] = [[] for _ in queries]
        for kind in kinds:
            # Most searches are of one part and plain: those need nothing but the nearest.
            plain = (
                how.kind != "any" and how.mmr is None and not how.group and all(_is_plain(*each) for each in queries)
            )
            reference = self.nothing if plain else self.reference(kind)
            wanted = [_wanted(*query, reference) for query in queries]
            found = refined(
                self.collection,
                wanted,
                reference,
                k=how.k,
                where=how.where,
                kind=kind,
                mmr=how.mmr,
                group=how.group,
                exact=how.exact,
                standard=how.kind == "any",
            )
            for answer, each in zip(answers, found, strict=True):
                answer += [(kind, item) for item in each]
        return [
            self._explained(encoded, _merged(answer, how), how, kinds, generation, started)
            for (encoded, _, _), answer in zip(queries, answers, strict=True)
        ]

    def _explained(
        self,
        query: Encoded,
        found: Sequence[tuple[Kind, Picked]],
        how: How,
        kinds: Sequence[Kind],
        generation: int,
        started: float,
    ) -> Results:
        calibration = None if query.asked is None else self.calibration
        scales: dict[Kind, Scale | None] = {
            kind: None if calibration is None or query.asked is None else calibration.scale(query.asked, kind)
            for kind in kinds
        }
        reach = {kind: 1.0 if scale is None else scale.reach(query.parts[0][0]) for kind, scale in scales.items()}
        bounds = {kind: self._bound(scale, reach[kind], how.threshold, kind) for kind, scale in scales.items()}
        hits = []
        rows = self.collection.rows([item.key for _, item in found])
        for rank, ((kind, item), row) in enumerate(zip(found, rows, strict=True), 1):
            scale, bound = scales[kind], bounds[kind]
            sure = None
            if scale is not None:
                sure = round(scale.confidence(item.score, reach[kind], items=self.collection.count(kind)), 4)
            fits = None if bound is None else item.score >= bound
            hits.append(
                Hit(rank, row.key, item.score, kind, row.text, row.location, row.meta, item.duplicates, sure, fits)
            )
        known = [scale for scale in scales.values() if scale is not None]
        bounded = [bound for bound in bounds.values() if bound is not None]
        return Results(
            tuple(hits),
            below_threshold=bool(bounded) and not any(hit.fits is not False for hit in hits),
            threshold=bounded[0] if bounded else None,
            calibrated=bool(known),
            false_accept=known[0].alpha if known and bounded and how.threshold == "auto" else None,
            generation=generation,
            took_ms=round((time.perf_counter() - started) * 1000.0, 3),
        )

    def _bound(self, scale: Scale | None, reach: float, threshold: Threshold, kind: Kind) -> float | None:
        if threshold != "auto":
            return None if threshold is None else float(threshold)
        if scale is None or scale.alpha > MOST_ACCEPTED:
            return None
        return scale.threshold(reach, items=self.collection.count(kind))

    # ------------------------------------------------------------ what is known of the collection

    @property
    def nothing(self) -> Reference:
        """A reference that says nothing: mean 0, spread 1."""
        return Reference(np.zeros((0, self.collection.dim), dtype=np.float32))

    def reference(self, kind: Kind) -> Reference:
        """A sample of the items of one kind, drawn again when the collection has changed much."""
        count = self.collection.count(kind)
        with self._lock:
            known = self._references.get(kind)
        if known is not None and abs(known[0] - count) <= DRIFT * known[0]:
            return known[1]
        reference = Reference(self.collection.vectors(self.collection.sample_keys(SAMPLED, kind=kind)))
        with self._lock:
            self._references[kind] = count, reference
        return reference

    @property
    def calibration(self) -> Calibration | None:
        """What the collection knows about this encoder's scores."""
        if self.encoder is None:
            return None
        kept = self.collection.facts.get(FACT)
        known = self._calibration
        if known is None or known[0] is not kept:
            if kept is not None and self._probe is None:
                self._probe = probe_of(self.encoder)
            found = kept_calibrations(self.collection)
            ours = (each for each in found if each.belongs_to(self.encoder.name, self._probe or ()))
            known = kept, next(ours, None)
            self._calibration = known
        return known[1]


def _own(vector: Floats | None, dim: int) -> Floats:
    values = np.asarray(vector, dtype=np.float32)
    if values.shape != (dim,):
        raise ConfigError(f"query: a vector of shape {list(values.shape)}; this index needs [{dim}]")
    return unit(values, "query")


def _is_plain(query: Encoded, liked: Floats, disliked: Floats) -> bool:
    return len(query.parts) == 1 and not (len(liked) or len(disliked) or len(query.negatives))


def _wanted(query: Encoded, liked: Floats, disliked: Floats, reference: Reference) -> Wanted:
    parts = list(query.parts)
    if len(liked) or len(disliked):
        parts = rocchio(parts, liked, disliked, reference)
    return Wanted(mixed(parts, reference), tuple(parts), query.negatives, query.negative_weight, query.skip)


def _merged(answer: Sequence[tuple[Kind, Picked]], how: How) -> list[tuple[Kind, Picked]]:
    """One list of both kinds: by how far each item stands out among its own kind, first among equals by key."""
    if how.kind != "any":
        return list(answer)
    return sorted(answer, key=lambda pair: (-pair[1].standard, pair[1].key))[: how.k]
