"""The page that travels with a bundle: what it is, where it comes from, how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from clipette.version import VERSION

TEMPLATE = """\
# {name}

A bundle of Clipette {clipette}: it runs without PyTorch.

| | |
|---|---|
| embedding space | `{space}` |
| width | {dim} |
| logit scale, bias | {logit_scale:.4g}, {logit_bias:.4g} |
| image tower | {image} |
| text side | {text} |
| precision | {precision}, ONNX operator set {opset} |
{lost}
Vectors of two models are comparable if and only if their embedding spaces are equal.

```python
import clipette

encoder = clipette.load("{name}.bundle")
encoder.encode_images(["photo.jpg"]) @ encoder.encode_texts(["a photo of a dog"]).T
```

## Where it comes from

{told}
All that was recorded:

```json
{origin}
```
"""

# A place on the machine that wrote it, behind a source's kind or alone; not a URL's.
_PLACE = re.compile(r"(?P<kind>[a-z_]+:)?(?P<path>~?/(?!/).*)", re.DOTALL)

ORIGIN = """\
# {name}

Written by Clipette {clipette}, and checked by loading it so:

```python
{load}
```

## Where it comes from

{told}
All that was recorded:

```json
{origin}
```
"""


def write_origin(name: str, load: str, card: Mapping[str, Any]) -> str:
    """The page beside a model that was written for another library; ``load``: how it is loaded there."""
    origin = json.dumps(card, indent=2, ensure_ascii=False, sort_keys=True)
    return ORIGIN.format(name=name, clipette=VERSION, load=load, origin=origin, told=told(card))


def portable(value: Any) -> Any:
    """A record as it may travel: of absolute paths, which name users and machines, their last part."""
    if isinstance(value, Mapping):
        return {name: portable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [portable(each) for each in value]
    # Several sources in one reference.
    return "".join(_name(part) for part in re.split(r"(,| \+ )", value)) if isinstance(value, str) else value


def _name(reference: str) -> str:
    found = _PLACE.fullmatch(reference)
    return reference if found is None else f"{found['kind'] or ''}{PurePosixPath(found['path']).name or '/'}"


def told(card: Mapping[str, Any]) -> str:
    """The record in a table for people, and which licences apply."""
    teacher, trained, clipette = (_part(card, name) for name in ("teacher", "trained_on", "clipette"))
    figures = ", ".join(
        f"{name} {value:.3f}" for name, value in _part(card, "dev").items() if isinstance(value, int | float)
    )
    images = f" ({trained['images']:,} images)" if isinstance(trained.get("images"), int) else ""
    rows = {
        "made from": card.get("reference"),
        "teacher": teacher.get("name"),
        "data": f"{card['data']}{images}" if card.get("data") else None,
        "recipe": card.get("recipe"),
        "paper": card.get("paper"),
        "on dev data": figures,
        "trained by": f"Clipette {clipette.get('version')}, commit {clipette.get('commit')}" if clipette else None,
    }
    table = "".join(f"| {name} | {_cell(value)} |\n" for name, value in rows.items() if value)
    licences = [str(each) for each in card.get("licences") or ()]
    said = "".join(f"- {each}\n" for each in licences) or (
        "None were stated (`clipette export --licence 'data: CC BY 4.0'`). Those of the teacher, of the student's "
        "starting weights and of the data apply.\n"
    )
    return f"| | |\n|---|---|\n{table}\n### Licences\n\n{said}"


def _part(card: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = card.get(name)
    return found if isinstance(found, Mapping) else {}


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def write_card(facts: Mapping[str, Any]) -> str:
    """The card of a bundle whose manifest says ``facts``."""
    image, text = facts["image"], facts["text"]
    seen = "none" if image is None else "×".join(str(side) for side in image["preprocess"]["size"]) + " pixels"
    kinds = {"stored": "stored texts only", "clip": "CLIP's byte pairs", "words": "words", "hf": "tokenizer.json"}
    read = "none" if text is None else kinds[text["tokenizer"]["kind"]]
    seen, read = _sized(seen, image), _sized(read, text)
    lost = _lost(facts["gate"]) if isinstance(facts.get("gate"), Mapping) else ""
    card = _part(facts, "card")
    origin = json.dumps(card, indent=2, ensure_ascii=False, sort_keys=True)
    said = {"image": seen, "text": read, "origin": origin, "told": told(card), "lost": lost}
    return TEMPLATE.format(**{**facts, **said})


def _sized(reads: str, side: Mapping[str, Any] | None) -> str:
    """What a tower reads, what it is, and how large."""
    side = side or {}
    params, gmacs = side.get("params"), side.get("gmacs")
    size = f"{params / 1e6:.3g} M parameters" if isinstance(params, int) and params else None
    cost = f"{gmacs:.3g} GMACs" if isinstance(gmacs, int | float) and gmacs else None
    return ", ".join(str(part) for part in (reads, side.get("architecture"), size, cost) if part)


def _lost(gate: Mapping[str, Any]) -> str:
    """What the smaller graphs cost, as the gate measured it against the full bundle."""
    cosines = [
        f"median cosine of {side} {value:.4f}"
        for side in ("images", "texts")
        if isinstance(value := gate.get(f"cosine_{side}"), int | float)
    ]
    before, after = gate.get("before"), gate.get("after")
    if isinstance(before, int | float) and isinstance(after, int | float):
        cosines.append(f"{_cell(gate.get('figure'))} {before:.4f} → {after:.4f}")
    return f"| against fp32 | {', '.join(cosines)} |\n"
