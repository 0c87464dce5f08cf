"""A collection's calibration: a scale for each kind of query (`scales.py` says what it means), kept in its manifest.

Kinds of query: texts of one or two words, of three to five, and longer ones (``background.LENGTHS``); and pictures.
Each is asked for images and for texts. Texts are asked by one encoder, and another one's scores are others: a student's
queries on its teacher's index need a calibration of their own, and several can be kept beside each other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipette.errors import ConfigError, UserError
from clipette.index.background import article, background_texts, length_of, words_said
from clipette.index.collection import Collection
from clipette.index.scales import Method, Scale, needed, pack, reaches, scale_of, unpack
from clipette.index.store import KINDS, Kind, Row
from clipette.metrics.similarity import Doubles
from clipette.types import Encoder, Floats

log = logging.getLogger(__name__)

FACT, VERSION = "calibration", 1
FALSE_ACCEPT = 0.1
# Of rows: those that captions are read of, that ask as queries, whose mean score is taken; of captions: those asked.
READ, ASKED, ANSWERED, SAMPLED = 20_000, 1000, 300, 2000
# Background texts of a length: a model that takes 10 ms a text is done with all in 10 seconds.
TEXTS = 300
# Captions vouch for what is not in a collection only where most images have one.
CAPTIONED = 0.5
# Fewer queries of a kind than this say little about a rate.
FEWEST = 50
FEWEST_ANSWERED = 20
# A text that is encoded to recognise an encoder by, and how alike the vectors must be (8 bits change them a little).
PROBE_TEXT, SAME_ENCODER = "a photo", 0.98
CAPTION_PLACES = 12  # an image's own captions, and one more


@dataclass(frozen=True, slots=True)
class Calibration:
    """Scales by what asks and what is asked for (``word->image``, ``image->text``), for one encoder's queries.

    ``probe``: [D] its vector of a fixed text (empty: it encodes no such text). ``alpha``: the rate asked for.
    """

    encoder: str
    probe: tuple[float, ...]
    alpha: float
    generation: int
    scales: Mapping[str, Scale]

    def scale(self, asked: str, kind: Kind) -> Scale | None:
        """The scale of queries of a length (``word``, ``phrase``, ``sentence``) or ``image`` for items of a kind."""
        return self.scales.get(f"{asked}->{kind}")

    def belongs_to(self, name: str, probe: tuple[float, ...]) -> bool:
        """Whether an encoder of this name and probe is the one that was calibrated."""
        if len(probe) != len(self.probe) or not probe:
            return not probe and not self.probe and name == self.encoder
        return float(np.dot(np.asarray(probe), np.asarray(self.probe))) >= SAME_ENCODER

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {
            "encoder": self.encoder,
            "probe": pack(self.probe),
            "alpha": self.alpha,
            "generation": self.generation,
            "scales": {name: scale.to_json() for name, scale in self.scales.items()},
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Calibration:
        """The inverse of ``to_json``."""
        return Calibration(
            encoder=str(value["encoder"]),
            probe=unpack(value["probe"]),
            alpha=float(value["alpha"]),
            generation=int(value["generation"]),
            scales={str(name): Scale.from_json(scale) for name, scale in value["scales"].items()},
        )


def calibrate(
    collection: Collection,
    encoder: Encoder,
    *,
    false_accept: float = FALSE_ACCEPT,
    background: Sequence[str] = (),
    seed: int = 0,
) -> Calibration:
    """Measure what scores queries without an answer reach in this collection.

    ``background``: texts that are known to have no answer in it, at least ``ceil(1 / false_accept) - 1`` of a length
    for a scale of that length; without them texts about anything, less what the captions name (``background.TOPICS``).
    Then the method is ``mismatched`` where most images have captions, else ``robust``. ``false_accept``: the α of
    ``scales``. What is found is returned, not kept: see ``keep_calibration``.

    Raises ``ConfigError`` for a rate that is none or too few background texts, ``StoreError`` for another space.
    """
    collection.check_space(encoder)
    if not 0.0 < false_accept < 1.0:
        raise ConfigError(f"calibration: a false-accept rate of {false_accept}; give a share above 0 and below 1")
    work = _Work(collection, encoder, false_accept, seed)
    scales: dict[str, Scale] = {}
    probe = probe_of(encoder)
    for kind in KINDS:
        if collection.count(kind):
            if probe:
                scales |= work.texts(kind, background)
            scales |= work.images(kind)
    return Calibration(encoder.name, probe, false_accept, collection.generation, scales)


def probe_of(encoder: Encoder) -> tuple[float, ...]:
    """[D] what an encoder is recognised by: its vector of a fixed text; empty where it encodes no such text."""
    if not encoder.can_encode_text:
        return ()
    try:
        vector = encoder.encode_texts([PROBE_TEXT])[0]
    except UserError:  # a table of stored texts knows only its own
        return ()
    return tuple(vector.astype(np.float64).tolist())


def kept_calibrations(collection: Collection) -> list[Calibration]:
    """All that are kept with a collection. One that this Clipette cannot read is left out, with a warning."""
    kept = collection.facts.get(FACT)
    if kept is None:
        return []
    try:
        if kept["version"] != VERSION:
            raise ValueError(f"version {kept['version']}")
        return [Calibration.from_json(each) for each in kept["encoders"]]
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        log.warning("%s: its calibration cannot be read (%s): scores have no threshold", collection.path, error)
        return []


def keep_calibration(collection: Collection, calibration: Calibration) -> None:
    """Keep a calibration in the collection's manifest, in place of an earlier one of the same encoder."""
    others = [
        each for each in kept_calibrations(collection) if not each.belongs_to(calibration.encoder, calibration.probe)
    ]
    kept = [each.to_json() for each in (*others, calibration)]
    collection.set_fact(FACT, {"version": VERSION, "encoders": kept})


