"""The dev figures during training: retrieval where there are captions, zero-shot where there are classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from clipette.data.dataset import Dataset
from clipette.errors import ConfigError
from clipette.evaluate.zero_shot import class_vectors
from clipette.metrics.retrieval import hit_at, rank_relevant, relevance
from clipette.models.core import DualEncoder
from clipette.models.inference import TorchEncoder
from clipette.types import Encoder, Floats

RANKS = (1, 5, 10)


class DevMeter:
    """Measures a student on one data set; what cannot change during the run (frozen texts) is encoded once.

    ``texts``: another encoder of the same space for the text side of an image-only student.
    """

    def __init__(
        self, student: DualEncoder, dataset: Dataset, *, templates: str, device: str, texts: Encoder | None = None
    ) -> None:
        self.encoder = TorchEncoder(student, name="student", space="training", device=device)
        self.texts = texts
        self.dataset = dataset
        self.templates = templates
        self.retrieves = any(sample.captions for sample in dataset.samples)
        self.classifies = bool(dataset.class_names) and any(s.label is not None for s in dataset.samples)
        if student.text is None and texts is None:
            raise ConfigError("the student has no text side to measure it by: give the teacher's, or leave dev out")
        if not (self.retrieves or self.classifies):
            raise ConfigError(f"dev data {dataset.reference} has neither captions nor class labels: nothing to measure")
        self._frozen = texts is not None or not any(p.requires_grad for p in student.text_tower().parameters())
        self._known: dict[str, Floats] = {}

    @property
    def figure(self) -> str:
        """The figure to select by, unless the recipe names another."""
        return "mean_recall" if self.retrieves else "top1"

    def measure(self) -> Mapping[str, float]:
        """``mean_recall`` and the six hit@k; ``top1``."""
        encoded = self.encoder.encode_samples(self.dataset.samples)
        by_key = {key: row for row, key in enumerate(encoded.keys)}
        out: dict[str, float] = {}
        if self.retrieves:
            out.update(self._retrieval(encoded.vectors, by_key))
        if self.classifies:
            out["top1"] = self._zero_shot(encoded.vectors, by_key)
        return out

    def _texts(self, name: str, texts: Sequence[str]) -> Floats:
        if name in self._known:
            return self._known[name]
        vectors = (self.texts or self.encoder).encode_texts(texts)
        if self._frozen:
            self._known[name] = vectors
        return vectors

    def _retrieval(self, images: Floats, by_key: Mapping[str, int]) -> dict[str, float]:
        samples = [s for s in self.dataset.samples if s.captions and s.key in by_key]
        captions = [c for s in samples for c in s.captions]
        owners = np.array([row for row, s in enumerate(samples) for _ in s.captions])
        rows = np.array([by_key[s.key] for s in samples])
        texts = self._texts("captions", captions)
        pairs = relevance(owners, np.arange(len(captions)), queries=len(samples), items=len(captions))
        ranks = {
            "i2t": rank_relevant(images[rows], texts, pairs),
            "t2i": rank_relevant(texts, images[rows], pairs.transposed()),
        }
        figures = {f"{way}_hit@{k}": float(hit_at(ranks[way], k).mean()) for way in ranks for k in RANKS}
        return {"mean_recall": float(np.mean(list(figures.values()))), **figures}

    def _zero_shot(self, images: Floats, by_key: Mapping[str, int]) -> float:
        labelled = [(by_key[s.key], s.label) for s in self.dataset.samples if s.label is not None and s.key in by_key]
        rows, labels = (np.array(column) for column in zip(*labelled, strict=True))
        if self._frozen and "classes" in self._known:
            classes = self._known["classes"]
        else:
            classes = class_vectors(self.texts or self.encoder, self.dataset.class_names, self.templates)
            self._known["classes"] = classes
        return float(((images[rows] @ classes.T).argmax(axis=1) == labels).mean())
