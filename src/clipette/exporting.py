"""The verbs of bundles: ``export``, ``add_class`` and ``quantize``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipette.data.sources import load_data
from clipette.errors import ConfigError
from clipette.evaluate.protocol import read_trained_on
from clipette.evaluate.wording import AUTO, fitting_templates
from clipette.measuring import recorded_card
from clipette.models.inference import TorchEncoder
from clipette.resolve import resolve


def export(
    model: str,
    out: str | Path,
    *,
    format: str = "bundle",
    labels: Sequence[str] = (),
    templates: str = AUTO,
    licences: Sequence[str] = (),
) -> dict[str, object]:
    """Write ``model`` as a bundle that needs no PyTorch to the folder ``out``; what was written, and its parity.

    ``format``: ``open_clip`` or ``hf`` for a folder that these libraries load, where its architecture is theirs.
    ``labels``: a class bundle, with the vectors of these classes and no text tower; they are worded by ``templates``
    (auto: openai80, or what the model has learned). ``licences``: lines for the card, such as "data: CC BY 4.0".
    Raises ``UnsupportedError`` where a tower or tokenizer has no such form, or would not say the same.
    """
    from clipette.export.bundle import export_bundle
    from clipette.export.card import portable
    from clipette.export.classes import with_classes
    from clipette.export.peers import FORMATS, export_folder

    encoder = resolve(model, device="cpu")
    if not isinstance(encoder, TorchEncoder):
        raise ConfigError(f"{model} is no PyTorch model: it has nothing to export")
    card = portable({**recorded_card(model), **({"licences": list(licences)} if licences else {})})
    if format != "bundle":
        if format not in FORMATS:
            raise ConfigError(f"format '{format}' is none of bundle, {', '.join(FORMATS)}")
        if labels:
            raise ConfigError("labels make a class bundle: leave them out, or use the format bundle")
        written = export_folder(encoder, out, format, card=card)
        return {"folder": str(written.path), "load": written.load, "largest_difference": written.difference}
    if templates == AUTO:
        templates = fitting_templates([encoder], labels)
    if labels:
        encoder = with_classes(encoder, labels, templates)
    found = export_bundle(
        encoder,
        out,
        card=card,
        templates=templates if labels else None,
        trained_on=read_trained_on(model),
    )
    difference = {"images": found.parity.images, "texts": found.parity.texts}
    return {"bundle": str(found.path), "bytes": found.bytes, "largest_difference": difference}


def add_class(bundle: str | Path, names: Sequence[str], *, model: str) -> dict[str, object]:
    """Add classes to a class bundle, their vectors by ``model``'s text tower; all classes that it has then."""
    from clipette.export.classes import add_classes

    return {"bundle": str(bundle), "classes": list(add_classes(bundle, resolve(model, device="cpu"), names))}


def quantize(
    bundle: str | Path,
    data: str,
    out: str | Path,
    *,
    calibrate: str | None = None,
    precision: str = "int8",
    kept: int = 1,
    texts: str | None = None,
    milder: bool = False,
    cosine: float = 0.99,
    loss: float = 0.01,
) -> dict[str, object]:
    """Write a smaller copy of ``bundle`` if, on ``data``, it loses no more than ``cosine`` and ``loss`` allow.

    Raises ``GateError`` otherwise: nothing is written then. ``texts``: fp16 or int8, beside an int8 image tower.
    """
    from clipette.export.gate import Budget
    from clipette.export.smaller import PRECISIONS, TEXTS, quantize

    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}' is none of {', '.join(PRECISIONS)}")
    if texts is not None and texts not in TEXTS:
        raise ConfigError(f"texts '{texts}' is none of {', '.join(TEXTS)}")
    found = quantize(
        bundle,
        load_data(data),
        out,
        calibration=None if calibrate is None else load_data(calibrate),
        precision=PRECISIONS[precision],
        kept=kept,
        texts=None if texts is None else TEXTS[texts],
        milder=milder,
        budget=Budget(cosine, loss),
    )
    sizes = {"bytes": found.bytes, "bytes_before": found.bytes_before}
    return {"bundle": str(found.path), "setting": found.setting, **sizes, **found.quality.to_dict()}
