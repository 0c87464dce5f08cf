"""Tokenizers: strings in, named int64 arrays out, and back again from small asset files without any hub.

Three kinds: open_clip's own (CLIP's byte-pair encoding, or a Hugging Face tokenizer under open_clip's text cleaning),
a Hugging Face tokenizer with its attention mask, and a small vocabulary of words learned from a corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from clipette.errors import ConfigError, ModelError
from clipette.runtime.token_files import Assets, FolderOf, description_of, own_files, pack, saved_files
from clipette.runtime.words import WordTokenizer, check_length
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
        self.inner = inner
        self.family = family
        self.options = dict(options)
        self._files = dict(files)

    @classmethod
    def clip(cls, *, context_length: int = 77, **options: Any) -> OpenClipTokenizer:
        """CLIP's own. ``options``: ``SimpleTokenizer``'s arguments (``clean``, ``additional_special_tokens``).

        Raises ``ConfigError`` for the random ``reduction_mask``: the same text must give the same tokens.
        """
        from open_clip.tokenizer import SimpleTokenizer

        check_length(context_length)
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
        return int(self.options["context_length"])

    @property
    def vocabulary_size(self) -> int:
        """Ids are below this."""
        return int(self.inner.vocab_size if self.family == "clip" else len(self.inner.tokenizer))

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, where there is one."""
        if self.family == "clip":
            return int(self.inner.eot_token_id)
        inner = self.inner.tokenizer
        return _optional_id(inner.eos_token_id if inner.eos_token_id is not None else inner.sep_token_id)

    @property
    def pad_id(self) -> int | None:
        """What fills up short texts: 0 for CLIP (also a word of its vocabulary)."""
        return 0 if self.family == "clip" else _optional_id(self.inner.tokenizer.pad_token_id)

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        """``{"input_ids": [N, context_length]}``."""
        if not texts:
            return {"input_ids": np.zeros((0, self.context_length), dtype=np.int64)}
        ids: Ints = self.inner(list(texts)).numpy().astype(np.int64, copy=False)
        return {"input_ids": ids}

    def assets(self) -> dict[str, bytes]:
        """Its files by name."""
        return pack(self._files, kind="open_clip", family=self.family, options=self.options)


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
        check_length(context_length)
        if inner.pad_token_id is None:
            if inner.eos_token_id is None:
                raise ModelError("the tokenizer has neither a padding nor an end token: it cannot batch texts")
            inner.pad_token = inner.eos_token
        self.inner = inner
        self._context_length = context_length
        self.padding: Padding = padding
        self.mask = mask
        self.lower = lower
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
        settings: dict[str, Any] = {"padding": self.padding, "mask": self.mask, "files": self._files}
        return HFTokenizer(self.inner, context_length=self._context_length, lower=True, **settings)

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        """``{"input_ids": [N, L]}`` and, unless the tower takes none, ``"attention_mask"``."""
        names = ("input_ids", "attention_mask") if self.mask else ("input_ids",)
        if not texts:
            width = self._context_length if self.padding == "max_length" else 1
            return {name: np.zeros((0, width), dtype=np.int64) for name in names}
        rows = [text.lower() for text in texts] if self.lower else list(texts)
        out = self.inner(
            rows, max_length=self._context_length, padding=self.padding, truncation=True, return_attention_mask=True
        )
        return {name: np.asarray(out[name], dtype=np.int64) for name in names}

    def assets(self) -> dict[str, bytes]:
        """Its files by name, as ``save_pretrained`` writes them, and its settings."""
        return pack(
            self._files,
            kind="hf",
            context_length=self._context_length,
            padding=self.padding,
            mask=self.mask,
            lower=self.lower,
        )


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

    check_length(context_length)
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
