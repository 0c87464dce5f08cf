"""``clipette export``: a model as a bundle, written whole or not at all, and only if it says what the model says."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipette.adapt.packed import is_packed
from clipette.errors import UnsupportedError
from clipette.evaluate.cost import TowerCost, measure_costs
from clipette.evaluate.protocol import FILE as TRAINED_ON
from clipette.evaluate.protocol import TrainedOn
from clipette.export.card import write_card
from clipette.export.folders import check_target, write_folder
from clipette.export.fuzz import differing, fuzzed
from clipette.export.graphs import image_graph, pads_behind_the_end, text_graph
from clipette.export.parity import PARITY, Parity, measure_parity
from clipette.export.tokens import bundled_tokenizer
from clipette.io import digest, write_atomic, write_json
from clipette.models.core import DualEncoder, ImageTower, TextTower
from clipette.models.inference import TorchEncoder
from clipette.models.prompted_text import ContextTokenizer, KnownTokenizer
from clipette.models.text import TableTextTrunk
from clipette.progress import track
from clipette.runtime.bundle import FORMAT, MANIFEST, OPSET, VERSION, Bundle, holds_bundle
from clipette.runtime.encoder import BundleEncoder
from clipette.runtime.tokens import TableTokenizer
from clipette.version import VERSION as CLIPETTE

KIND = "bundle"
# A bundle is small: of more images than these, those of the lowest hashes tell which data it has seen.
MOST_PLACES = 4096
# Tokenizers whose padding is the id 0, which ends no text.
PADS_WITH_ZEROS = ("clip", "words")
# Strings on which the tokenizer is tried.
FUZZED = 200


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its vectors are from the model's."""

    path: Path
    parity: Parity
    bytes: int


def export_bundle(
    encoder: TorchEncoder,
    out: str | Path,
    *,
    card: Mapping[str, Any] | None = None,
    templates: str | None = None,
    trained_on: TrainedOn | None = None,
) -> Exported:
    """Write ``encoder`` as a bundle to the folder ``out``, replacing a bundle that is there.

    ``templates``: the wording behind stored class vectors, for classes that join them later. ``trained_on``: what the
    model has seen, so that evaluations of the bundle can name the protocol.

    Raises:
        ConfigError: ``out`` holds something else.
        UnsupportedError: a tower or tokenizer that has no form without PyTorch, or vectors that differ by more than
            ``PARITY`` from the model's.
    """
    target = Path(out)
    check_target(target, holds_bundle, KIND)
    facts, files = bundle_parts(encoder, dict(card or {}))
    if templates is not None:
        facts["text"]["templates"] = templates
    if trained_on is not None:
        files[TRAINED_ON] = json.dumps(asdict(trained_on.fewer(MOST_PLACES)), sort_keys=True).encode()
    made = unwritten(target, facts, files)
    _check_tokens(encoder, made)
    parity = measure_parity(encoder, made)
    if not parity.worst <= PARITY:
        raise UnsupportedError(
            f"the exported vectors differ from the model's by up to {parity.worst:.1e} (allowed {PARITY:.0e}): "
            "nothing was written; please report this model"
        )
    return Exported(write_bundle(target, facts, files), parity, sum(len(data) for data in files.values()))


def _check_tokens(encoder: TorchEncoder, made: BundleEncoder) -> None:
    """Raises ``UnsupportedError`` where the bundle reads some string otherwise than the model."""
    if encoder.model.text is None or isinstance(made.tokenizer, TableTokenizer) or made.tokenizer is None:
        return
    wrong = differing(made.tokenizer, encoder.model.text.tokenizer, fuzzed(FUZZED))
    if wrong:
        raise UnsupportedError(
            f"the exported tokenizer reads {len(wrong)} of {FUZZED} strings otherwise than the model's, {wrong[0]!r} "
            "among them: nothing was written; please report this model"
        )


def unwritten(target: Path, facts: Mapping[str, Any], files: Mapping[str, bytes]) -> BundleEncoder:
    """The encoder of a bundle that would be written to ``target``."""
    # As the manifest brings them back: keys sorted, lists for tuples.
    return BundleEncoder(Bundle(target, json.loads(json.dumps(facts, sort_keys=True)), files))


