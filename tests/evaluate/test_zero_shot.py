"""Zero-shot figures against plain loops over items and classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from clipette.data.dataset import Dataset
from clipette.errors import DataError, ModelError, UnsupportedError
from clipette.evaluate.encoding import CachedEncoder, Settings
from clipette.evaluate.scoring import Scored, _ece
from clipette.evaluate.zero_shot import class_vectors, classifier_accuracy, zero_shot
from clipette.metrics.bootstrap import Bootstrap
from clipette.types import Encoded, Sample

from .fakes import CLASSES, FakeClassifier, FakeEncoder, captioned, classified, encoder_of, unit

NAME_ONLY = ("{}",)


def test_figures_are_those_of_plain_loops() -> None:
    data = classified(60, ("photo", "sketch"))
    encoder = encoder_of(data)
    result = zero_shot(encoder, data, NAME_ONLY, base_novel=True)
    first, halves, domains, classes = [], {"base": [], "novel": []}, {"photo": [], "sketch": []}, {}
    for sample in data.samples:
        cosines = [float(encoder.images[sample.key] @ encoder.texts[name]) for name in CLASSES]
        right = float(np.argmax(cosines) == sample.label)
        first.append(right)
        domains[sample.domain].append(right)
        classes.setdefault(sample.class_name, []).append(right)
        own = range(3) if sample.label < 3 else range(3, 5)
        halves["base" if sample.label < 3 else "novel"].append(
            float(max(own, key=lambda c: cosines[c]) == sample.label)
        )
    assert 0.3 < np.mean(first) < 0.95, "the fake must be neither perfect nor lost"
    assert result.top1.value == pytest.approx(np.mean(first))
    assert result.top5.value == 1.0
    assert result.per_class == {name: pytest.approx(np.mean(values)) for name, values in classes.items()}
    assert result.mean_per_class.value == pytest.approx(np.mean([np.mean(v) for v in classes.values()]))
    assert {d: f.value for d, f in result.by_domain.items()} == {
        d: pytest.approx(np.mean(v)) for d, v in domains.items()
    }
    base, novel = (np.mean(halves[half]) for half in ("base", "novel"))
    assert (result.base.value, result.novel.value) == (pytest.approx(base), pytest.approx(novel))
    assert result.harmonic_mean.value == pytest.approx(2 * base * novel / (base + novel))
    assert result.top1.low < result.top1.value < result.top1.high
    assert result.harmonic_mean.low < result.harmonic_mean.value < result.harmonic_mean.high
    assert result.confusion.trace() == pytest.approx(sum(first))
    assert result.items.sums["top1"].tolist() == first
    assert result.count == 60


def test_calibration_uses_the_models_own_scale() -> None:
    data = classified()
    soft, sharp = (encoder_of(data, logit_scale=scale) for scale in (1.0, 100.0))
    one, two = (zero_shot(encoder, data, NAME_ONLY) for encoder in (soft, sharp))
    assert one.top1 == two.top1
    logits = np.stack([soft.images[s.key] for s in data.samples]) @ np.stack([soft.texts[n] for n in CLASSES]).T
    confidence = np.exp(logits).max(1) / np.exp(logits).sum(1)
    assert one.confidence == pytest.approx(confidence, abs=1e-5)
    assert two.confidence.mean() > 0.9 > one.confidence.mean()
    assert one.ece.low <= one.ece.value <= one.ece.high


def test_the_interval_of_a_well_calibrated_model_holds_its_calibration_error() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1.0, 200)
    right = (generator.uniform(size=200) < confidence).astype(np.float64)
    zeros = np.zeros(200, dtype=np.int64)
    figure = _ece(Scored(zeros, right, right, zeros, confidence, None, {}), Bootstrap())
    # Means of resampled ECE lie far above it here: the plain percentile interval would begin above the figure.
    assert figure.low < figure.value < figure.high
    assert figure.low >= 0


def test_a_bias_changes_no_figure() -> None:
    data = classified()
    plain, biased = (zero_shot(encoder_of(data, logit_bias=bias), data, NAME_ONLY) for bias in (0.0, -10.0))
    assert biased.top1 == plain.top1
    assert biased.ece.value == pytest.approx(plain.ece.value, abs=1e-5)


def test_a_constant_model_is_at_chance() -> None:
    data = classified()
    encoder = encoder_of(data)
    encoder.images = dict.fromkeys(encoder.images, unit(np.ones(8)))
    encoder.texts = dict.fromkeys(encoder.texts, unit(np.ones(8)))
    result = zero_shot(encoder, data, NAME_ONLY, base_novel=True)
    assert result.top1.value == pytest.approx(0.2)
    assert result.base.value == pytest.approx(1 / 3)
    assert result.prediction_entropy.value == 0.0


def test_class_vectors_are_means_in_embedding_space() -> None:
    encoder = encoder_of(classified())
    encoder.texts |= {f"the {name}": unit(np.arange(8.0) + i) for i, name in enumerate(CLASSES)}
    vectors = class_vectors(encoder, CLASSES, ("{}", "the {}"))
    for name, vector in zip(CLASSES, vectors, strict=True):
        assert vector == pytest.approx(unit((encoder.texts[name] + encoder.texts[f"the {name}"]) / 2), abs=1e-6)
    assert len(encoder.texts_encoded) == len(set(encoder.texts_encoded)) == 10
    described = class_vectors(encoder, ("cat",), ("{}",), {"cat": ["the cat"]})
    assert described[0] == pytest.approx(vectors[0], abs=1e-6)


def test_a_chosen_list_of_classes_leaves_the_others_out_and_counts_them() -> None:
    data = classified(10)
    result = zero_shot(encoder_of(data), data, NAME_ONLY, class_names=("owl", "cat"))
    assert (result.count, result.unlabelled) == (4, 6)
    assert result.class_names == ("owl", "cat")
    assert set(result.labels.tolist()) == {0, 1}


def test_failures_are_counted_and_too_many_fail_the_run() -> None:
    data = classified(40)
    three = frozenset({"image1", "image2", "image3"})
    result = zero_shot(encoder_of(data, broken=three), data, NAME_ONLY)
    assert {failure.key for failure in result.failures} == three
    assert (result.count, result.unlabelled) == (37, 0)
    five = three | {"image4", "image5"}
    with pytest.raises(DataError, match="5 of 40 images of fake:pets"):
        zero_shot(encoder_of(data, broken=five), data, NAME_ONLY)
    assert zero_shot(encoder_of(data, broken=five), data, NAME_ONLY, settings=Settings(max_failures=0.2)).count == 35
    every = frozenset(sample.key for sample in data.samples)
    with pytest.raises(DataError, match="no image of fake:pets"):
        zero_shot(encoder_of(data, broken=every), data, NAME_ONLY, settings=Settings(max_failures=1.0))


def test_a_student_without_texts_borrows_those_of_its_space() -> None:
    data = classified()
    teacher = encoder_of(data, name="teacher")
    student = replace(teacher, texts=None, name="student")
    assert zero_shot(student, data, NAME_ONLY, text_encoder=teacher).top1 == zero_shot(teacher, data, NAME_ONLY).top1
    with pytest.raises(UnsupportedError, match="student has no text side"):
        zero_shot(student, data, NAME_ONLY)
    with pytest.raises(ModelError, match="cannot be compared"):
        zero_shot(student, data, NAME_ONLY, text_encoder=replace(teacher, space="another"))


def test_what_cannot_be_classified_is_refused_in_words() -> None:
    with pytest.raises(DataError, match="no class names"):
        zero_shot(encoder_of(captioned()), captioned(), NAME_ONLY)
    data = classified()
    with pytest.raises(DataError, match="no sample has one of the class names"):
        zero_shot(encoder_of(data), data, NAME_ONLY, class_names=("newt",))
    with pytest.raises(DataError, match="named twice"):
        zero_shot(encoder_of(data), data, NAME_ONLY, class_names=("cat", "cat"))


def test_a_classifier_gets_the_same_figures() -> None:
    data = classified()
    encoder = encoder_of(data)
    texts = np.stack([encoder.texts[name] for name in CLASSES[::-1]])
    logits = {key: (10.0 * texts @ vector).astype(np.float32) for key, vector in encoder.images.items()}
    ours = classifier_accuracy(FakeClassifier(CLASSES[::-1], logits), data)
    theirs = zero_shot(encoder, data, NAME_ONLY)
    assert ours.top1 == theirs.top1
    assert ours.per_class == theirs.per_class
    assert ours.ece.value == pytest.approx(theirs.ece.value, abs=1e-4)


def test_images_and_texts_are_encoded_once() -> None:
    data = classified()
    encoder = encoder_of(data, broken=frozenset({"image0"}))
    cached = CachedEncoder(encoder)
    first, again = (zero_shot(cached, data, NAME_ONLY) for _ in range(2))
    zero_shot(CachedEncoder(cached), Dataset("fake:half", data.samples[:20], CLASSES), NAME_ONLY)
    assert sorted(encoder.images_encoded) == sorted(sample.key for sample in data.samples)
    assert sorted(encoder.texts_encoded) == sorted(CLASSES)
    assert first.failures == again.failures
    assert len(first.failures) == 1


def test_cached_vectors_keep_the_order_asked_for() -> None:
    data = classified(10)
    encoder = encoder_of(data)
    cached = CachedEncoder(encoder)
    cached.encode_samples(data.samples[5:])
    encoded = cached.encode_samples(data.samples[::-1])
    assert encoded.keys == tuple(sample.key for sample in data.samples[::-1])
    assert (encoded.vectors == np.stack([encoder.images[key] for key in encoded.keys])).all()
    with pytest.raises(DataError, match="share a key"):
        CachedEncoder(encoder).encode_samples([Sample("image1"), replace(Sample("image1"), image=_Elsewhere())])


class _Elsewhere:
    location = "elsewhere.jpg"

    def read(self) -> bytes:
        raise NotImplementedError


def test_vectors_are_paired_by_key_whatever_order_comes_back() -> None:
    data = classified()
    encoder = encoder_of(data, broken=frozenset({"image4"}))

    class Backwards(FakeEncoder):
        def encode_samples(self, samples: Sequence[Sample], **more: object) -> Encoded:
            return encoder.encode_samples(samples[::-1])

    shuffled = zero_shot(Backwards(encoder.images, encoder.texts), data, NAME_ONLY)
    assert shuffled.top1 == zero_shot(encoder, data, NAME_ONLY).top1
    assert shuffled.items.keys == tuple(s.key for s in data.samples if s.key != "image4")
