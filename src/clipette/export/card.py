"""The page that travels with a bundle: what it is, where it comes from, how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    origin = json.dumps(facts["card"], indent=2, ensure_ascii=False, sort_keys=True)
    return TEMPLATE.format(**{**facts, "image": seen, "text": read, "origin": origin, "told": told(facts["card"])})
