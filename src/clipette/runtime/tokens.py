"""Tokenizers of a bundle: the library ``tokenizers``, a list of words, or stored texts; equal to training's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clipette.errors import ConfigError, ModelError, UnsupportedError, UserError
from clipette.runtime.cleaning import find_cleaning
from clipette.runtime.sentence_pieces import Normalizer
from clipette.runtime.words import WordTokenizer, check_length
from clipette.types import Ints, Tokenizer

Files = Mapping[str, bytes]
TOKENIZER_FILE = "tokenizer/tokenizer.json"
WORDS_FILE = "tokenizer/words.json"
CHARSMAP_FILE = "tokenizer/charsmap.bin"


class ClipTokens:
    """CLIP's byte-pair encoding behind open_clip's cleaning: ``{"input_ids": [N, context_length]}``.

    Start, pieces, end, then zeros; a text that is too long is cut and its last id is the end. A special token written
    out in a text ("<end_of_text>") is that token only where open_clip's pattern begins to match there.
    """

    def __init__(
        self, inner: Any, *, cleaning: str, context_length: int, specials: Mapping[str, int], start: int, end: int
    ) -> None:
        self._inner = inner
        self._clean = find_cleaning(cleaning)
        self._context_length = context_length
        self._specials = dict(specials)
        self._start, self._end = start, end

    @property
    def context_length(self) -> int:
        return self._context_length

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        ids = np.zeros((len(texts), self._context_length), dtype=np.int64)
        cleaned = [self._clean(text) for text in texts]
        for row, (text, encoded) in enumerate(zip(cleaned, self._inner.encode_batch(cleaned), strict=True)):
            pieces = encoded.ids if not any(name in text for name in self._specials) else self._spelled(text)
            row_ids = [self._start, *pieces, self._end][: self._context_length]
            if len(pieces) + 2 > self._context_length:
                row_ids[-1] = self._end
            ids[row, : len(row_ids)] = row_ids
        return {"input_ids": ids}

    def _spelled(self, text: str) -> list[int]:
        """Piece by piece, for the rare text that spells a special token."""
        out: list[int] = []
        for piece, (start, end) in self._inner.pre_tokenizer.pre_tokenize_str(text):
            special = self._specials.get(text[start:end])
            out += [special] if special is not None else [token.id for token in self._inner.model.tokenize(piece)]
        return out


class LibraryTokens:
    """A tokenizer of the library ``tokenizers``: ``{"input_ids", "attention_mask"}``, each [N, L].

    ``padding``: ``longest`` of the batch or ``max_length``. ``zero``: this id becomes 0 (open_clip's
    ``strip_sep_token``). ``charsmap``: SentencePiece's table of characters, where the library lacks its rules.
    """

    def __init__(
        self,
        inner: Any,
        *,
        cleaning: str,
        context_length: int,
        padding: str,
        pad_id: int,
        pad_token: str,
        mask: bool,
        zero: int | None = None,
        charsmap: bytes | None = None,
    ) -> None:
        self._inner = inner
        self._clean = find_cleaning(cleaning)
        self._normalize = str if charsmap is None else Normalizer(charsmap)
        self._context_length = context_length
        self._mask = mask
        self._zero = zero
        self._empty = context_length if padding == "max_length" else 1
        length = context_length if padding == "max_length" else None
        inner.enable_truncation(max_length=context_length)
        inner.enable_padding(pad_id=pad_id, pad_token=pad_token, length=length)

    @property
    def context_length(self) -> int:
        return self._context_length

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        encoded = self._inner.encode_batch([self._normalize(self._clean(text)) for text in texts])
        ids = np.array([each.ids for each in encoded], dtype=np.int64).reshape(len(texts), -1 if texts else self._empty)
        if self._zero is not None:
            ids[ids == self._zero] = 0
        if not self._mask:
            return {"input_ids": ids}
        mask = np.array([each.attention_mask for each in encoded], dtype=np.int64).reshape(ids.shape)
        return {"input_ids": ids, "attention_mask": mask}


def until_end(tokens: Mapping[str, Ints]) -> dict[str, Ints]:
    """Tokens [N, L] without the columns that pad (id 0) every row: [N, longest].

    A causal tower's vectors do not depend on them, and captions of ten words in a context of 77 are mostly padding.
    """
    width = 1 + int(np.flatnonzero(np.any(tokens["input_ids"], axis=0)).max(initial=0))
    return {name: array[:, :width] for name, array in tokens.items()}


class TableTokenizer:
    """Looks strings up in a fixed list: the text side of a model that has stored class texts only."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        self._row = {text: i for i, text in enumerate(self.texts)}
        if len(self._row) != len(self.texts):
            raise ModelError("a table of texts names one string twice")

    @property
    def context_length(self) -> int:
        return 1

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        missing = [text for text in texts if text not in self._row]
        if missing:
            raise UnsupportedError(
                f"this model has no text tower, only {len(self.texts)} stored texts; '{missing[0]}' is not among them "
                f"(the first is '{self.texts[0] if self.texts else ''}'): pour it with the teacher, or use its wording"
            )
        return {"row": np.array([[self._row[text]] for text in texts], dtype=np.int64).reshape(-1, 1)}

    def assets(self) -> dict[str, bytes]:
        return {"texts.json": json.dumps(list(self.texts), ensure_ascii=False).encode()}


