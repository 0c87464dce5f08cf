"""Training's tokenizers as what a bundle holds: settings for the manifest, and files for ``runtime.tokens``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipette.errors import UnsupportedError
from clipette.models.tokenizers import HFTokenizer, OpenClipTokenizer
from clipette.runtime.tokens import TOKENIZER_FILE, WORDS_FILE, TableTokenizer
from clipette.runtime.words import WordTokenizer
from clipette.types import Tokenizer

Settings = dict[str, Any]
Files = dict[str, bytes]


def bundled_tokenizer(tokenizer: Tokenizer) -> tuple[Settings, Files]:
    """(settings, files by name) of one tokenizer. Raises ``UnsupportedError`` in words."""
    if isinstance(tokenizer, WordTokenizer):
        return {"kind": "words"}, {WORDS_FILE: tokenizer.to_json().encode()}
    if isinstance(tokenizer, TableTokenizer):
        return {"kind": "stored"}, {"classes.json": tokenizer.assets()["texts.json"]}
    if isinstance(tokenizer, OpenClipTokenizer):
        return _clip(tokenizer) if tokenizer.family == "clip" else _open_clip_hf(tokenizer)
    if isinstance(tokenizer, HFTokenizer):
        return _hf(tokenizer)
    raise UnsupportedError(f"a {type(tokenizer).__name__} has no form that runs without PyTorch: it cannot be exported")


def _clip(tokenizer: OpenClipTokenizer) -> tuple[Settings, Files]:
    inner = tokenizer.inner
    specials = {str(inner.decoder[number]): int(number) for number in inner.all_special_ids}
    settings = {
        "kind": "clip",
        "cleaning": _cleaning(tokenizer.options, "lower"),
        "context_length": tokenizer.context_length,
        "specials": specials,
        "start": int(inner.sot_token_id),
        "end": int(inner.eot_token_id),
    }
    return settings, {TOKENIZER_FILE: _bpe_file(inner)}


def _bpe_file(inner: Any) -> bytes:
    """CLIP's byte-pair encoding in the format of the library ``tokenizers``."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    model = models.BPE(vocab=inner.encoder, merges=list(inner.bpe_ranks), end_of_word_suffix="</w>", fuse_unk=False)
    library = Tokenizer(model)
    # (?i): open_clip's pattern ignores case, which reaches letters that lower() leaves alone (a long s).
    words = pre_tokenizers.Split(Regex(f"(?i:{inner.pat.pattern})"), behavior="removed", invert=True)
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([words, spelled])
    return library.to_str().encode()


def _open_clip_hf(tokenizer: OpenClipTokenizer) -> tuple[Settings, Files]:
    options = tokenizer.options
    if options.get("tokenizer_mode"):
        raise UnsupportedError(f"open_clip's tokenizer mode '{options['tokenizer_mode']}' cannot be exported")
    inner = tokenizer.inner.tokenizer
    settings = {
        **_library_settings(inner, tokenizer.context_length, "max_length"),
        "cleaning": _cleaning(options, "whitespace"),
        "mask": False,
        "zero": int(inner.sep_token_id) if options.get("strip_sep_token") else None,
    }
    return settings, _library_file(inner)


def _hf(tokenizer: HFTokenizer) -> tuple[Settings, Files]:
    settings = {
        **_library_settings(tokenizer.inner, tokenizer.context_length, tokenizer.padding),
        "cleaning": "lower_only" if tokenizer.lower else "none",
        "mask": tokenizer.mask,
        "zero": None,
    }
    return settings, _library_file(tokenizer.inner)


def _library_settings(inner: Any, context_length: int, padding: str) -> Settings:
    if inner.padding_side != "right" or inner.truncation_side != "right":
        raise UnsupportedError("a tokenizer that pads or cuts on the left cannot be exported")
    return {
        "kind": "hf",
        "context_length": context_length,
        "padding": padding,
        "pad_id": int(inner.pad_token_id),
        "pad_token": str(inner.pad_token),
    }


def _library_file(inner: Any) -> Files:
    if not getattr(inner, "is_fast", False):
        raise UnsupportedError(
            f"the tokenizer is a {type(inner).__name__}, which exists in Python only: it has no tokenizer.json"
        )
    return {TOKENIZER_FILE: inner.backend_tokenizer.to_str().encode()}


def _cleaning(options: Mapping[str, Any], default: str) -> str:
    return str(options.get("clean", default))
