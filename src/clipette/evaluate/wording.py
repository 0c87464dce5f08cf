"""The prompt templates that a comparison can use: CLIP's eighty, or the one wording that a stored text side knows."""

from __future__ import annotations

from collections.abc import Sequence

from clipette.data.prompts import class_prompts
from clipette.models.inference import TorchEncoder
from clipette.models.stored_vectors import StoredEncoder
from clipette.runtime.encoder import BundleEncoder
from clipette.runtime.tokens import TableTokenizer
from clipette.types import Encoder, Tokenizer

AUTO = "auto"
# The usual single wordings, the likeliest first.
WORDINGS = ("single", "plain", "a {}", "none", "detail", "context", "style", "domain", "task")


def fitting_templates(encoders: Sequence[Encoder], class_names: Sequence[str]) -> str:
    """``openai80``; where an encoder has stored texts only, the wording under which it knows these classes.

    One choice for all encoders, so that they are asked the same. Where no usual wording fits, ``single``: the encoder
    then says itself which text it lacks.
    """
    tables = [known for encoder in encoders if (known := known_texts(encoder)) is not None]
    if not tables:
        return "openai80"
    for wording in WORDINGS:
        prompts = {prompts[0] for prompts in class_prompts(class_names, wording)}
        if all(prompts <= known for known in tables):
            return wording
    return "single"


def known_texts(encoder: Encoder) -> frozenset[str] | None:
    """The only texts that an encoder knows; None where it encodes any, or none at all."""
    if isinstance(encoder, StoredEncoder):
        return frozenset(encoder.texts) if encoder.can_encode_text else None
    tokenizer: Tokenizer | None = None
    if isinstance(encoder, BundleEncoder):
        tokenizer = encoder.tokenizer
    elif isinstance(encoder, TorchEncoder) and encoder.model.text is not None:
        tokenizer = encoder.model.text.tokenizer
    return frozenset(tokenizer.texts) if isinstance(tokenizer, TableTokenizer) else None
