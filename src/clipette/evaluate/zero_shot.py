"""Classification by class texts, or by a classifier: accuracy, calibration, base and novel, domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from clipette.data.dataset import Dataset
from clipette.data.prompts import class_prompts
from clipette.errors import DataError
from clipette.evaluate.encoding import ReadSamples, Settings, encode_dataset, pair_samples, text_side
from clipette.evaluate.results import ZeroShotResult
from clipette.evaluate.scoring import score_blocks, scored_result
from clipette.metrics.similarity import cosines
from clipette.types import Classifier, Encoder, Floats, Ints, Sample

Templates: TypeAlias = "str | Sequence[str]"


def class_vectors(
    encoder: Encoder,
    class_names: Sequence[str],
    templates: Templates = "single",
    descriptions: Mapping[str, Sequence[str]] | None = None,
    *,
    batch_size: int = 256,
) -> Floats:
    """One unit vector per class [C, D]: normalise(mean over the class's prompts of their unit vectors).

    CLIP's prompt ensemble (Radford et al., 2021, section 3.1.4): the mean is taken in embedding space. With
    ``descriptions`` (CuPL), a class's sentences join its templates. Each distinct prompt is encoded once.
    Raises ``UnsupportedError`` where the encoder has no text side.
    """
    prompts = class_prompts(class_names, templates, descriptions)
    flat = list(dict.fromkeys(prompt for each in prompts for prompt in each))
    row = {prompt: position for position, prompt in enumerate(flat)}
    vectors = encoder.encode_texts(flat, batch_size=batch_size)
    means = np.stack([vectors[[row[prompt] for prompt in each]].mean(axis=0, dtype=np.float64) for each in prompts])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(means / np.maximum(norms, 1e-12), dtype=np.float32)


def zero_shot(
    encoder: Encoder,
    dataset: Dataset,
    templates: Templates = "single",
    *,
    descriptions: Mapping[str, Sequence[str]] | None = None,
    class_names: Sequence[str] | None = None,
    text_encoder: Encoder | None = None,
    base_novel: bool = False,
    settings: Settings = Settings(),
) -> ZeroShotResult:
    """Classify each labelled image as the class text nearest to it; logits = scale * cos + bias.

    ``class_names``: the classes to choose from (default: the data set's); samples of other classes are left out and
    counted. ``text_encoder``: encodes the class texts for an image-only student of the same space. ``base_novel``: also
    accuracy of base images among base classes, of novel among novel, and their harmonic mean (CoOp's protocol; base =
    the first ceil(C / 2) of the classes). Confidences are softmax probabilities, for SigLIP models too.
    Raises ``DataError`` without class names or labelled images, and past ``settings.max_failures``.
    """
    names = _class_names(dataset, class_names)
    samples, labels = labelled(dataset.samples, names)
    _require_labels(dataset, samples)
    vectors = class_vectors(
        text_side(encoder, text_encoder), names, templates, descriptions, batch_size=settings.text_batch_size
    )
    read = encode_dataset(encoder, dataset, samples, settings)

    def logits(rows: slice) -> Floats:
        scaled = cosines(read.vectors[rows], vectors) * np.float32(encoder.logit_scale)
        return np.asarray(scaled + np.float32(encoder.logit_bias), dtype=np.float32)

    scored = score_blocks(logits, _kept_labels(read, samples, labels), len(names), base_novel)
    return scored_result(encoder.name, dataset, _title(templates, descriptions), names, read, scored, settings)


def classifier_accuracy(
    classifier: Classifier, dataset: Dataset, *, base_novel: bool = False, settings: Settings = Settings()
) -> ZeroShotResult:
    """``zero_shot``'s figures for a ``Classifier``: its own class names and logits count (templates: "classifier")."""
    names = tuple(classifier.class_names)
    samples, labels = labelled(dataset.samples, names)
    _require_labels(dataset, samples)
    encoded = classifier.classify_samples(samples, batch_size=settings.batch_size, progress=settings.progress)
    read = pair_samples(encoded, classifier.name, dataset, samples, settings)
    if read.vectors.shape[1] != len(names):
        raise DataError(f"{classifier.name} returned {read.vectors.shape[1]} logits for its {len(names)} classes")
    scored = score_blocks(lambda rows: read.vectors[rows], _kept_labels(read, samples, labels), len(names), base_novel)
    return scored_result(classifier.name, dataset, "classifier", names, read, scored, settings)


def labelled(samples: Sequence[Sample], class_names: Sequence[str]) -> tuple[list[Sample], Ints]:
    """The samples whose class is among ``class_names``, and its index there [N]."""
    index = {name: position for position, name in enumerate(class_names)}
    kept = [sample for sample in samples if sample.class_name is not None and sample.class_name in index]
    return kept, np.array([index[sample.class_name or ""] for sample in kept], dtype=np.int64)


def _class_names(dataset: Dataset, class_names: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(class_names) if class_names is not None else dataset.class_names
    if not names:
        raise DataError(f"{dataset.reference}: has no class names; give class_names, or measure retrieval instead")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{dataset.reference}: class {twice!r} is named twice; class names must differ")
    return names


def _require_labels(dataset: Dataset, samples: Sequence[Sample]) -> None:
    if not samples:
        raise DataError(f"{dataset.reference}: no sample has one of the class names; check the names and the split")


def _kept_labels(read: ReadSamples, samples: Sequence[Sample], labels: Ints) -> Ints:
    label = {sample.key: value for sample, value in zip(samples, labels, strict=True)}
    return np.array([label[sample.key] for sample in read.samples], dtype=np.int64)


def _title(templates: Templates, descriptions: Mapping[str, Sequence[str]] | None) -> str:
    name = templates if isinstance(templates, str) else " | ".join(templates)
    return f"{name} + descriptions" if descriptions else name
