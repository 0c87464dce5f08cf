"""``clipette prune``: a smaller model, with its own weights, as a start or as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipette.data.sources import load_data
from clipette.errors import ConfigError
from clipette.evaluate.protocol import read_trained_on
from clipette.measuring import recorded_card
from clipette.models.inference import TorchEncoder
from clipette.resolve import resolve


def prune(
    model: str,
    out: str | Path,
    *,
    depth: float = 1.0,
    width: float = 1.0,
    hidden: float = 1.0,
    macs: float = 1.0,
    size: int | None = None,
    towers: Sequence[str] = ("image", "text"),
    by: str | None = None,
    data: str | None = None,
    calibrate: str | None = None,
    gate: bool = True,
    milder: bool = False,
    cosine: float = 0.99,
    loss: float = 0.01,
) -> dict[str, object]:
    """Write a smaller sister of ``model``, with its weights, as a run directory; what remains are the given shares.

    ``macs``: of a convolutional image tower's multiply-adds, by fewer channels inside its blocks, chosen on the images
    of ``calibrate`` (default: ``data``). ``size``: the side of the images, in pixels; what that saves counts.

    Only if, on ``data``, it loses no more than ``cosine`` and ``loss`` allow (``GateError`` otherwise), or, without
    ``gate``, as a start for ``distill(student=...)``.
    """
    from clipette.export.gate import Budget
    from clipette.export.prune import BY, prune
    from clipette.export.shrink import Shares

    encoder = resolve(model, device="cpu")
    if not isinstance(encoder, TorchEncoder):
        raise ConfigError(f"{model} is no PyTorch model: prune the model, and export it then")
    if by is not None and by not in BY:
        raise ConfigError(f"by: '{by}' is none of {', '.join(BY)}")
    found = prune(
        encoder,
        out,
        shares=Shares(depth, width, hidden, macs, size),
        data=None if data is None else load_data(data),
        calibration=None if calibrate is None else load_data(calibrate),
        towers=towers,
        by=None if by is None else BY[by],
        gate=gate,
        milder=milder,
        budget=Budget(cosine, loss),
        card=recorded_card(model),
        trained_on=read_trained_on(model),
    )
    sizes = {"parameters": found.parameters, "parameters_before": found.parameters_before}
    figures = {} if found.quality is None else found.quality.to_dict()
    then = f"clipette distill --teacher {model} --student {found.path} --data ... --out ..."
    return {"run": str(found.path), "setting": found.setting, **sizes, **figures, "then": then}
