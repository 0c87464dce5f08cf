"""``clipette prune``: a model with fewer layers, channels and hidden units, that starts from its own weights.

TinyCLIP's manual inheritance (Wu et al., ICCV 2023) of a model by a smaller sister; convolutional towers lose channels
inside their blocks too, by what these are worth on images (``export/channels.py``). What it costs is measured as for
quantization; unlike there it is usually too much, and training wins most of it back: what comes out is a run directory
that ``clipette distill --student`` starts from.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clipette.data.dataset import Dataset
from clipette.errors import ConfigError
from clipette.evaluate.cost import tower_gmacs
from clipette.evaluate.encoding import CachedEncoder
from clipette.evaluate.protocol import TrainedOn
from clipette.export.channels import fewer_channels, read_pixels
from clipette.export.folders import check_target, write_folder
from clipette.export.gate import Budget, Quality, measure_quality, refuse
from clipette.export.shrink import Shares, smaller_tower
from clipette.io import write_json
from clipette.models.core import DualEncoder, ImageTower, TextTower
from clipette.models.inference import TorchEncoder
from clipette.models.inherit import InheritReport, inherit
from clipette.models.inherit_rules import CONVOLUTIONAL
from clipette.models.saved import save_model

By = Literal["leading", "norm"]
BY: dict[str, By] = {"leading": "leading", "norm": "norm"}
REPORT = "prune.json"
KIND = "pruned run"
# How often what goes is halved before the gate gives up.
MILDER = 3


@dataclass(frozen=True)
class Pruned:
    """What was written. ``parameters``: of its towers, ``parameters_before``: of the model's; ``quality``: None where
    there was nothing to measure on; ``channels``: what is left inside the blocks that lost some."""

    path: Path
    setting: str
    parameters: int
    parameters_before: int
    quality: Quality | None
    reports: Mapping[str, InheritReport]
    channels: Mapping[str, int]


@dataclass(frozen=True)
class _Made:
    """A smaller model; what became of each tower's tensors; how many channels are left inside blocks."""

    model: DualEncoder
    reports: Mapping[str, InheritReport]
    channels: Mapping[str, int]


def is_pruned(folder: Path) -> bool:
    """Whether the folder is what ``prune`` wrote."""
    return (folder / REPORT).is_file()


def untouched(folder: Path) -> tuple[str, ...]:
    """Which towers, of a folder that ``prune`` wrote, are as they were in the whole model."""
    if not is_pruned(folder):
        return ()
    return tuple(json.loads((folder / REPORT).read_text()).get("untouched", ()))


def prune(
    encoder: TorchEncoder,
    out: str | Path,
    *,
    shares: Shares,
    data: Dataset | None,
    calibration: Dataset | None = None,
    towers: Collection[str] = ("image", "text"),
    by: By | None = None,
    gate: bool = True,
    milder: bool = False,
    budget: Budget = Budget(),
    card: Mapping[str, Any] | None = None,
    trained_on: TrainedOn | None = None,
) -> Pruned:
    """Write a smaller sister of ``encoder``, with its weights, as a run directory.

    ``by``: which heads, channels and hidden units stay: the ``leading`` ones, or those of the largest ``norm``
    (default for transformers). Layers are taken at even strides. ``calibration``: images that show what the channels
    inside convolutional blocks are worth (default: ``data``; without either, by norm). ``gate``: only if what ``data``
    shows of it stays within ``budget``; without it, it is a start for distillation, and ``data`` is for the figures
    alone. ``milder``: try settings that prune half as much, until one passes. Within the default budget it stays in the
    model's embedding space; beyond, it has a space of its own.

    Raises:
        GateError: no setting that was tried stays within the budget.
        ConfigError: a tower that cannot be pruned so, nothing to prune, no data for the gate, ``out`` in the way.
    """
    target = Path(out)
    check_target(target, is_pruned, KIND)
    if gate and data is None:
        raise ConfigError("the gate measures on data of yours: name it with --data, or write a start with --no-gate")
    reference = CachedEncoder(encoder)
    tried: list[tuple[str, Quality]] = []
    setting = shares
    for _ in range(1 + (MILDER if milder and gate else 0)):
        made = _smaller(encoder.model, setting, towers, by, calibration or data)
        if made is None:
            break
        smaller = TorchEncoder(made.model, name=encoder.name, space=encoder.space, device=str(encoder.device))
        quality = None if data is None else measure_quality(reference, smaller, data)
        if quality is not None:
            tried.append((str(setting), quality))
        if not gate or (quality is not None and not quality.faults(budget)):
            sizes = (_count(made.model), _count(encoder.model))
            found = Pruned(target, str(setting), *sizes, quality, made.reports, made.channels)
            space = encoder.space if quality is not None and not quality.faults(Budget()) else None
            return _write(found, smaller, space=space, card=dict(card or {}), trained_on=trained_on)
        setting = setting.milder()
    if not tried:
        raise ConfigError(f"{shares}: nothing of this model would go: name smaller shares, or other --towers")
    advice = (
        "pruning costs what training wins back: write it as a start (--no-gate) and run `clipette distill --student` "
        "from there; prune less (--milder tries that in turn)"
    )
    raise refuse(tried, budget, advice)


