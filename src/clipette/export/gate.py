"""Is a smaller bundle still the model it was? Measured on the user's data, against a stated budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from clipette.data.dataset import Dataset
from clipette.data.prompts import class_prompts
from clipette.errors import GateError
from clipette.evaluate.encoding import CachedEncoder
from clipette.evaluate.task import task_figure, task_templates
from clipette.evaluate.wording import known_texts
from clipette.evaluate.zero_shot import class_vectors
from clipette.export.quantize import median_cosine
from clipette.types import Encoder


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be lost. ``cosine``: the least median cosine to the full bundle's vectors, of images and of texts;
    ``loss``: the most that the task figure may fall, as a share of the full bundle's."""

    cosine: float = 0.99
    loss: float = 0.01


@dataclass(frozen=True, slots=True)
class Quality:
    """A smaller bundle against the full one. ``figure``: ``mean_recall`` where the data has captions, ``top1`` where it
    has classes, else None (nor where a class bundle knows none of its texts); ``loss`` = 1 - after / before."""

    cosine_images: float
    cosine_texts: float | None
    figure: str | None
    before: float | None
    after: float | None

    @property
    def loss(self) -> float | None:
        """The share of the task figure that is lost; None without one."""
        return None if self.before is None or self.after is None or not self.before else 1 - self.after / self.before

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return {**asdict(self), "loss": self.loss}

    def faults(self, budget: Budget) -> list[str]:
        """What exceeds the budget, in words."""
        out = []
        for side, cosine in (("images", self.cosine_images), ("texts", self.cosine_texts)):
            if cosine is not None and not cosine >= budget.cosine:
                out.append(f"median cosine of {side} {cosine:.4f} < {budget.cosine:g}")
        if self.loss is not None and not self.loss <= budget.loss:
            out.append(
                f"{self.figure} falls from {self.before:.4f} to {self.after:.4f}, {self.loss:.1%} > {budget.loss:.1%}"
            )
        return out


def measure_quality(full: Encoder, smaller: Encoder, data: Dataset) -> Quality:
    """Both bundles on ``data``."""
    one, other = CachedEncoder(full), CachedEncoder(smaller)
    images = median_cosine(*(each.encode_samples(data.samples).vectors for each in (one, other)))
    texts = figure = before = after = None
    captions = list(dict.fromkeys(caption for sample in data.samples for caption in sample.captions))
    if full.can_encode_text and (captions or data.class_names) and _knows(one.encoder, captions, data.class_names):
        templates = task_templates(one.encoder, data)
        if captions:
            texts = median_cosine(one.encode_texts(captions), other.encode_texts(captions))
        else:
            texts = median_cosine(*(class_vectors(each, data.class_names, templates) for each in (one, other)))
        (figure, first), (_, second) = (task_figure(each, data, templates) for each in (one, other))
        before, after = first.value, second.value
    return Quality(images, texts, figure, before, after)


def _knows(encoder: Encoder, captions: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether the bundle can encode the data's texts: one of stored class vectors knows its own alone."""
    known = known_texts(encoder)
    return known is None or set(captions or (each[0] for each in class_prompts(classes, "none"))) <= set(known)


def refuse(tried: Sequence[tuple[str, Quality]], budget: Budget, advice: str) -> GateError:
    """The error of a gate that nothing passed, with every figure; ``advice``: what else could be tried."""
    lines = [f"  {name}: {'; '.join(quality.faults(budget))}" for name, quality in tried]
    return GateError(
        "nothing was written, for the gate was not passed:\n" + "\n".join(lines) + "\n"
        f"{advice}, or state a larger budget (--cosine, --loss)"
    )
