"""A teacher of a few thousand weights and a folder of small pictures."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from clipette.data.preprocess import Preprocess
from clipette.models.core import Blueprint, DualEncoder, ImageTower, TextTower
from clipette.models.inference import TorchEncoder
from clipette.types import Ints

PREPROCESS = Preprocess((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), interpolation="bilinear")


class Letters:
    context_length = 12

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        rows = [[1 + zlib.crc32(letter.encode()) % 63 for letter in text[:12].ljust(12)] for text in texts]
        return {"input_ids": np.array(rows, dtype=np.int64)}


class LetterTrunk(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(64, width)
        self.places = nn.Parameter(torch.randn(12, width))

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        return (self.letters(tokens["input_ids"]) * self.places).sum(dim=1)


def tiny_model(dim: int = 8, *, seed: int = 0, text: bool = True, image: bool = True) -> DualEncoder:
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.GELU(), nn.Flatten())
    image_tower = ImageTower(
        trunk, nn.Linear(6 * 16, dim), preprocess=PREPROCESS, width=dim, blueprint=Blueprint("tiny_image", {"dim": dim})
    )
    text_tower = TextTower(
        LetterTrunk(10),
        nn.Linear(10, dim),
        tokenizer=Letters(),
        width=dim,
        blueprint=Blueprint("tiny_text", {"dim": dim}),
    )
    return DualEncoder(image_tower if image else None, text_tower if text else None, logit_scale=float(np.log(50.0)))


def tiny_teacher(dim: int = 8, *, seed: int = 0, text: bool = True, image: bool = True) -> TorchEncoder:
    return TorchEncoder(tiny_model(dim, seed=seed, text=text, image=image), name="tiny", device="cpu")


def write_picture(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        write_picture(folder / f"p{number:03d}.png", number)
    return folder
