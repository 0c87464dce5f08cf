"""What is asked: a text, a picture, an item of the collection, or several with weights; and what is unwanted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from clipette.errors import ConfigError
from clipette.types import Floats, ImageInput

# A weight of the terms: 1 counts as much as any other part. A negative term is a penalty: see `mixing.penalties`.
DEFAULT_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"text": 1.0, "image": 1.0, "key": 1.0, "vector": 1.0, "negative": 1.0}
)
_NO_WEIGHTS: Mapping[str, float] = MappingProxyType({})

# A negative starts a word: a space or nothing before the hyphen, a letter or a quote after it. So "t-shirt", "a - b",
# "--" and "-5 degrees" stay what they are.
_MINUS = "[-\u2212]"
_TERM = re.compile(
    rf'(?<!\S)(?P<minus>{_MINUS})?"(?P<phrase>[^"]+)"|(?<!\S){_MINUS}(?P<word>[^\W\d_][^\s"]*)', re.UNICODE
)
_TRAILING = ".,;:!?-"


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """One query: every part given counts, by its weight.

    ``text``: as it is given to the encoder. ``image``: a picture (path, bytes or Pillow image). ``key``: an item of the
    collection ("more like this"). ``vector``: [D] of the collection's space. ``negatives``: texts that hits shall not
    show. ``weights``: of ``text``, ``image``, ``key``, ``vector`` (in units of each part's spread of scores, so that 1
    and 1 are heard alike) and ``negative``; what is not named weighs 1.

    Raises ``ConfigError`` for a query without anything to look for, and for weights that are no weights.
    """

    text: str | None = None
    image: ImageInput | None = None
    key: str | None = None
    vector: Floats | None = None
    negatives: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=lambda: _NO_WEIGHTS)

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name not in DEFAULT_WEIGHTS:
                raise ConfigError(f"query: no weight {name!r}; there are {', '.join(DEFAULT_WEIGHTS)}")
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"query: the weight of {name!r} is {weight}; give a number from 0 up")
        if self.text is not None and not self.text.strip():
            raise ConfigError("query: the text is empty; write what to look for")
        if any(not text.strip() for text in self.negatives):
            raise ConfigError("query: an empty negative term; write what the results shall not show, or leave it out")
        if not self.parts:
            raise ConfigError(
                "query: nothing to look for; give a text, an image, a key or a vector with a weight above 0"
                + (" (what is unwanted alone says nothing about what is wanted)" if self.negatives else "")
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts that are given and weigh something."""
        given = {"text": self.text, "image": self.image, "key": self.key, "vector": self.vector}
        return tuple(name for name, value in given.items() if value is not None and self.weight(name) > 0)

    def weight(self, name: str) -> float:
        """The weight of a part, or of the negative terms."""
        return float(self.weights.get(name, DEFAULT_WEIGHTS[name]))

    @staticmethod
    def parse(
        text: str | None = None,
        *,
        image: ImageInput | None = None,
        key: str | None = None,
        vector: Floats | None = None,
        negatives: tuple[str, ...] = (),
        weights: Mapping[str, float] = _NO_WEIGHTS,
    ) -> Query:
        """A query as people type it: ``beach -people -"red car"``; see ``parse_text``."""
        wanted, unwanted = parse_text(text or "")
        both = tuple(dict.fromkeys((*unwanted, *(each for each in negatives if each.strip()))))
        return Query(wanted if wanted.strip() else None, image, key, vector, both, weights)

    def describe(self) -> dict[str, object]:
        """The query as JSON for logs: a picture as nothing but the fact that there was one."""
        told: dict[str, object] = {"text": self.text, "key": self.key, "negatives": list(self.negatives)}
        told["weights"] = {name: float(weight) for name, weight in self.weights.items()}
        told |= {name: True for name in ("image", "vector") if getattr(self, name) is not None}
        return {name: value for name, value in told.items() if value not in (None, [], {})}


def parse_text(text: str) -> tuple[str, tuple[str, ...]]:
    """What is wanted and what is not: ``beach -people`` is ``("beach", ("people",))``.

    ``-word`` and ``-"several words"`` are negatives. Within quotation marks nothing is (``"spider -man"``). A hyphen
    within a word, before a number or alone is no negative. A text without such terms comes back unchanged.
    """
    negatives: dict[str, None] = {}

    def taken(match: re.Match[str]) -> str:
        phrase = match["phrase"] if match["phrase"] is not None else match["word"].rstrip(_TRAILING)
        if match["word"] is None and match["minus"] is None:
            return phrase if _TERM.search(phrase) else match[0]
        negatives[" ".join(phrase.split())] = None
        return " "

    wanted = _TERM.sub(taken, text)
    negatives.pop("", None)
    # A text without such terms goes to the encoder as it is, to the last quotation mark.
    return text if wanted == text else " ".join(wanted.split()), tuple(negatives)


def unit(vector: Floats, what: str) -> Floats:
    """``vector`` [D] at length 1. Raises ``ConfigError`` where it has no direction."""
    values = np.asarray(vector, dtype=np.float32)
    length = float(np.linalg.norm(values.astype(np.float64)))
    if not (math.isfinite(length) and length > 1e-12):
        raise ConfigError(f"{what}: a vector of length {length:g} points nowhere; change the weights or the query")
    return np.asarray(values / np.float32(length), dtype=np.float32)