def _length(settings: Mapping[str, Any]) -> int:
    length = int(settings["context_length"])
    check_length(length)
    return length


def _clip(settings: Mapping[str, Any], files: Files) -> Tokenizer:
    return ClipTokens(
        _library(files),
        cleaning=settings["cleaning"],
        context_length=_length(settings),
        specials=settings["specials"],
        start=int(settings["start"]),
        end=int(settings["end"]),
    )


def _hf(settings: Mapping[str, Any], files: Files) -> Tokenizer:
    return LibraryTokens(
        _library(files),
        cleaning=settings["cleaning"],
        context_length=_length(settings),
        padding=settings["padding"],
        pad_id=int(settings["pad_id"]),
        pad_token=settings["pad_token"],
        mask=bool(settings["mask"]),
        zero=settings.get("zero"),
        charsmap=files[CHARSMAP_FILE] if settings.get("charsmap") else None,
    )


def _words(settings: Mapping[str, Any], files: Files) -> Tokenizer:
    return WordTokenizer.from_json(files[WORDS_FILE])


def _stored(settings: Mapping[str, Any], files: Files) -> Tokenizer:
    names = json.loads(files["classes.json"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError("the bundle's classes.json is no list of names; export the model again")
    return TableTokenizer(names)


def _library(files: Files) -> Any:
    from tokenizers import Tokenizer as Library

    return Library.from_buffer(files[TOKENIZER_FILE])


KINDS: dict[str, Callable[[Mapping[str, Any], Files], Tokenizer]] = {
    "clip": _clip,
    "hf": _hf,
    "words": _words,
    "stored": _stored,
}


def build_tokenizer(settings: Mapping[str, Any], files: Files) -> Tokenizer:
    """The tokenizer that ``settings`` (of the manifest) describe. Raises ``ModelError``."""
    kind = str(settings.get("kind"))
    if kind not in KINDS:
        raise ModelError(f"the bundle's tokenizer is a '{kind}', which this Clipette does not know: upgrade it")
    try:
        return KINDS[kind](settings, files)
    except ConfigError as error:
        raise ModelError(f"the bundle's tokenizer is not whole: {error}; export the model again") from error
    except UserError:
        raise
    except KeyError as error:
        raise ModelError(f"the bundle's tokenizer is not whole: {error} is missing; export the model again") from error
    except Exception as error:  # the library tokenizers raises plain ones
        raise ModelError(f"the bundle's tokenizer cannot be read ({error}); export the model again") from error
