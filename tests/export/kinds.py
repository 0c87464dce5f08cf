"""One small model of every kind that we load, with random weights: what exports are tried on, here and in the bench."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.models import test_open_clip_models as open_clip_kinds
from tests.models import test_transformers_models as transformers_kinds
from tests.runtime.trained import BERT, hugging_face, word_piece
from transformers import BertConfig, BertModel

from clipette.models.core import DualEncoder
from clipette.models.open_clip_models import load_open_clip
from clipette.models.pruned import Kept, open_layers, prune
from clipette.models.slim import open_inner, slim
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model, load_pair
from clipette.models.transformers_models import load_transformers

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8}


def from_open_clip(name: str, folder: Path) -> DualEncoder:
    """As open_clip's own loader leaves it in a folder."""
    hugging_face(word_piece(), BERT).save_pretrained(folder / "tokenizer")
    how = {"resize_mode": open_clip_kinds.PREPROCESS.get(name, "shortest")}
    # Without a projection the trunk's width is the space's.
    config = {**open_clip_kinds.FAMILIES[name], **({"embed_dim": 64} if name == "siglip" else {})}
    origin = open_clip_kinds.write_folder(folder / "model", config, how, folder / "tokenizer")
    open_clip_kinds.peer(origin)
    return load_open_clip(f"local-dir:{origin}")


def from_transformers(name: str, folder: Path) -> DualEncoder:
    """As transformers saves it."""
    build, _, length = transformers_kinds.FAMILIES[name]
    return load_transformers(str(transformers_kinds.write(folder / "model", *build(), length)))


def lit_pair(folder: Path) -> DualEncoder:
    """A timm trunk and a BERT-like encoder, read from YAML, paired by heads."""
    folder.mkdir(parents=True, exist_ok=True)
    hugging_face(word_piece(), BERT).save_pretrained(folder / "encoder")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(1)
    BertModel(BertConfig(vocab_size=200, max_position_embeddings=20, **small)).save_pretrained(folder / "encoder")
    (folder / "pair.yaml").write_text(
        "dim: 24\n"
        "image: {kind: timm, name: test_vit, size: 160, train: head, head: {kind: residual}}\n"
        "text: {kind: hf, path: encoder, train: head, context_length: 12, head: {kind: mlp}}\n"
    )
    return load_pair(folder / "pair.yaml")


def student(folder: Path | None = None, **changes: Any) -> DualEncoder:
    """A student of ours. ``image``, ``text`` and others: in place of the spec's."""
    image = {"kind": "timm", "name": "test_efficientnet", "size": 32, "head": {"kind": "residual", "hidden": 24}}
    text = {"kind": "small", "width": 32, "layers": 1, "heads": 2, "tokenizer": "words", "vocabulary": 300}
    parts = {"dim": 16, "image": {**image, **changes.pop("image", {})}, "text": {**text, **changes.pop("text", {})}}
    captions = ["a red star on a blue sky", "two dotted rings"]
    model = build_model(ModelSpec.model_validate({**parts, **changes}), captions=captions)
    torch.manual_seed(0)
    for module in model.modules():
        # Statistics that differ from their start, so that a lost buffer is seen.
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(std=0.1)
    return model.eval()


def pruned(folder: Path) -> DualEncoder:
    """Layers with fewer heads and hidden units than their width says."""
    model = student(image={"name": "vit_tiny_patch16_224", "args": VIT})
    for tower in (model.image_tower(), model.text_tower()):
        prune(tower, [Kept(torch.arange(1), torch.arange(0, layer.hidden, 3)) for layer in open_layers(tower)])
    return model


def slimmed(folder: Path) -> DualEncoder:
    """Blocks with fewer channels inside than their family says, squeeze-and-excitation among them."""
    model = student(image={"name": "mobilenetv3_small_050"})
    image = model.image_tower()
    slim(image, {inner.name: torch.arange(0, inner.channels, 3) for inner in open_inner(image)})
    return model


STUDENTS: dict[str, dict[str, Any]] = {
    "student": {},
    "student, mobilenet": {"image": {"name": "mobilenetv3_small_050"}},
    "student, fastvit": {"image": {"name": "fastvit_t8", "size": 64, "head": {"kind": "linear"}}, "logits": "siglip"},
    "student, visual prompts": {
        "image": {"name": "vit_tiny_patch16_224", "args": VIT, "prompts": {"count": 2, "depth": 2}},
    },
    "student, projector with batch norm": {"image": {"head": {"kind": "bn_mlp"}}},
    "student, projector of three layers": {"image": {"head": {"kind": "bn_mlp", "layers": 3}}},
    "student, clip's tokens": {"text": {"tokenizer": "clip", "context_length": 14, "head": {"kind": "mlp"}}},
}
KINDS: dict[str, Callable[[Path], DualEncoder]] = {
    **{f"open_clip, {name}": partial(from_open_clip, name) for name in open_clip_kinds.FAMILIES},
    **{f"transformers, {name}": partial(from_transformers, name) for name in transformers_kinds.FAMILIES},
    "lit pair": lit_pair,
    **{name: partial(student, **changes) for name, changes in STUDENTS.items()},
    "student, pruned": pruned,
    "student, slim": slimmed,
}
