"""Class bundles: the image tower and stored class vectors, no text tower; a text tower elsewhere can add classes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from clipette.data.prompts import class_prompts
from clipette.errors import ConfigError, ModelError, UnsupportedError
from clipette.evaluate.zero_shot import class_vectors
from clipette.export.bundle import write_bundle
from clipette.models.core import DualEncoder
from clipette.models.inference import TorchEncoder
from clipette.models.rebuild import table_text_tower
from clipette.runtime import BundleEncoder, open_bundle
from clipette.runtime.tokens import TableTokenizer
from clipette.types import Encoder


def with_classes(encoder: TorchEncoder, names: Sequence[str], templates: str) -> TorchEncoder:
    """The same model with stored class vectors in place of its text tower.

    A class is stored under its bare name; its vector is the mean of its prompts' (``templates``), as in zero-shot
    classification. Raises ``ConfigError`` for no name or one given twice.
    """
    chosen = _distinct(names)
    vectors = torch.from_numpy(class_vectors(encoder, chosen, templates))
    model = encoder.model
    text = table_text_tower(tuple(chosen), vectors)
    bias = None if model.logit_bias is None else float(model.logit_bias.detach())
    scale = float(model.logit_scale.detach())
    whole = DualEncoder(model.image, text, logit_scale=scale, logit_bias=bias)
    return TorchEncoder(whole, name=encoder.name, space=encoder.space, device="cpu")


def add_classes(bundle: str | Path, encoder: Encoder, names: Sequence[str]) -> tuple[str, ...]:
    """Extend a class bundle by ``names``, worded as its others; returns all its classes.

    Raises:
        UnsupportedError: the bundle has a text tower, and so needs no stored classes.
        ModelError: ``encoder`` is of another embedding space, or the bundle is damaged.
        ConfigError: a class that is there already, or given twice.
    """
    opened = open_bundle(bundle)
    text = opened.side("text")
    if text is None or text["tokenizer"].get("kind") != "stored":
        raise UnsupportedError(f"{bundle} is no class bundle: make one with clipette export --labels")
    if encoder.space != opened.manifest["space"]:
        raise ModelError(
            f"{encoder.name} is of the embedding space {encoder.space}, {bundle} of {opened.manifest['space']}: their "
            "vectors cannot be compared; name the model that the bundle was exported from, or its teacher"
        )
    # Names and vectors, checked against each other: a bundle that cannot be loaded is not written anew.
    before = BundleEncoder(opened)
    known = before.tokenizer.texts if isinstance(before.tokenizer, TableTokenizer) else ()
    fresh = _distinct(names)
    if there := [name for name in fresh if name in known]:
        raise ConfigError(f"{bundle} has the class '{there[0]}' already")
    templates = text.get("templates", "none")
    if not isinstance(templates, str):
        raise ModelError(f"{bundle}: damaged, its templates are no text; export the model again")
    stored = before.encode_texts(known)
    vectors = np.concatenate([stored, class_vectors(encoder, fresh, templates)])
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    files = {
        **opened.files,
        "classes.npy": buffer.getvalue(),
        "classes.json": json.dumps([*known, *fresh], ensure_ascii=False).encode(),
    }
    write_bundle(Path(bundle), {name: value for name, value in opened.manifest.items() if name != "files"}, files)
    return (*known, *fresh)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names as the wording ``none`` writes them, under which a bundle's class is found again."""
    chosen = [prompts[0] for prompts in class_prompts([name.strip() for name in names if name.strip()], "none")]
    if not chosen:
        raise ConfigError("no class: name one or more")
    twice = next((name for place, name in enumerate(chosen) if name in chosen[:place]), None)
    if twice is not None:
        raise ConfigError(f"the class '{twice}' is given twice")
    return chosen
