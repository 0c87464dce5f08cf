"""One picture: which names, or which answers to a question, fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL.Image import Image

from clipette.data.images import decode_image
from clipette.data.prompts import question_prompts
from clipette.errors import ConfigError
from clipette.evaluate.plots import picture_bars
from clipette.evaluate.zero_shot import Templates, class_vectors
from clipette.types import Encoder, Floats


@dataclass(frozen=True, slots=True)
class Classified:
    """Labels best first. ``probabilities``: softmax over the labels of scale · cos + bias; they sum to 1.

    ``prompts``: for a question, the statement that stood for each answer.
    """

    model: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    cosines: tuple[float, ...]
    question: str | None = None
    prompts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        scores = [
            {"label": label, "probability": p, "cosine": c}
            for label, p, c in zip(self.labels, self.probabilities, self.cosines, strict=True)
        ]
        for score, prompt in zip(scores, self.prompts, strict=False):
            score["prompt"] = prompt
        return {"model": self.model, "question": self.question, "best": self.labels[0], "scores": scores}


def classify(
    encoder: Encoder, image: bytes | Image, labels: Sequence[str], templates: Templates = "single"
) -> Classified:
    """Which of ``labels`` fits ``image``: cosines with each label's prompts, averaged as in zero-shot classification.

    Raises ``ConfigError`` for fewer than two labels or one given twice, ``BadImageError``, ``UnsupportedError``.
    """
    names = _distinct(labels)
    return _ranked(encoder, image, names, class_vectors(encoder, names, templates))


def answer(encoder: Encoder, image: bytes | Image, question: str, answers: Sequence[str]) -> Classified:
    """Which of ``answers`` fits ``question`` about ``image``; each becomes a statement ("the dog is running").

    Raises as ``classify``.
    """
    prompts = question_prompts(question, _distinct(answers))
    return _ranked(encoder, image, list(answers), encoder.encode_texts(prompts), question, prompts)


def chart(image: bytes | Image, result: Classified, *, shown: int = 10) -> bytes:
    """A PNG: the picture, and bars of the best ``shown`` labels beside it."""
    opened = image if isinstance(image, Image) else decode_image(image, location="the picture")
    title = result.question or ""
    return picture_bars(opened, result.labels[:shown], result.probabilities[:shown], title=title, note=result.model)


def _distinct(labels: Sequence[str]) -> list[str]:
    names = [label.strip() for label in labels]
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"labels {names}: give at least two, none empty, each once")
    return names


def _ranked(
    encoder: Encoder,
    image: bytes | Image,
    labels: Sequence[str],
    texts: Floats,
    question: str | None = None,
    prompts: Sequence[str] = (),
) -> Classified:
    vector = encoder.encode_images([image])[0].astype(np.float64)
    cosines = texts.astype(np.float64) @ vector
    logits = encoder.logit_scale * cosines + encoder.logit_bias
    odds = np.exp(logits - logits.max())
    shares = odds / odds.sum()
    order = np.argsort(-shares, kind="stable")
    return Classified(
        model=encoder.name,
        labels=tuple(labels[i] for i in order),
        probabilities=tuple(float(shares[i]) for i in order),
        cosines=tuple(float(cosines[i]) for i in order),
        question=question,
        prompts=tuple(prompts[i] for i in order) if prompts else (),
    )
