"""What a record (a JSON side file, a CSV row, a table row) says about its sample, whatever its columns are called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from clipette.types import Failure, ImageBytes, Sample

CAPTION_FIELDS = ("captions", "caption", "texts", "text", "sentences", "sentence", "alt_text", "title")
NUMBERED_CAPTION = re.compile(r"^(caption|text|sentence)[_ ]?\d+$")
# "clip_name" is the name as one would say it ("annual crop land" for "AnnualCrop"): right for prompts.
CLASS_FIELDS = ("clip_name", "class_name", "class", "category", "label_name")
LABEL_FIELDS = ("label", "cls", "fine_label", "class_id", "target")
DOMAIN_FIELDS = ("domain", "style")
USED = {*CAPTION_FIELDS, *LABEL_FIELDS, *DOMAIN_FIELDS, "split", "clip_name"}
LONGEST_META = 256


def sample_of(
    key: str,
    image: ImageBytes | None,
    record: Mapping[str, object],
    notes: list[Failure],
    *,
    captions: Iterable[str] = (),
    place: str = "",
) -> Sample:
    """A sample from a record; empty captions are dropped and noted.

    ``captions``: further ones, from elsewhere. The record's other short fields are kept in ``meta``.
    """
    place = place or (image.location if image is not None else key)
    label, class_name = _label(record), _first_text(record, CLASS_FIELDS)
    if isinstance(label, str):
        # A word in a label column is a class name.
        label, class_name = None, class_name or label
    return Sample(
        key=key,
        image=image,
        captions=clean_captions([*record_captions(record), *captions], key, place, notes),
        class_name=class_name,
        label=label,
        domain=_first_text(record, DOMAIN_FIELDS),
        split=_first_text(record, ("split",)),
        meta={name: value for name, value in record.items() if name not in USED and _is_short(value)},
    )


def record_captions(record: Mapping[str, object]) -> list[str]:
    """Captions of a record: a list, a string, a JSON list in a string, or numbered columns."""
    names = [name for name in CAPTION_FIELDS if not _missing(record.get(name))][:1]
    if not names:
        names = [name for name in record if NUMBERED_CAPTION.match(name) and not _missing(record[name])]
    if names == ["captions"] and isinstance(record.get("caption"), str):
        names = ["captions", "caption"]
    return list(dict.fromkeys(text for name in names for text in _texts(record[name])))


def clean_captions(captions: Iterable[str], key: str, place: str, notes: list[Failure]) -> tuple[str, ...]:
    """Captions without surrounding blanks, each once; empty ones are dropped and noted."""
    kept: dict[str, None] = {}
    for caption in captions:
        text = caption.strip()
        if text:
            kept[text] = None
        else:
            notes.append(Failure(key, place, "an empty caption was dropped (the sample is kept)"))
    return tuple(kept)


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                parsed = json.loads(value)
            except ValueError:
                return [value]
            return [text for text in parsed if isinstance(text, str)] if isinstance(parsed, list) else [value]
        return [value]
    if isinstance(value, Mapping):
        return _texts(value.get("raw", ""))
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [text for item in value for text in _texts(item)]
    return []


def _label(record: Mapping[str, object]) -> int | str | None:
    for name in LABEL_FIELDS:
        value = record.get(name)
        if _missing(value) or isinstance(value, bool):
            continue
        if isinstance(value, int):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str):
            text = value.strip()
            return int(text) if re.fullmatch(r"\d+", text) else text
    return None


def _first_text(record: Mapping[str, object], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def _missing(value: object) -> bool:
    """None, an empty cell, or the NaN that data frames write for one."""
    return value is None or value in ("", []) or (isinstance(value, float) and value != value)


def _is_short(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_META
    return isinstance(value, int | float | bool)
