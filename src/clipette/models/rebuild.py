"""Towers from their blueprints, untrained: the caller loads the weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from clipette.data.preprocess import Preprocess
from clipette.errors import ModelError
from clipette.models.core import Blueprint, ImageTower, TextTower
from clipette.models.heads import build_head
from clipette.models.open_clip_models import rebuild_open_clip_image, rebuild_open_clip_text
from clipette.models.prompted import prompted_image
from clipette.models.prompted_text import rebuilt_context, rebuilt_known
from clipette.models.pruned import shape_as
from clipette.models.slim import shape_channels
from clipette.models.spec import HeadSpec, PromptSpec
from clipette.models.students import hf_tower, make_timm, small_trunk
from clipette.models.text import TableTextTrunk
from clipette.models.tokenizers import HFTokenizer, OpenClipTokenizer
from clipette.models.transformers_models import rebuild_transformers_image, rebuild_transformers_text
from clipette.runtime.tokens import TableTokenizer
from clipette.runtime.words import WordTokenizer

Arguments = Mapping[str, Any]
Assets = Mapping[str, bytes]


def _timm(arguments: Arguments, assets: Assets) -> ImageTower:
    size = tuple(arguments["size"])
    trunk = make_timm(arguments["name"], dict(arguments["args"]), (size[0], size[1]))
    head = HeadSpec(**arguments["head"])
    dim = arguments["dim"]
    built = build_head(head.kind, arguments["width"], dim, head.hidden, head.dropout, layers=head.layers)
    preprocess = Preprocess.from_dict(arguments["preprocess"])
    return ImageTower(trunk, built, preprocess=preprocess, width=dim, blueprint=Blueprint("timm", arguments, assets))


def _hf_text(arguments: Arguments, assets: Assets) -> TextTower:
    from transformers import AutoConfig, AutoModel

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_bytes(assets["config.json"])
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    encoder = AutoModel.from_config(config, trust_remote_code=False)
    if encoder._modules.get("pooler") is not None:
        encoder.pooler = None
    tokenizer = HFTokenizer.from_assets(assets, context_length=arguments["context_length"])
    return hf_tower(encoder, tokenizer, arguments["pool"], HeadSpec(**arguments["head"]), arguments["dim"])


def _small_text(arguments: Arguments, assets: Assets) -> TextTower:
    if arguments["tokenizer"] == "words":
        tokenizer: Any = WordTokenizer.from_assets(assets)
    else:
        tokenizer = OpenClipTokenizer.clip(context_length=arguments["context_length"])
    head = HeadSpec(**arguments["head"])
    built = build_head(head.kind, arguments["width"], arguments["dim"], head.hidden, head.dropout, layers=head.layers)
    blueprint = Blueprint("small_text", arguments, assets)
    return TextTower(small_trunk(arguments), built, tokenizer=tokenizer, width=arguments["dim"], blueprint=blueprint)


def table_text_tower(texts: tuple[str, ...], vectors: torch.Tensor) -> TextTower:
    """A text side of stored vectors only: ``texts[i]`` ↔ ``vectors[i]`` [N, D]."""
    tokenizer = TableTokenizer(texts)
    dim = int(vectors.shape[1])
    blueprint = Blueprint("table_text", {"rows": len(texts), "dim": dim}, tokenizer.assets())
    return TextTower(TableTextTrunk(vectors), torch.nn.Identity(), tokenizer=tokenizer, width=dim, blueprint=blueprint)


def _table_text(arguments: Arguments, assets: Assets) -> TextTower:
    texts = tuple(json.loads(assets["texts.json"]))
    return table_text_tower(texts, torch.zeros(arguments["rows"], arguments["dim"]))


def _headed(side: str) -> Callable[[Arguments, Assets], Any]:
    def build(arguments: Arguments, assets: Assets) -> Any:
        inner = build_tower(Blueprint(arguments["inner"]["kind"], arguments["inner"]["arguments"], assets))
        head = HeadSpec(**arguments["head"])
        dim = arguments["dim"]
        built = build_head(head.kind, arguments["width"], dim, head.hidden, head.dropout, layers=head.layers)
        blueprint = Blueprint(f"headed_{side}", arguments, assets)
        if isinstance(inner, ImageTower):
            return ImageTower(inner, built, preprocess=inner.preprocess, width=dim, blueprint=blueprint)
        return TextTower(inner, built, tokenizer=inner.tokenizer, width=dim, blueprint=blueprint)

    return build


def _prompted_image(arguments: Arguments, assets: Assets) -> ImageTower:
    inner = build_tower(Blueprint(arguments["inner"]["kind"], arguments["inner"]["arguments"], assets))
    assert isinstance(inner, ImageTower)
    return prompted_image(inner, PromptSpec(**arguments["prompts"]))


def _learned_text(build: Callable[[TextTower, Arguments], TextTower]) -> Callable[[Arguments, Assets], TextTower]:
    def rebuild(arguments: Arguments, assets: Assets) -> TextTower:
        inner = build_tower(Blueprint(arguments["inner"]["kind"], arguments["inner"]["arguments"], assets))
        assert isinstance(inner, TextTower)
        return build(inner, arguments)

    return rebuild


def _pruned(arguments: Arguments, assets: Assets) -> ImageTower | TextTower:
    inner = build_tower(Blueprint(arguments["inner"]["kind"], arguments["inner"]["arguments"], assets))
    shape_as(inner, arguments["heads"], arguments["hidden"])
    return inner


def _slim(arguments: Arguments, assets: Assets) -> ImageTower:
    inner = build_tower(Blueprint(arguments["inner"]["kind"], arguments["inner"]["arguments"], assets))
    assert isinstance(inner, ImageTower)
    shape_channels(inner, arguments["channels"])
    return inner


BUILDERS: dict[str, Callable[[Arguments, Assets], ImageTower | TextTower]] = {
    "timm": _timm,
    "hf_text": _hf_text,
    "small_text": _small_text,
    "table_text": _table_text,
    "headed_image": _headed("image"),
    "prompted_image": _prompted_image,
    "context_text": _learned_text(rebuilt_context),
    "known_text": _learned_text(rebuilt_known),
    "headed_text": _headed("text"),
    "pruned_image": _pruned,
    "pruned_text": _pruned,
    "slim_image": _slim,
    "open_clip_image": rebuild_open_clip_image,
    "open_clip_text": rebuild_open_clip_text,
    "transformers_image": rebuild_transformers_image,
    "transformers_text": rebuild_transformers_text,
}


def build_tower(blueprint: Blueprint) -> ImageTower | TextTower:
    """An untrained tower. Raises ``ModelError`` on a kind this version does not know."""
    if blueprint.kind not in BUILDERS:
        raise ModelError(f"this Clipette cannot build a '{blueprint.kind}' tower: was it saved by a newer one?")
    return BUILDERS[blueprint.kind](blueprint.arguments, blueprint.assets)
