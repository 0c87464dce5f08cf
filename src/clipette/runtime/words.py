"""The tokenizer of small closed worlds: the words of a corpus, and bytes for all others."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from clipette.errors import ConfigError, ModelError
from clipette.runtime.token_files import Assets, description_of, own_files, pack
from clipette.types import Ints

_WORD = re.compile(r"\w+|[^\w\s]")
# Of the models that we know the longest reads 8,192 tokens.
LONGEST = 1 << 17
_PAD, _START, _END, _FIRST_BYTE, _FIRST_WORD = 0, 1, 2, 3, 259


class WordTokenizer:
    """The words of a corpus, each one token; any other word is spelled in UTF-8 bytes and a closing space.

    Ids: 0 padding, 1 start, 2 end, 3-258 the bytes, from 259 the words by falling frequency. Text is NFKC-normalised
    and lower-cased; punctuation marks are words. Texts → ``{"input_ids", "attention_mask"}``, each [N, context_length].
    For small closed worlds: tiny embedding tables, short sequences, no unknown token.
    """

    def __init__(self, words: Sequence[str], *, context_length: int = 32) -> None:
        check_length(context_length)
        self._words = tuple(words)
        self._context_length = context_length
        self._ids: dict[str, list[int]] = {word: [_FIRST_WORD + i] for i, word in enumerate(self._words)}
        if len(self._ids) != len(self._words):
            raise ConfigError("word tokenizer: one word is listed twice")

    @classmethod
    def train(cls, texts: Iterable[str], *, size: int = 8192, context_length: int = 32) -> WordTokenizer:
        """Learn the most frequent words; ``size`` counts every id (at least 259). Equal counts go by alphabet."""
        if size < _FIRST_WORD:
            raise ConfigError(
                f"word tokenizer: a vocabulary of {size} is too small, the bytes alone take {_FIRST_WORD}"
            )
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_words(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ranked[: size - _FIRST_WORD], context_length=context_length)

    @classmethod
    def from_json(cls, text: str | bytes) -> WordTokenizer:
        """The inverse of ``to_json``. Raises ``ModelError`` for anything else."""
        try:
            values = json.loads(text)
            if not isinstance(values["words"], list) or not all(isinstance(word, str) for word in values["words"]):
                raise TypeError("its words are no list of texts")
            return cls(values["words"], context_length=int(values["context_length"]))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ModelError(f"this is no saved word tokenizer: {type(error).__name__}: {error}") from error

    def to_json(self) -> str:
        """Words and context length."""
        return json.dumps({"context_length": self._context_length, "words": self._words}, ensure_ascii=False)

    @classmethod
    def from_assets(cls, assets: Assets) -> WordTokenizer:
        """The inverse of ``assets``."""
        return cls.from_json(own_files(description_of(assets), assets)["words.json"])

    @property
    def context_length(self) -> int:
        """The width of the arrays."""
        return self._context_length

    @property
    def words(self) -> tuple[str, ...]:
        """The learned words by falling frequency."""
        return self._words

    @property
    def vocabulary_size(self) -> int:
        """Ids are below this."""
        return _FIRST_WORD + len(self._words)

    @property
    def eos_id(self) -> int:
        """The token that ends every text, cut ones too."""
        return _END

    @property
    def pad_id(self) -> int:
        """What fills up short texts: no text contains it."""
        return _PAD

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        """``{"input_ids": [N, context_length], "attention_mask": [N, context_length]}``."""
        ids = np.full((len(texts), self._context_length), _PAD, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            tokens = [_START, *self._encode(text)[: self._context_length - 2], _END]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def decode(self, ids: Sequence[int]) -> str:
        """The normalised text of one row, words apart by single spaces."""
        out = bytearray()
        for token in ids:
            if _FIRST_BYTE <= token < _FIRST_WORD:
                out.append(int(token) - _FIRST_BYTE)
            elif token >= _FIRST_WORD:
                out += self._words[int(token) - _FIRST_WORD].encode() + b" "
        return out.decode(errors="replace").strip()

    def assets(self) -> dict[str, bytes]:
        """Its files by name."""
        return pack({"words.json": self.to_json().encode()}, kind="words")

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = []
        for word in _words(text):
            known = self._ids.get(word)
            # The closing space keeps "ab" + "c" apart from "a" + "bc".
            tokens += known if known is not None else [_FIRST_BYTE + byte for byte in f"{word} ".encode()]
        return tokens


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def check_length(context_length: int) -> None:
    """Raises ``ConfigError`` where start and end would leave no room for a word, or a batch would fill the memory."""
    if context_length < 3:
        raise ConfigError(f"tokenizer: context_length {context_length} leaves no room between start and end: use >= 3")
    if context_length > LONGEST:
        raise ConfigError(f"tokenizer: context_length {context_length} is more than {LONGEST} tokens")