def calibration_for(collection: Collection, encoder: Encoder) -> Calibration | None:
    """The one that is kept for this encoder."""
    kept = kept_calibrations(collection)
    if not kept:
        return None
    probe = probe_of(encoder)
    return next((each for each in kept if each.belongs_to(encoder.name, probe)), None)


class _Work:
    """What the scales of one calibration share."""

    def __init__(self, collection: Collection, encoder: Encoder, alpha: float, seed: int) -> None:
        self.collection = collection
        self.encoder = encoder
        self.alpha = alpha
        self.seed = seed
        self._known: dict[str, Floats] = {}

    def texts(self, kind: Kind, background: Sequence[str]) -> dict[str, Scale]:
        """Scales of texts that ask for items of ``kind``."""
        rows = self.collection.rows(self.collection.sample_keys(READ, kind=kind, seed=self.seed))
        said = [row.text for row in rows if row.text]
        classes = _classes(rows)
        described = len(said) >= CAPTIONED * len(rows)
        usual: Method = "mismatched" if described else "robust"
        named = background_texts([*said, *classes])
        everything = background_texts()
        own = _by_length(background)
        self._check(own)
        answered = self._answered(kind, said, classes)
        sample = self.collection.vectors(self.collection.sample_keys(SAMPLED, kind=kind, seed=self.seed))
        scales = {}
        count = max(TEXTS, 2 * needed(self.alpha))
        for name, all_texts in everything.items():
            if name in own:
                method: Method = "mismatched"
                centring, asking = self._encode(_spaced(all_texts, count)), self._encode(own[name])
            else:
                # Where captions name nearly every topic, what is left over says little.
                few = len(named[name]) < 2 * max(needed(self.alpha), FEWEST)
                method = "robust" if few else usual
                both = self._encode(_spaced(all_texts if few else named[name], count))
                # The centre comes from texts that are not asked: those asked are to it what any new query is.
                centring, asking = both[::2], both[1::2]
            centre = centring.mean(axis=0, dtype=np.float64).astype(np.float32)
            offset = float((sample @ centre).mean(dtype=np.float64))
            queries = [asking, answered[name]] if name in answered else [asking, asking[:0]]
            best, known = (self._best(each, kind) for each in queries)
            items = self.collection.count(kind)
            bare = scale_of(method, best, self.alpha, items, answered=known)
            best, known = (
                (scores - offset) / reaches(each, centre) for scores, each in zip((best, known), queries, strict=True)
            )
            own_part = scale_of(method, best, self.alpha, items, centre=centre, offset=offset, answered=known)
            scales[f"{name}->{kind}"] = kinder(bare, own_part)
        return scales

    def _check(self, own: Mapping[str, Sequence[str]]) -> None:
        for name, texts in own.items():
            if len(texts) < needed(self.alpha):
                raise ConfigError(
                    f"calibration: {len(texts)} background texts of the length '{name}'; a rate of "
                    f"{self.alpha:g} takes {needed(self.alpha)} or more, or none of that length"
                )

    def _encode(self, texts: Sequence[str]) -> Floats:
        """Vectors of texts, each encoded once a calibration."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            self._known.update(zip(fresh, self.encoder.encode_texts(fresh), strict=True))
        return np.stack([self._known[text] for text in texts])

    def _answered(self, kind: Kind, said: Sequence[str], classes: Sequence[str]) -> dict[str, Floats]:
        """By length: vectors of texts that have an answer: captions and classes of images, words that captions say."""
        if kind == "text":
            return {}  # a text finds itself: that says nothing about other queries
        captions, words = (_drawn(texts, self.seed) for texts in (said, words_said(said)))
        groups = _by_length([*captions, *classes, *words, *(f"a photo of {article(word)} {word}" for word in words)])
        return {name: self._encode(texts) for name, texts in groups.items()}

    def _best(self, queries: Floats, kind: Kind) -> Doubles:
        """[Q] the best cosine of each query."""
        if not len(queries):
            return np.zeros(0, dtype=np.float64)
        found = self.collection.search_vectors(queries, 1, kind=kind)
        return np.array([scores[0] for scores in found.scores], dtype=np.float64)

    def images(self, kind: Kind) -> dict[str, Scale]:
        """The scale of pictures that ask for items of ``kind``: the collection's own images ask, without themselves."""
        keys = self.collection.sample_keys(ASKED, kind="image", seed=self.seed)
        if not keys:
            return {}
        k = 2 if kind == "image" else CAPTION_PLACES
        found = self.collection.search_vectors(self.collection.vectors(keys), k, kind=kind)
        rows = [self.collection.rows(names) for names in found.keys]
        best = []
        for key, others, scores in zip(keys, rows, found.scores, strict=True):
            own = [score for row, score in zip(others, scores.tolist(), strict=True) if key not in (row.key, row.of)]
            best += own[:1]
        if len(best) < max(FEWEST, needed(self.alpha)):
            return {}
        scale = scale_of("typical", np.asarray(best), self.alpha, self.collection.count(kind))
        return {f"image->{kind}": scale}


