"""``clipette export``: a model as a bundle, written whole or not at all, and only if it says what the model says."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Mapping
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
from clipette.models.core import TextTower
from clipette.models.inference import TorchEncoder
from clipette.models.text import TableTextTrunk
from clipette.runtime.bundle import FORMAT, MANIFEST, OPSET, VERSION, is_bundle
from clipette.runtime.encoder import load_bundle
from clipette.version import VERSION as CLIPETTE


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its vectors are from the model's."""

    path: Path
    parity: Parity
    bytes: int


def export_bundle(encoder: TorchEncoder, out: str | Path, *, card: Mapping[str, Any] | None = None) -> Exported:
    """Write ``encoder`` as a bundle to the folder ``out``, replacing a bundle that is there.

    Raises:
        ConfigError: ``out`` holds something else.
        UnsupportedError: a tower or tokenizer that has no form without PyTorch, or vectors that differ by more than
            ``PARITY`` from the model's.
    """
    target = Path(out)
    if target.exists() and not is_bundle(target):
        raise ConfigError(f"{target}: is there and no bundle; name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write(encoder, made, dict(card or {}))
        parity = measure_parity(encoder, load_bundle(made))
        if parity.worst > PARITY:
            raise UnsupportedError(
                f"the exported vectors differ from the model's by up to {parity.worst:.1e} (allowed {PARITY:.0e}): "
                "nothing was written; please report this model"
            )
        made.chmod(0o755)
        _replace(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Exported(target, parity, size)


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


def _write(encoder: TorchEncoder, folder: Path, card: dict[str, Any]) -> None:
    model = encoder.model.float().cpu().eval()
    files: dict[str, bytes] = {}
    image = text = None
    if model.image is not None:
        files["image.onnx"] = image_graph(model.image)
        preprocess = model.image.preprocess.to_dict()
        files["preprocess.json"] = json.dumps(preprocess, indent=2, sort_keys=True).encode()
        image = {"file": "image.onnx", "preprocess": preprocess}
    if model.text is not None:
        text, more = _text_side(model.text)
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
        "image": image,
        "text": text,
        "card": card,
    }
    files["card.md"] = write_card(facts).encode()
    for name, data in files.items():
        write_atomic(folder / name, data)
    records = {name: {"size": len(data), "digest": digest(data)} for name, data in files.items()}
    # Last: what has no manifest is no bundle.
    write_json(folder / MANIFEST, {**facts, "files": records})


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
