"""Towers as ONNX graphs: dynamic batch, unit-length output, weights inside one file."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from clipette.errors import ModelError, UnsupportedError
from clipette.models.core import ImageTower, TextTower
from clipette.models.open_clip_models import OpenClipText
from clipette.models.text import HFTextTrunk, SmallTextTrunk, encode_until_end, reads_until_end
from clipette.runtime.bundle import OPSET

# Protocol buffers end at 2 GiB, and a bundle keeps no weights beside its graphs.
LARGEST = 2 * 2**30 - 2**20
DYNAMIC = torch.export.Dim.DYNAMIC


class ImageGraph(nn.Module):
    """pixels [N, 3, H, W] → unit vectors [N, D]."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.tower(pixels).float(), dim=-1)


class TextGraph(nn.Module):
    """Token arrays [N, L] → unit vectors [N, D], all rows at the width of the batch.

    Training groups texts by length, which asks the data how to go on; a graph cannot.
    """

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        tokens = {"input_ids": input_ids}
        if attention_mask is not None:
            tokens["attention_mask"] = attention_mask
        return F.normalize(_whole_batch(self.tower, tokens).float(), dim=-1)


def _whole_batch(module: nn.Module, tokens: Mapping[str, Tensor]) -> Tensor:
    """``module(tokens)`` without grouping rows by length."""
    out: Tensor
    if isinstance(module, TextTower):
        out = module.head(_whole_batch(module.trunk, tokens))
    elif isinstance(module, HFTextTrunk):
        out = module.pooled(tokens)
    elif isinstance(module, SmallTextTrunk):
        out = _until_end(module.transformer, tokens["input_ids"])
    elif isinstance(module, OpenClipText) and isinstance(module.model, TextTransformer):
        out = _until_end(module.model, tokens["input_ids"])
    else:
        out = module(tokens)
    return out


def pads_behind_the_end(tower: TextTower) -> bool:
    """Whether a text's vector is the same at every width that holds the text, as under a causal mask."""
    trunk = tower.trunk
    inner = trunk.transformer if isinstance(trunk, SmallTextTrunk) else getattr(trunk, "model", None)
    return isinstance(inner, TextTransformer) and reads_until_end(inner)


def _until_end(transformer: TextTransformer, ids: Tensor) -> Tensor:
    return encode_until_end(transformer, ids, length=ids.shape[1])


def image_graph(tower: ImageTower) -> bytes:
    """The image tower as ONNX. Raises ``UnsupportedError`` where PyTorch cannot export it."""
    height, width = tower.preprocess.size
    # Two images: an export from one would take the batch for a constant.
    pixels = torch.zeros(2, 3, height, width)
    return _exported(ImageGraph(tower), (pixels,), {"pixels": {0: DYNAMIC}}, ["pixels"], "image")


def text_graph(tower: TextTower, *, dynamic_length: bool) -> bytes:
    """The text tower as ONNX; with ``dynamic_length`` it takes batches of any width up to the context length."""
    example = {name: torch.from_numpy(array) for name, array in tower.tokenizer(["a dog", "two black cats"]).items()}
    shape = {0: DYNAMIC, 1: DYNAMIC} if dynamic_length else {0: DYNAMIC}
    shapes = dict.fromkeys(example, shape)
    return _exported(TextGraph(tower), tuple(example.values()), shapes, list(example), "text")


def _innermost(error: BaseException) -> str:
    """The first line of what started it: the exporter's own words are advice to its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _exported(module: nn.Module, example: tuple[Any, ...], shapes: Any, inputs: list[str], side: str) -> bytes:
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > LARGEST:
        raise UnsupportedError(f"the {side} tower holds {size / 2**30:.1f} GiB of weights: one ONNX file ends at 2 GiB")
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter warns of its own inner workings.
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            program = torch.onnx.export(
                module.eval(),
                example,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=inputs,
                output_names=["vectors"],
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:  # the exporter wraps whatever any layer raises
            raise UnsupportedError(f"PyTorch cannot export this {side} tower to ONNX: {_innermost(error)}") from error
        finally:
            logging.disable(previous)
    if program is None:
        raise ModelError(f"PyTorch exported no graph of the {side} tower")
    buffer.write(program.model_proto.SerializeToString(deterministic=True))
    return buffer.getvalue()