def _smaller(
    model: DualEncoder, shares: Shares, towers: Collection[str], by: By | None, images: Dataset | None = None
) -> _Made | None:
    """None where nothing would be smaller."""
    sides: dict[str, Any] = {"image": model.image, "text": model.text}
    if unknown := sorted(set(towers) - set(sides)):
        raise ConfigError(f"towers: '{unknown[0]}' is neither image nor text")
    if shares.macs < 1 and ("image" not in towers or model.image is None):
        raise ConfigError("macs: are the image tower's, and there is none, or --towers leaves it out")
    reports = {}
    for side in towers:
        tower = sides[side]
        # Stored texts have nothing to prune.
        if tower is None or tower.blueprint.kind == "table_text":
            continue
        made = smaller_tower(tower, shares)
        if made is None:
            continue
        made.to(model.logit_scale.device)
        reports[side] = inherit(made, tower, by=by or _default_by(tower))
        sides[side] = made
    channels: dict[str, int] = {}
    if shares.macs < 1:
        whole = model.image_tower()
        # The model's own tower stays as it is.
        sides["image"] = sides["image"] if "image" in reports else copy.deepcopy(whole)
        channels = _fewer_channels(sides["image"], shares.macs * 1e9 * tower_gmacs(whole), images)
    if not reports and not channels:
        return None
    bias = None if model.logit_bias is None else float(model.logit_bias.detach())
    small = DualEncoder(sides["image"], sides["text"], logit_scale=float(model.logit_scale.detach()), logit_bias=bias)
    return _Made(small.eval(), reports, channels)


def _fewer_channels(tower: ImageTower, target: float, images: Dataset | None) -> dict[str, int]:
    device = next(tower.parameters()).device
    batches = [] if images is None else [each.to(device) for each in read_pixels(images, tower.preprocess)]
    return fewer_channels(tower, target, batches)


def _default_by(tower: ImageTower | TextTower) -> By:
    return "leading" if any(isinstance(part, CONVOLUTIONAL) for part in tower.modules()) else "norm"


def _count(model: DualEncoder) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _write(
    found: Pruned, encoder: TorchEncoder, *, space: str | None, card: dict[str, Any], trained_on: TrainedOn | None
) -> Pruned:
    quality = None if found.quality is None else found.quality.to_dict()
    facts = {
        "setting": found.setting,
        "parameters": found.parameters,
        "parameters_before": found.parameters_before,
        "gate": quality,
    }
    layers = {f"{side}.{stack}": list(kept) for side, r in found.reports.items() for stack, kept in r.layers.items()}
    notes = [note for report in found.reports.values() for note in report.notes]
    changed = {*found.reports, *(["image"] if found.channels else [])}
    same = [side for side in ("image", "text") if side not in changed]
    left = [name for report in found.reports.values() for name in report.initialised]

    def fill(made: Path) -> None:
        save_model(encoder.model, made / "model", name=encoder.name, space=space, card={**card, "pruned": facts})
        if trained_on is not None:
            trained_on.write(made / "model")
        told = {"layers": layers, "channels": dict(found.channels), "notes": notes, "initialised": left}
        write_json(made / REPORT, {**facts, **told, "untouched": same})

    write_folder(found.path, fill, ours=is_pruned, what=KIND)
    return found
