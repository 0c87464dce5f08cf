"""The dev figures during training: retrieval where there are captions, zero-shot where there are classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from clipette.data.dataset import Dataset
from clipette.data.loading import iter_images
from clipette.errors import ConfigError
from clipette.evaluate.zero_shot import class_vectors
from clipette.metrics.retrieval import hit_at, rank_relevant, relevance
from clipette.models.core import DualEncoder, ImageTower, TextTower
from clipette.models.inference import TorchEncoder
from clipette.train.frozen import cache_folder, image_trunk_features, text_trunk_features, trunk_is_frozen
from clipette.types import Encoded, Encoder, Failure, Floats, Sample

RANKS = (1, 5, 10)


class DevMeter:
    """Measures a student on one data set; what cannot change during the run (frozen trunks, texts) is encoded once.

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
        self._trunks: dict[str, Tensor] = {}
        self._readable: list[Sample] = []

    @property
    def figure(self) -> str:
        """The figure to select by, unless the recipe names another."""
        return "mean_recall" if self.retrieves else "top1"

    def measure(self) -> Mapping[str, float]:
        """``mean_recall`` and the six hit@k; ``top1``."""
        encoded = self._images()
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
        if self._frozen or self.texts is not None:
            self._known[name] = (self.texts or self.encoder).encode_texts(texts)
            return self._known[name]
        tower = self.encoder.model.text_tower()
        if not trunk_is_frozen(tower):
            return self.encoder.encode_texts(texts)
        if name not in self._trunks:
            self._trunks[name] = text_trunk_features(tower, texts, folder=cache_folder(), device=self.encoder.device)
        return self._headed(tower, self._trunks[name])

    def _images(self) -> Encoded:
        tower = self.encoder.model.image_tower()
        if not trunk_is_frozen(tower):
            return self.encoder.encode_samples(self.dataset.samples)
        if "images" not in self._trunks:
            settings = self.encoder.settings
            read = iter_images(self.dataset.samples, settings=settings, want=tower.preprocess.size)
            self._readable = [self.dataset.samples[at] for at, image in read if not isinstance(image, Failure)]
            self._trunks["images"] = image_trunk_features(
                tower,
                self._readable,
                policy=None,
                views=1,
                seed=0,
                folder=cache_folder(),
                device=self.encoder.device,
                settings=settings,
            )[:, 0]
        return Encoded(tuple(s.key for s in self._readable), self._headed(tower, self._trunks["images"]))

    def _headed(self, tower: ImageTower | TextTower, trunk: Tensor) -> Floats:
        """Unit vectors of kept trunk outputs [n, W] under the present head."""
        with torch.inference_mode():
            raw = tower.eval().head(trunk.to(self.encoder.device))
            out: Floats = torch.nn.functional.normalize(raw.float(), dim=-1).cpu().numpy()
        return out

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
