"""Tokenizers: strings in, named int64 arrays out, and back again from small asset files without any hub.

Three kinds: open_clip's own (CLIP's byte-pair encoding, or a Hugging Face tokenizer under open_clip's text cleaning),
a Hugging Face tokenizer with its attention mask, and a small vocabulary of words learned from a corpus.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from clipette.errors import ConfigError, ModelError
from clipette.models.token_files import Assets, FolderOf, description_of, own_files, pack, saved_files
from clipette.types import Ints

Padding = Literal["longest", "max_length"]


class SavedTokenizer(Protocol):
    """A ``types.Tokenizer`` that a blueprint can hold: ``build_tokenizer(tokenizer.assets())`` is its equal."""

    @property
    def context_length(self) -> int:
        """The most tokens a text may have."""
        ...

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        """Each array [N, L]."""
        ...

    def assets(self) -> dict[str, bytes]:
        """Its files by name."""
        ...


class OpenClipTokenizer:
    """A tokenizer of open_clip, as ``open_clip.get_tokenizer`` makes it: texts → ``{"input_ids"}`` [N, context_length].

    ``family``: ``clip`` (CLIP's byte-pair encoding with open_clip's bundled vocabulary of 49,408) or ``hf`` (a Hugging
    Face tokenizer under open_clip's cleaning rules). Too long texts are cut; the end-of-text token stays. There is no
    attention mask: open_clip's towers find the end of a text, or their padding, from the ids.
    """

    def __init__(self, inner: Any, *, family: Literal["clip", "hf"], options: Mapping[str, Any], files: Assets) -> None:
        self._inner = inner
        self._family = family
        self._options = dict(options)
        self._files = dict(files)

    @classmethod
    def clip(cls, *, context_length: int = 77, **options: Any) -> OpenClipTokenizer:
        """CLIP's own. ``options``: ``SimpleTokenizer``'s arguments (``clean``, ``additional_special_tokens``).

        Raises ``ConfigError`` for the random ``reduction_mask``: the same text must give the same tokens.
        """
        from open_clip.tokenizer import SimpleTokenizer

        _check_length(context_length)
        if options.pop("reduction_mask", ""):
            raise ConfigError("tokenizer: reduction_mask drops words at random: remove it (long texts are cut instead)")
        inner = SimpleTokenizer(context_length=context_length, **options)
        return cls(inner, family="clip", options={"context_length": context_length, **options}, files={})

    @classmethod
    def from_hf(cls, source: str | Path, *, context_length: int = 77, **options: Any) -> OpenClipTokenizer:
        """A Hugging Face tokenizer (folder or hub id). ``options``: open_clip's ``HFTokenizer`` arguments
        (``clean``, ``strip_sep_token``, ``tokenizer_mode``). Raises ``ModelError`` where it cannot be loaded.
        """
        inner = _open_clip_hf(source, context_length, options)
        return cls(inner, family="hf", options={"context_length": context_length, **options}, files=saved_files(inner))

    @classmethod
    def from_assets(cls, assets: Assets) -> OpenClipTokenizer:
        """The inverse of ``assets``."""
        description = description_of(assets)
        options = dict(description["options"])
        if description["family"] == "clip":
            return cls.clip(**options)
        files = own_files(description, assets)
        with FolderOf(files) as folder:
            inner = _open_clip_hf(folder, int(options["context_length"]), _without_length(options))
        return cls(inner, family="hf", options=options, files=files)

    @property
    def context_length(self) -> int:
        """The width of the arrays."""
        return int(self._options["context_length"])

    @property
    def vocabulary_size(self) -> int:
        """Ids are below this."""
        return int(self._inner.vocab_size if self._family == "clip" else len(self._inner.tokenizer))

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, where there is one."""
        if self._family == "clip":
            return int(self._inner.eot_token_id)
        inner = self._inner.tokenizer
        return _optional_id(inner.eos_token_id if inner.eos_token_id is not None else inner.sep_token_id)

    @property
    def pad_id(self) -> int | None:
        """What fills up short texts: 0 for CLIP (also a word of its vocabulary)."""
        return 0 if self._family == "clip" else _optional_id(self._inner.tokenizer.pad_token_id)

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        """``{"input_ids": [N, context_length]}``."""
        if not texts:
            return {"input_ids": np.zeros((0, self.context_length), dtype=np.int64)}
        ids: Ints = self._inner(list(texts)).numpy().astype(np.int64, copy=False)
        return {"input_ids": ids}

    def assets(self) -> dict[str, bytes]:
        """Its files by name."""
        return pack(self._files, kind="open_clip", family=self._family, options=self._options)


class HFTokenizer:
    """A Hugging Face tokenizer: texts → ``{"input_ids", "attention_mask"}``, each [N, L].

    ``padding``: ``longest`` (L = the longest text of the batch; right for every tower that reads the mask) or
    ``max_length`` (L = ``context_length``; SigLIP was trained so, without a mask: ``mask=False``). ``lower``: to
    lower case first, which SigLIP 2 was trained with although its tokenizer does not do it.
    """

    def __init__(
        self,
        inner: Any,
        *,
        context_length: int,
        padding: Padding = "longest",
        mask: bool = True,
        lower: bool = False,
        files: Assets | None = None,
    ) -> None:
        _check_length(context_length)
        if inner.pad_token_id is None:
            if inner.eos_token_id is None:
                raise ModelError("the tokenizer has neither a padding nor an end token: it cannot batch texts")
            inner.pad_token = inner.eos_token
        self.inner = inner
        self._context_length = context_length
        self._padding: Padding = padding
        self._mask = mask
        self._lower = lower
        self._files = dict(files) if files is not None else saved_files(inner)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        context_length: int | None = None,
        padding: Padding = "longest",
        mask: bool = True,
        lower: bool = False,
        local_files_only: bool = False,
    ) -> HFTokenizer:
        """From a folder or hub id; never runs code that comes with it.

        ``context_length`` defaults to the tokenizer's own, and is never more. Raises ``ModelError``.
        """
        inner = _auto_tokenizer(source, local_files_only)
        own = int(inner.model_max_length)
        if context_length is None and own > 1_000_000:
            raise ModelError(f"tokenizer '{source}' states no length of its own: give a context_length")
        length = own if context_length is None else min(own, context_length)
        return cls(inner, context_length=length, padding=padding, mask=mask, lower=lower)

    @classmethod
    def from_assets(cls, assets: Assets, *, context_length: int | None = None) -> HFTokenizer:
        """The inverse of ``assets``; ``context_length`` overrides the stored one."""
        description = description_of(assets)
        files = own_files(description, assets)
        with FolderOf(files) as folder:
            inner = _auto_tokenizer(folder, True)
        arguments = {name: description[name] for name in ("context_length", "padding", "mask", "lower")}
        if context_length is not None:
            arguments["context_length"] = context_length
        return cls(inner, files=files, **arguments)

    @property
    def context_length(self) -> int:
        """The most tokens a text may have."""
        return self._context_length

    @property
    def vocabulary_size(self) -> int:
        """Ids are below this."""
        return len(self.inner)

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, where there is one."""
        return _optional_id(self.inner.eos_token_id if self.inner.eos_token_id is not None else self.inner.sep_token_id)

    @property
    def pad_id(self) -> int:
        """What fills up short texts."""
        return int(self.inner.pad_token_id)

    def lowered(self) -> HFTokenizer:
        """The same tokenizer behind lower-cased text."""
        settings: dict[str, Any] = {"padding": self._padding, "mask": self._mask, "files": self._files}
        return HFTokenizer(self.inner, context_length=self._context_length, lower=True, **settings)

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        """``{"input_ids": [N, L]}`` and, unless the tower takes none, ``"attention_mask"``."""
        names = ("input_ids", "attention_mask") if self._mask else ("input_ids",)
        if not texts:
            width = self._context_length if self._padding == "max_length" else 1
            return {name: np.zeros((0, width), dtype=np.int64) for name in names}
        rows = [text.lower() for text in texts] if self._lower else list(texts)
        out = self.inner(
            rows, max_length=self._context_length, padding=self._padding, truncation=True, return_attention_mask=True
        )
        return {name: np.asarray(out[name], dtype=np.int64) for name in names}

    def assets(self) -> dict[str, bytes]:
        """Its files by name, as ``save_pretrained`` writes them, and its settings."""
        return pack(
            self._files,
            kind="hf",
            context_length=self._context_length,
            padding=self._padding,
            mask=self._mask,
            lower=self._lower,
        )


_WORD = re.compile(r"\w+|[^\w\s]")
_PAD, _START, _END, _FIRST_BYTE, _FIRST_WORD = 0, 1, 2, 3, 259


class WordTokenizer:
    """The words of a corpus, each one token; any other word is spelled in UTF-8 bytes and a closing space.

    Ids: 0 padding, 1 start, 2 end, 3-258 the bytes, from 259 the words by falling frequency. Text is NFKC-normalised
    and lower-cased; punctuation marks are words. Texts → ``{"input_ids", "attention_mask"}``, each [N, context_length].
    For small closed worlds: tiny embedding tables, short sequences, no unknown token.
    """

    def __init__(self, words: Sequence[str], *, context_length: int = 32) -> None:
        _check_length(context_length)
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
            return cls(list(values["words"]), context_length=int(values["context_length"]))
        except (ValueError, KeyError, TypeError) as error:
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


TOKENIZERS: dict[str, Callable[[Assets], SavedTokenizer]] = {
    "open_clip": OpenClipTokenizer.from_assets,
    "hf": HFTokenizer.from_assets,
    "words": WordTokenizer.from_assets,
}


def build_tokenizer(assets: Assets) -> SavedTokenizer:
    """A tokenizer from its ``assets()``, among which other files may lie. Raises ``ModelError``."""
    kind = description_of(assets).get("kind")
    if kind not in TOKENIZERS:
        raise ModelError(f"this version of Clipette has no tokenizer '{kind}': was the model saved by a newer one?")
    return TOKENIZERS[kind](assets)


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _check_length(context_length: int) -> None:
    if context_length < 3:
        raise ConfigError(f"tokenizer: context_length {context_length} leaves no room between start and end: use >= 3")


def _optional_id(value: int | None) -> int | None:
    return None if value is None else int(value)


def _without_length(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "context_length"}


def _auto_tokenizer(source: str | Path, local_files_only: bool) -> Any:
    from transformers import AutoTokenizer

    local = local_files_only or Path(source).is_dir()
    try:
        return AutoTokenizer.from_pretrained(str(source), local_files_only=local, trust_remote_code=False)
    except Exception as error:  # the loaders raise whatever their parsers raise
        raise ModelError(_no_tokenizer(source, error)) from error


def _open_clip_hf(source: str | Path, context_length: int, options: Mapping[str, Any]) -> Any:
    from open_clip.tokenizer import HFTokenizer as OpenClipHFTokenizer

    _check_length(context_length)
    try:
        return OpenClipHFTokenizer(str(source), context_length=context_length, trust_remote_code=False, **options)
    except Exception as error:  # the loaders raise whatever their parsers raise
        raise ModelError(_no_tokenizer(source, error)) from error


def _no_tokenizer(source: str | Path, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return (
        f"tokenizer '{source}' cannot be loaded ({type(error).__name__}: {first}): give a folder with its "
        "tokenizer.json, or a hub id that this machine can reach or has in its cache"
    )
