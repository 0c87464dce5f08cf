"""The text tower's share of bench-methods' tier 1: two of the teacher's six layers, frozen, and a head on them.

Ours and sentence-transformers' distillation of embeddings on the same captions, head and steps; scored by searching the
teacher's own image vectors with the student's words.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipette.models.core import Blueprint, DualEncoder, TextTower, set_trainable
from clipette.models.heads import build_head
from clipette.models.text import HFTextTrunk, keep_layers
from clipette.tasks.batch import Batch
from clipette.tasks.feed import CaptionIndex, Feed, FeedPlan
from clipette.tasks.objective import Objective, TeacherFacts
from clipette.tasks.outputs import StoredOutputs
from clipette.tasks.task import StepOutput, Task
from clipette.tasks.terms import read_terms
from clipette.train.frozen import text_trunk_features
from clipette.train.loop import Loop
from clipette.types import Floats
from method_heads import HIDDEN, Material, Sizes, Teacher
from method_sets import Doubles, Round
from peers import sentence_transformers_loss

LAYERS = (0, 5)
OURS: Mapping[str, Mapping[str, Any]] = {
    "text-cosine": {"text_cosine": 10},
    "text-cosine+neighbours": {"text_cosine": 10, "text_neighbours": 1},
}
# Name → which of their losses.
THEIRS = {"sentence-transformers-mse": "MSELoss", "sentence-transformers-cosine": "EmbedDistillLoss"}
ARMS = (*OURS, *THEIRS)


@dataclass(frozen=True)
class Texts:
    """The truncated tower and what its trunk says of all captions: of training, and of each scored part."""

    tower: TextTower
    train: Tensor
    parts: Mapping[str, Tensor]


def prepare_texts(part: Round, teacher: Teacher, cache: Path) -> Texts:
    """Cut the teacher's text tower to two layers and run it once over every caption."""
    tower = copy.deepcopy(teacher.encoder.model.text_tower())
    if not isinstance(tower.trunk, HFTextTrunk):
        raise SystemExit("the text tower's benchmark cuts layers of a Hugging Face encoder; this teacher has another")
    keep_layers(tower.trunk.encoder, LAYERS)
    set_trainable(tower, False)
    folder, device = cache / "trunks", torch.device("cpu")
    captions = CaptionIndex(part.train.samples).texts
    parts = {
        name: text_trunk_features(tower, each.texts, folder=folder, device=device)
        for name, each in part.parts().items()
    }
    return Texts(tower, text_trunk_features(tower, captions, folder=folder, device=device), parts)


class TheirText:
    """``tasks.task.Task`` around sentence-transformers' loss of one column of texts."""

    def __init__(self, student: DualEncoder, facts: TeacherFacts, name: str) -> None:
        self.inner = Objective(student, read_terms({"text_cosine": 1}), teacher=facts)
        self.call = sentence_transformers_loss(name)

    @property
    def student(self) -> DualEncoder:
        return self.inner.student

    @property
    def parts(self) -> nn.ModuleDict:
        return self.inner.parts

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        return self.inner.encode(batch)

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        return {}

    def loss(self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> StepOutput:
        value = self.call(features["student_text"], targets["teacher_text"])
        return StepOutput(value, {"peer": float(value.detach())})


def train_text(
    part: Round, material: Material, texts: Texts, teacher: Teacher, sizes: Sizes, name: str, seed: int
) -> dict[str, Doubles]:
    """One arm's scores, by part."""
    samples, encoder = part.train.samples, teacher.encoder
    captions = CaptionIndex(samples).texts
    outputs = StoredOutputs(material.store, samples, captions, seed=seed, images=False)
    settings = sizes.settings(len(samples))
    plan = FeedPlan(
        batch_size=settings.batch_size,
        seed=seed,
        preprocess=encoder.model.image_tower().preprocess,
        images=False,
        teacher_texts=True,
        text_trunk=texts.train,
        threads=1,
    )
    feed = Feed(samples, plan, outputs)
    width = int(texts.train.shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = build_head("residual", width, encoder.dim, HIDDEN, 0.0)
    blueprint = Blueprint("head only", {})
    tower = TextTower(nn.Identity(), head, tokenizer=texts.tower.tokenizer, width=encoder.dim, blueprint=blueprint)
    student = DualEncoder(None, tower)
    student.logit_scale.requires_grad_(False)
    facts = TeacherFacts(encoder.dim, encoder.logit_scale, encoder.logit_bias)
    task: Task
    if name in OURS:
        task = Objective(student, read_terms(OURS[name]), teacher=facts, seed=seed)
    else:
        task = TheirText(student, facts, THEIRS[name])
    with tempfile.TemporaryDirectory(prefix="clipette-arm-") as folder:
        loop = Loop(task, feed, settings, folder=Path(folder), seed=seed, device=torch.device("cpu"))
        try:
            loop.run(progress=False)
        finally:
            feed.close()
    return {
        name: each.values(material.said[_rows(material, each)], _headed(head, texts.parts[name]))
        for name, each in part.parts().items()
    }


def _rows(material: Material, part: Any) -> list[int]:
    from method_heads import identity

    return [material.scored.rows[identity(sample)] for sample in part.data.samples]


def _headed(head: nn.Module, trunk: Tensor) -> Floats:
    with torch.inference_mode():
        made: Floats = torch.nn.functional.normalize(head.eval()(trunk), dim=-1).numpy()
    return made
