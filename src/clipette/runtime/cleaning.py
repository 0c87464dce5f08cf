"""What open_clip does to a text before its tokenizer sees it, without open_clip (which needs PyTorch)."""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable

from clipette.errors import ModelError

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def fixed(text: str) -> str:
    """Mojibake mended (ftfy), HTML entities resolved twice, as CLIP's authors did."""
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def whitespace(text: str) -> str:
    """``fixed``, and every run of white space one blank."""
    return " ".join(fixed(text).split())


def lower(text: str) -> str:
    """``whitespace`` in lower case: CLIP's own rule."""
    return whitespace(text).lower()


def canonicalize(text: str) -> str:
    """Lower case without punctuation: big_vision's rule for SigLIP."""
    return " ".join(fixed(text).replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


def siglip(text: str) -> str:
    """Lower case without punctuation, behind the mark of a word's beginning: transformers' rule for SigLIP."""
    return re.sub(r"\s+", " ", "▁" + text.replace("▁", " ").lower().translate(_NO_PUNCTUATION)).rstrip()


CLEANINGS: dict[str, Callable[[str], str]] = {
    "none": str,
    # transformers' SigLIP 2: lower case and nothing else.
    "lower_only": str.lower,
    "whitespace": whitespace,
    "lower": lower,
    "canonicalize": canonicalize,
    "siglip": siglip,
}


def find_cleaning(name: str) -> Callable[[str], str]:
    """By the name that a bundle states. Raises ``ModelError``."""
    if str(name) not in CLEANINGS:
        raise ModelError(f"the bundle's texts are cleaned by '{name}', which this Clipette does not know: upgrade it")
    return CLEANINGS[name]
