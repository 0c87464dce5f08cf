"""The prompt templates that a comparison can use: CLIP's eighty, or the wording that a text side knows or learned."""

from __future__ import annotations

from collections.abc import Sequence

from clipette.data.prompts import class_prompts
from clipette.data.templates import TEMPLATES, WORDINGS
from clipette.models.inference import TorchEncoder
from clipette.models.prompted_text import ContextTokenizer, KnownTokenizer
from clipette.models.stored_vectors import StoredEncoder
from clipette.runtime.encoder import BundleEncoder
from clipette.runtime.tokens import TableTokenizer
from clipette.types import Encoder, Tokenizer

AUTO = "auto"


def fitting_templates(encoders: Sequence[Encoder], class_names: Sequence[str]) -> str:
    """``openai80``; where an encoder has stored texts only, the wording under which it knows these classes; where one
    has learned its prompts, the wording that they stand for.

    One choice for all encoders, so that they are asked the same. Where no usual wording fits, ``single``: the encoder
    then says itself which text it lacks.
    """
    tables = [known for encoder in encoders if (known := known_texts(encoder)) is not None]
    learned = [wording for encoder in encoders if (wording := learned_wording(encoder)) is not None]
    if not tables:
        return learned[0] if learned else "openai80"
    for wording in (*learned, *WORDINGS):
        prompts = {prompts[0] for prompts in class_prompts(class_names, wording)}
        if all(prompts <= known for known in tables):
            return wording
    return "single"


def learned_wording(encoder: Encoder) -> str | None:
    """The wording that a learned context, or learned class vectors, stand for; None where nothing is learned."""
    if not isinstance(encoder, TorchEncoder) or encoder.model.text is None:
        return None
    tokenizer: Tokenizer = encoder.model.text.tokenizer
    if not isinstance(tokenizer, ContextTokenizer | KnownTokenizer):
        return None
    named = (name for name, templates in TEMPLATES.items() if templates == (tokenizer.wording,))
    return next(named, tokenizer.wording)


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