def write_bundle(target: Path, facts: Mapping[str, Any], files: Mapping[str, bytes]) -> Path:
    """Write a bundle whole or not at all, in place of one that is there.

    Raises ``ConfigError`` where ``target`` holds something else.
    """

    def fill(made: Path) -> None:
        every = {**files, "card.md": write_card(facts).encode()}
        for name, data in every.items():
            write_atomic(made / name, data)
        records = {name: {"size": len(data), "digest": digest(data)} for name, data in every.items()}
        # Last: what has no manifest is no bundle.
        write_json(made / MANIFEST, {**facts, "files": records})

    return write_folder(target, fill, ours=holds_bundle, what=KIND)


def bundle_parts(encoder: TorchEncoder, card: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(the manifest's facts, files by name) of a model."""
    model = encoder.model.float().cpu().eval()
    _check_kinds(model)
    files: dict[str, bytes] = {}
    sides: dict[str, dict[str, Any] | None] = {"image": None, "text": None}
    towers = [tower for tower in (model.image, model.text) if tower is not None]
    cost = measure_costs([encoder], None)[0]
    for tower in track(towers, total=len(towers), description="export", unit="towers"):
        name = "image" if isinstance(tower, ImageTower) else "text"
        side, more = _image_side(tower) if isinstance(tower, ImageTower) else _text_side(tower)
        sides[name] = {**side, **_described(tower, getattr(cost, name))}
        files |= more
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "clipette": CLIPETTE,
        "name": encoder.name,
        "space": encoder.space,
        "dim": encoder.dim,
        "logit_scale": encoder.logit_scale,
        "logit_bias": encoder.logit_bias,
        "opset": OPSET,
        "precision": "fp32",
        **sides,
        "card": dict(card),
    }
    return facts, files


def _described(tower: ImageTower | TextTower, cost: TowerCost) -> dict[str, Any]:
    """What the card says of a tower."""
    kind = architecture(tower.blueprint.kind, tower.blueprint.arguments)
    return {"architecture": kind, "params": cost.params, "gmacs": cost.gmacs}


def architecture(kind: str, arguments: Mapping[str, Any]) -> str:
    """The name by which a tower's library knows it, and what was done to it: ``mobilenetv2_100, slim``."""
    done = []
    while isinstance(inner := arguments.get("inner"), Mapping):
        done.append(kind)
        kind, arguments = inner["kind"], inner["arguments"]
    nested = [part for name in ("vision_cfg", "text_cfg", "config") if isinstance(part := arguments.get(name), Mapping)]
    names = ("name", "timm_model_name", "hf_model_name", "model_type")
    known = [str(part[name]) for part in (arguments, *nested) for name in names if part.get(name)]
    return ", ".join([known[0] if known else kind, *(each for each in done if not each.startswith("headed"))])


def _check_kinds(model: DualEncoder) -> None:
    """What cannot become a bundle is refused in words, before the minutes that a graph takes."""
    if is_packed(model):
        raise UnsupportedError(
            "this adaptation is a classifier (tip-adapter, cocoop, tpt, a linear probe, ...): its vectors are logits, "
            "and a bundle has no place for them; distil it (`clipette distill --teacher RUN`) and export the student"
        )
    if model.text is not None and isinstance(model.text.tokenizer, ContextTokenizer | KnownTokenizer):
        raise UnsupportedError(
            "this adaptation says its classes in learned words, and a bundle's texts are free: name the classes "
            "(`--labels`) for a bundle of these alone"
        )


def _image_side(tower: ImageTower) -> tuple[dict[str, Any], dict[str, bytes]]:
    preprocess = tower.preprocess.to_dict()
    files = {
        "image.onnx": image_graph(tower),
        "preprocess.json": json.dumps(preprocess, indent=2, sort_keys=True).encode(),
    }
    return {"file": "image.onnx", "preprocess": preprocess}, files


def _text_side(tower: TextTower) -> tuple[dict[str, Any], dict[str, bytes]]:
    settings, files = bundled_tokenizer(tower.tokenizer)
    if isinstance(tower.trunk, TableTextTrunk):
        vectors = tower.trunk.vectors.cpu().numpy()
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        buffer = io.BytesIO()
        np.save(buffer, unit.astype(np.float32), allow_pickle=False)
        return {"file": "classes.npy", "tokenizer": settings}, {**files, "classes.npy": buffer.getvalue()}
    until_end = settings["kind"] in PADS_WITH_ZEROS and pads_behind_the_end(tower)
    graph = text_graph(tower, dynamic_length=until_end or settings.get("padding") == "longest")
    columns = {"columns": "until_end"} if until_end else {}
    return {"file": "text.onnx", "tokenizer": settings, **columns}, {**files, "text.onnx": graph}