def _classes(rows: Iterable[Row]) -> list[str]:
    """The distinct class names of rows, as words."""
    names = dict.fromkeys(str(row.meta["class"]) for row in rows if row.meta.get("class"))
    return [name.replace("_", " ") for name in names]


def kinder(bare: Scale, own_part: Scale) -> Scale:
    """Of two ways of reading scores the one of the lower rate, then the one that refuses fewer answered queries.

    The bare cosine, where too few are known to have an answer. The choice sees no unanswered query, so that the rate
    of either stays what it is.
    """
    if bare.answered < FEWEST_ANSWERED or bare.false_reject is None or own_part.false_reject is None:
        return bare
    better = (own_part.alpha, own_part.false_reject) < (bare.alpha, bare.false_reject)
    return own_part if better else bare


def _drawn(texts: Sequence[str], seed: int) -> list[str]:
    chosen = np.random.default_rng(seed).permutation(len(texts))[:ANSWERED]
    return [texts[place] for place in sorted(chosen.tolist())]


def _spaced(texts: Sequence[str], count: int) -> list[str]:
    """At most ``count`` of the texts, evenly spaced."""
    places = np.round(np.linspace(0, len(texts) - 1, min(count, len(texts)))).astype(np.int64)
    return [texts[place] for place in places.tolist()]


def _by_length(texts: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        groups.setdefault(length_of(text), []).append(text)
    return groups
