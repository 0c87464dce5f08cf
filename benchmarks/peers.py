"""Other projects' own distillation losses, called as their users call them, on the work of bench-methods' tier 1.

Each is imported from where it is installed: this environment, or the folder of ``--peers`` (``pip install --target
FOLDER --no-deps torchdistill``; another environment's ``site-packages`` serves too). One that is absent is named as
missing. Their losses see the very tensors that ours see; optimiser, batches and steps are common.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from clipette.models.core import DualEncoder
from clipette.tasks.batch import Batch
from clipette.tasks.objective import Objective, TeacherFacts
from clipette.tasks.task import StepOutput, Task
from clipette.tasks.terms import read_terms

Call: TypeAlias = Callable[[Mapping[str, Tensor]], Tensor]
PAIRS = frozenset({"student_image", "student_text", "teacher_image", "teacher_text"})
CLASSES = frozenset({"student_image", "teacher_image", "student_classes", "teacher_classes"})


@dataclass(frozen=True)
class Peer:
    """One of a peer's losses. ``needs``: tensors it reads; ``build``: imports it and makes the call."""

    package: str
    about: str
    needs: frozenset[str]
    build: Callable[[], Call]


class PeerTask:
    """``tasks.task.Task`` around a loss that is not ours; what the student computes is our objective's."""

    def __init__(self, student: DualEncoder, facts: TeacherFacts, call: Call, needs: frozenset[str]) -> None:
        # A term that encodes what the peer reads; its value is never asked for.
        term = "clip" if "student_text" in needs else "image_cosine"
        self.inner = Objective(student, read_terms({term: 1}), teacher=facts)
        self.facts = facts
        self.call = call

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
        scale = torch.tensor(self.facts.scale)
        known = {**targets, **features, "student_scale": self.student.scale, "teacher_scale": scale}
        if self.facts.classes is not None:
            known |= {"student_classes": self.facts.classes, "teacher_classes": self.facts.classes}
        value = self.call(known)
        return StepOutput(value, {"peer": float(value.detach())}, {"peer": float(value.detach())})


def task_of(peer: Peer) -> Callable[[DualEncoder, TeacherFacts], Task]:
    """The peer's loss as the loop's task."""

    def build(student: DualEncoder, facts: TeacherFacts) -> Task:
        return PeerTask(student, facts, peer.build(), peer.needs)

    return build


# ---------------------------------------------------------------- open_clip


def _open_clip() -> Call:
    loss = importlib.import_module("open_clip.loss").DistillClipLoss()

    def call(t: Mapping[str, Tensor]) -> Tensor:
        given = (t["student_image"], t["student_text"], t["student_scale"])
        theirs = (t["teacher_image"], t["teacher_text"], t["teacher_scale"])
        # Its training loop adds both, with weight 1.
        return torch.stack(tuple(loss(*given, *theirs, output_dict=True).values())).sum()

    return call


def _task_loss() -> Call:
    """InfoNCE by open_clip: what torchdistill's losses of features are added to, as its users add a task loss."""
    loss = importlib.import_module("open_clip.loss").ClipLoss()
    return lambda t: loss(t["student_image"], t["student_text"], t["student_scale"])


# ---------------------------------------------------------------- torchdistill


def _torchdistill(name: str) -> Any:
    return getattr(importlib.import_module("torchdistill.losses.mid_level"), name)


def _outputs(value: Tensor) -> dict[str, dict[str, Tensor]]:
    """What torchdistill's hooks hand to its losses: module path → {"output": tensor}."""
    return {"model": {"output": value}}


def _logits(t: Mapping[str, Tensor], side: str) -> Tensor:
    return t[f"{side}_scale"] * t[f"{side}_image"] @ t[f"{side}_classes"].T


def _labels(t: Mapping[str, Tensor]) -> Tensor | None:
    labels = t["labels"]
    return labels if bool((labels >= 0).all()) else None


def _on_logits(name: str, **options: Any) -> Callable[[], Call]:
    def build() -> Call:
        loss = _torchdistill(name)("model", "output", "model", "output", **options)
        return lambda t: loss(_outputs(_logits(t, "student")), _outputs(_logits(t, "teacher")), _labels(t))

    return build


def _rkd() -> Call:
    loss = _torchdistill("RKDLoss")("model", "model", dist_factor=25.0, angle_factor=50.0, reduction="mean")
    task = _task_loss()
    return lambda t: task(t) + loss(_outputs(t["student_image"]), _outputs(t["teacher_image"]))


PEERS: Mapping[str, Peer] = {
    "open_clip": Peer(
        "open_clip", "DistillClipLoss: InfoNCE and the teacher's cross-entropy, 1 : 1", PAIRS, _open_clip
    ),
    "torchdistill-kd": Peer(
        "torchdistill",
        "KDLoss, temperature 1, half labels where there are any (its ImageNet configuration)",
        CLASSES | {"labels"},
        _on_logits("KDLoss", temperature=1.0, alpha=0.5),
    ),
    "torchdistill-dist": Peer(
        "torchdistill",
        "DISTLoss, beta 1, gamma 1, tau 1",
        CLASSES,
        _on_logits("DISTLoss", beta=1.0, gamma=1.0, tau=1.0),
    ),
    "torchdistill-standardized": Peer(
        "torchdistill",
        "LogitStdKDLoss, temperature 2",
        CLASSES,
        _on_logits("LogitStdKDLoss", temperature=2.0, alpha=0.0),
    ),
    "torchdistill-rkd": Peer(
        "torchdistill", "RKDLoss 25 : 50 on image vectors, beside open_clip's ClipLoss", PAIRS, _rkd
    ),
}


def sentence_transformers_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """sentence-transformers' distillation of embeddings (``MSELoss``), on embeddings already computed."""
    losses = importlib.import_module("sentence_transformers.sentence_transformer.losses")
    loss = getattr(losses, name)(nn.Identity())
    return lambda student, teacher: loss.compute_loss_from_embeddings([student], [teacher])


def add_path(folder: Path | None) -> None:
    """Let packages of ``folder`` be found, behind this environment's own."""
    if folder is not None:
        if not folder.is_dir():
            raise SystemExit(f"--peers {folder}: no such folder")
        sys.path.append(str(folder.resolve()))


def missing(packages: tuple[str, ...] = ("open_clip", "torchdistill", "sentence_transformers")) -> dict[str, str]:
    """Packages that cannot be found, with what to do."""
    how = "pip install --target FOLDER --no-deps {}, then --peers FOLDER"
    return {name: how.format(name) for name in packages if importlib.util.find_spec(name) is None}
