"""Training's tokenizers as what a bundle holds: settings for the manifest, and files for ``runtime.tokens``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import SiglipTokenizer

from clipette.errors import UnsupportedError
from clipette.models.tokenizers import HFTokenizer, OpenClipTokenizer
from clipette.runtime.tokens import CHARSMAP_FILE, TOKENIZER_FILE, WORDS_FILE, TableTokenizer
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
    return settings, {TOKENIZER_FILE: bpe_library(inner).to_str().encode()}


def bpe_library(inner: Any) -> Any:
    """The byte-pair encoding of open_clip's ``SimpleTokenizer`` as a ``tokenizers.Tokenizer``, without its cleaning."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    model = models.BPE(vocab=inner.encoder, merges=list(inner.bpe_ranks), end_of_word_suffix="</w>", fuse_unk=False)
    library = Tokenizer(model)
    # (?i): open_clip's pattern ignores case, which reaches letters that lower() leaves alone (a long s).
    words = pre_tokenizers.Split(Regex(f"(?i:{inner.pat.pattern})"), behavior="removed", invert=True)
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([words, spelled])
    return library


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
    if isinstance(tokenizer.inner, SiglipTokenizer):
        return {**settings, "cleaning": "siglip", "charsmap": True}, _siglip_files(tokenizer.inner)
    return settings, _library_file(tokenizer.inner)


def _siglip_files(inner: Any) -> Files:
    """transformers' SigLIP tokenizer, Python over SentencePiece, as a model of the library ``tokenizers``.

    Its texts reach the library normalised (``runtime.sentence_pieces``), so that the model alone is needed. A special
    token that is written out in a text is text there.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Tokenizer, models, processors

    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto.FromString(inner.sp_model.serialized_model_proto())
    rules = proto.normalizer_spec
    known = proto.trainer_spec.model_type == 1 and rules.remove_extra_whitespaces and rules.escape_whitespaces
    if not known or inner.vocab_size != len(inner) or not inner.do_lower_case:
        raise UnsupportedError("a SigLIP tokenizer with settings or tokens of its own cannot be exported")
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    library = Tokenizer(
        models.Unigram(vocabulary, unk_id=inner.sp_model.unk_id(), byte_fallback=proto.trainer_spec.byte_fallback)
    )
    end = str(inner.eos_token)
    library.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, int(inner.eos_token_id))]
    )
    return {TOKENIZER_FILE: library.to_str().encode(), CHARSMAP_FILE: bytes(rules.precompiled_charsmap)}


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
