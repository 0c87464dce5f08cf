"""Strings nobody would choose, and which of them two tokenizers read differently."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from clipette.types import Tokenizer

PIECES = [
    *"abcXYZ 019 .,!?'\"-_()<>&;/\\\t\n",
    "dog",
    "photo",
    "it's",
    "I'LL",
    "'Re",
    "&amp;",
    "&amp;amp;lt;",
    "<end_of_text>",
    "<start_of_text>",
    "!<end_of_text>",
    "<End_Of_Text>",
    "é",
    "ﬁ",
    "ſ",
    "'ſ",
    "ß",
    "İ",
    "日本",
    "дом",
    "كلب",
    "🐕‍🦺",
    "👩🏽‍🚀",
    "\u200b",
    "\u00a0",
    "\u0301",
    "Ã©",
    "½",
    "²",
    "Ⅷ",
    "①",
    "\ufeff",
    "\x00",
    "\x85",
    "\u2028",
    "a" * 40,
]
PLANES = (
    (0x20, 0x7F),
    (0xA0, 0x24F),
    (0x370, 0x52F),
    (0x590, 0x6FF),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FA5),
    (0x1F300, 0x1F5FF),
)


def fuzzed(count: int, seed: int = 0) -> list[str]:
    """Strings of awkward pieces, and of code points drawn from everywhere that Unicode 12 had assigned."""
    drawn = random.Random(seed)

    def piece() -> str:
        return drawn.choice(PIECES) if drawn.random() < 0.7 else chr(drawn.randint(*drawn.choice(PLANES)))

    return ["".join(piece() for _ in range(drawn.randint(0, 30))) for _ in range(count)]


def differing(one: Tokenizer, other: Tokenizer, texts: Sequence[str], *, batch_size: int = 100) -> list[str]:
    """The texts that get other tokens; all of a batch where the arrays differ in name or shape."""
    found: list[str] = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        left, right = one(batch), other(batch)
        if {name: array.shape for name, array in left.items()} != {name: a.shape for name, a in right.items()}:
            found += batch
            continue
        rows = np.any([(left[name] != right[name]).any(axis=1) for name in left], axis=0)
        found += [text for text, differs in zip(batch, rows, strict=True) if differs]
    return found
