"""``clipette export``: a model as a bundle, written whole or not at all, and only if it says what the model says."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipette.errors import ConfigError, UnsupportedError
from clipette.export.card import write_card
from clipette.export.graphs import image_graph, text_graph
from clipette.export.parity import PARITY, Parity, measure_parity
from clipette.export.tokens import bundled_tokenizer
from clipette.io import digest, fsync_folder, write_atomic, write_json
from clipette.models.core import ImageTower, TextTower
from clipette.models.inference import TorchEncoder
from clipette.models.text import TableTextTrunk
from clipette.progress import track
from clipette.runtime.bundle import FORMAT, MANIFEST, OPSET, VERSION, is_bundle
from clipette.runtime.encoder import load_bundle
from clipette.version import VERSION as CLIPETTE


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its vectors are from the model's."""

    path: Path
    parity: Parity
    bytes: int


def export_bundle(
    encoder: TorchEncoder, out: str | Path, *, card: Mapping[str, Any] | None = None, templates: str | None = None
) -> Exported:
    """Write ``encoder`` as a bundle to the folder ``out``, replacing a bundle that is there.

    ``templates``: the wording behind stored class vectors, for classes that join them later.

    Raises:
        ConfigError: ``out`` holds something else.
        UnsupportedError: a tower or tokenizer that has no form without PyTorch, or vectors that differ by more than
            ``PARITY`` from the model's.
    """
    check_target(Path(out))
    facts, files = bundle_parts(encoder, dict(card or {}))
    if templates is not None:
        facts["text"]["templates"] = templates
    parity: list[Parity] = []

    def check(made: Path) -> None:
        parity.append(measure_parity(encoder, load_bundle(made)))
        if parity[0].worst > PARITY:
            raise UnsupportedError(
                f"the exported vectors differ from the model's by up to {parity[0].worst:.1e} (allowed {PARITY:.0e}): "
                "nothing was written; please report this model"
            )

    path = write_bundle(Path(out), facts, files, check=check)
    return Exported(path, parity[0], sum(len(data) for data in files.values()))


def write_bundle(
    target: Path, facts: Mapping[str, Any], files: Mapping[str, bytes], *, check: Callable[[Path], None] | None = None
) -> Path:
    """Write a bundle whole or not at all, in place of one that is there; ``check`` looks at it before it counts.

    Raises ``ConfigError`` where ``target`` holds something else, and whatever ``check`` raises.
    """
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        every = {**files, "card.md": write_card(facts).encode()}
        for name, data in every.items():
            write_atomic(made / name, data)
        records = {name: {"size": len(data), "digest": digest(data)} for name, data in every.items()}
        # Last: what has no manifest is no bundle.
        write_json(made / MANIFEST, {**facts, "files": records})
        if check is not None:
            check(made)
        made.chmod(0o755)
        _replace(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def check_target(target: Path) -> None:
    """Raises ``ConfigError`` where something else than a bundle is in the way."""
    if target.exists() and not is_bundle(target):
        raise ConfigError(f"{target}: is there and no bundle; name a new folder")


def _replace(made: Path, target: Path) -> None:
    """A folder cannot be renamed over a full one: the old one steps aside first."""
    aside = None
    if target.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.rename(aside / "bundle")
    made.rename(target)
    fsync_folder(target.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def bundle_parts(encoder: TorchEncoder, card: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(the manifest's facts, files by name) of a model."""
    model = encoder.model.float().cpu().eval()
    files: dict[str, bytes] = {}
    sides: dict[str, dict[str, Any] | None] = {"image": None, "text": None}
    towers = [tower for tower in (model.image, model.text) if tower is not None]
    for tower in track(towers, total=len(towers), description="export", unit="towers"):
        name = "image" if isinstance(tower, ImageTower) else "text"
        sides[name], more = _image_side(tower) if isinstance(tower, ImageTower) else _text_side(tower)
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
    dynamic = settings.get("padding") == "longest"
    graph = text_graph(tower, dynamic_length=dynamic)
    return {"file": "text.onnx", "tokenizer": settings}, {**files, "text.onnx": graph}
