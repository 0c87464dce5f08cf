"""The study of prompts: figures equal zero-shot's, choices use the dev part alone, each text once, and the page."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.evaluate.fakes import FakeEncoder, unit

from clipette.data.dataset import Dataset
from clipette.data.prompts import class_prompts
from clipette.data.refs import FileImage
from clipette.errors import ConfigError, DataError, UnsupportedError
from clipette.evaluate import prompt_wordings
from clipette.evaluate.encoding import Settings
from clipette.evaluate.prompt_ensembles import Labelled, greedy, mixed, weighted
from clipette.evaluate.prompts import PromptStudy, StudySettings, study_prompts
from clipette.evaluate.prompts_page import COLUMNS, confusions_csv, pair_columns, prompts_csv, prompts_page, verdict
from clipette.evaluate.results import Figure
from clipette.evaluate.zero_shot import zero_shot
from clipette.metrics.bootstrap import Bootstrap
from clipette.types import Floats, Sample

CLASSES = ("cat", "dog", "fox", "owl", "elk")
WIDTH = 12
QUICK = Settings(bootstrap=Bootstrap(200))
GOOD, BAD, LEFT, RIGHT = "a photo of a {}.", "the {} of a thing", "left {}", "right {}"
TEMPLATES = (GOOD, BAD, LEFT, RIGHT)
TOLD = {name: (f"{name} has fur", f"a {name} in grass") for name in CLASSES}


def pets(each: int = 12, seed: int = 0) -> tuple[Dataset, FakeEncoder]:
    """LEFT knows the first classes well and nothing of the others, RIGHT the last, BAD none; cat and dog look alike."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((5, WIDTH)))
    centres[1] = unit(centres[0] + 0.35 * unit(rng.standard_normal(WIDTH)))
    junk = np.linalg.svd(centres)[2][-1]  # at a right angle to every class
    off = {GOOD: [0.5] * 5, BAD: [3.0] * 5, LEFT: [0.3, 0.3, 0.3, 6.0, 6.0], RIGHT: [6.0, 6.0, 0.3, 0.3, 0.3]}
    texts: dict[str, Floats] = {}
    for template, noise in off.items():
        for label, (own,) in enumerate(class_prompts(CLASSES, (template,))):
            drawn = unit(centres[label] + noise[label] * unit(rng.standard_normal(WIDTH)))
            texts[own] = drawn if noise[label] < 5 else unit(junk)
    for label, name in enumerate(CLASSES):
        for sentence in TOLD[name]:
            texts[sentence] = unit(centres[label] + 0.4 * unit(rng.standard_normal(WIDTH)))
    samples, images = [], {}
    for place in range(5 * each):
        key, label = f"image{place}", place % 5
        samples.append(Sample(key, FileImage(f"pets/{key}.jpg"), class_name=CLASSES[label], label=label))
        images[key] = unit(centres[label] + 0.9 * unit(rng.standard_normal(WIDTH)))
    return Dataset("fake:pets", tuple(samples), CLASSES), FakeEncoder(images, texts, dim=WIDTH, logit_scale=20.0)


def study(dataset: Dataset, encoder: FakeEncoder, templates: Sequence[str] = TEMPLATES, **more: object) -> PromptStudy:
    return study_prompts(encoder, dataset, templates, settings=QUICK, **more)  # type: ignore[arg-type]


def parts(dataset: Dataset, seed: int = 0) -> tuple[Dataset, Dataset]:
    """The dev and the test part, as two data sets: what a study divides by itself, seen from outside."""
    encoder = FakeEncoder({s.key: unit(np.ones(WIDTH)) for s in dataset.samples}, {}, dim=WIDTH)
    from clipette.evaluate.prompts import _parts

    samples = [s for s in dataset.samples if s.class_name]
    (dev, test), _ = _parts(encoder, dataset, None, samples, StudySettings(seed=seed), QUICK)
    return (
        dataset.subset(s.key for s in dev.read.samples),
        dataset.subset(s.key for s in test.read.samples),
    )


# ---------------------------------------------------------------- figures


def test_each_figure_is_zero_shots_on_the_test_part() -> None:
    dataset, encoder = pets()
    found = study(dataset, encoder, descriptions={"cupl": TOLD})
    _, test = parts(dataset)
    for template in TEMPLATES:
        assert found.wording(template).test == zero_shot(encoder, test, template, settings=QUICK).top1
    told = zero_shot(encoder, test, (), descriptions=TOLD, settings=QUICK).top1
    assert found.wording("cupl").test == told
    assert (found.wording("cupl").kind, found.wording("cupl").texts) == ("descriptions", 2)
    together = zero_shot(encoder, test, TEMPLATES, settings=QUICK).top1
    alone = study(dataset, encoder)
    assert alone.wording("mean of all").test == together
    assert alone.wording("mean of all").texts == 4


def test_a_sets_templates_count_alone_and_their_mean_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipette.data import prompts

    dataset, encoder = pets()
    monkeypatch.setitem(prompts.TEMPLATES, "sides", (LEFT, RIGHT))
    found = study(dataset, encoder, ["sides", GOOD, LEFT])
    assert [each.name for each in found.wordings][:4] == [LEFT, RIGHT, GOOD, "sides"]
    _, test = parts(dataset)
    assert found.wording("sides").test == zero_shot(encoder, test, (LEFT, RIGHT), settings=QUICK).top1
    assert found.wording("sides").weights == {LEFT: 0.5, RIGHT: 0.5}


def test_gains_are_paired() -> None:
    dataset, encoder = pets()
    found = study(dataset, encoder)
    base = found.wording(GOOD)
    assert (base.gain.value, base.gain.low, base.gain.high) == (0, 0, 0)
    for each in found.wordings:
        assert each.gain.value == pytest.approx(each.test.value - base.test.value)
    bad = found.wording(BAD).gain
    assert bad.high is not None
    assert bad.high < 0
    assert verdict(bad) == "bad"
    assert verdict(base.gain) == ""
    assert verdict(Figure(0.1, 0.02, 0.2)) == "good"


def test_images_and_texts_are_encoded_once() -> None:
    dataset, encoder = pets()
    study(dataset, encoder, [*TEMPLATES, GOOD], descriptions={"cupl": TOLD})
    assert sorted(encoder.images_encoded) == sorted(s.key for s in dataset.samples)
    assert sorted(encoder.texts_encoded) == sorted(encoder.texts or ())


def test_texts_have_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eighty templates of a thousand classes are minutes."""
    seen: list[tuple[str, int | None, bool]] = []

    def watched(iterable: Any, *, total: int | None, description: str, enabled: bool, **more: Any) -> Any:
        seen.append((description, total, enabled))
        return iterable

    monkeypatch.setattr(prompt_wordings, "track", watched)
    dataset, encoder = pets()
    settings = Settings(bootstrap=Bootstrap(200), progress=True, text_batch_size=3)
    study_prompts(encoder, dataset, TEMPLATES, descriptions={"cupl": TOLD}, settings=settings)
    assert seen == [("class texts", len(encoder.texts or ()), True)]


# ---------------------------------------------------------------- parts


def test_the_parts_share_no_image_and_halve_each_class() -> None:
    dataset, _ = pets(each=7)
    dev, test = parts(dataset)
    assert not {s.key for s in dev.samples} & {s.key for s in test.samples}
    assert len(dev) + len(test) == 35
    for name in CLASSES:
        assert sum(s.class_name == name for s in dev.samples) == 4
    again = parts(replace(dataset, samples=tuple(reversed(dataset.samples))))
    assert {s.key for s in again[0].samples} == {s.key for s in dev.samples}, "by keys, not by order"
    assert {s.key for s in parts(dataset, seed=1)[0].samples} != {s.key for s in dev.samples}


def test_a_class_of_one_image_is_tested_and_all_such_cannot_be_divided() -> None:
    dataset, encoder = pets(each=1)
    with pytest.raises(DataError, match="no class has two images"):
        study(dataset, encoder)
    more, encoder = pets(each=3)
    lonely = replace(more, samples=tuple(s for s in more.samples if s.label != 0 or s.key == "image0"))
    dev, test = parts(lonely)
    assert "image0" in {s.key for s in test.samples}
    assert not any(s.label == 0 for s in dev.samples)


def scrambled(dataset: Dataset) -> Dataset:
    """The same images under the next class's name."""
    index = {name: place for place, name in enumerate(CLASSES)}
    moved = [
        replace(s, class_name=CLASSES[(index[s.class_name or ""] + 1) % 5], label=(index[s.class_name or ""] + 1) % 5)
        for s in dataset.samples
    ]
    return replace(dataset, samples=tuple(moved))


def test_choices_see_the_dev_part_alone() -> None:
    """Other labels on the test images change what is measured, and nothing that is chosen."""
    dataset, encoder = pets()
    dev, test = parts(dataset)
    true = study(test, encoder, dev=dev)
    false = study(scrambled(test), encoder, dev=dev)
    for name in ("best on dev", "greedy on dev", "weighted on dev"):
        assert true.wording(name).weights == false.wording(name).weights
        assert true.wording(name).dev == false.wording(name).dev
        assert true.wording(name).test.value > false.wording(name).test.value
    assert [(p.added, p.dev, p.kept) for p in true.path] == [(p.added, p.dev, p.kept) for p in false.path]
    other = study(test, encoder, dev=scrambled(dev))
    assert other.wording("weighted on dev").weights != true.wording("weighted on dev").weights
    assert (true.dev_images, true.test_images) == (len(dev), len(test))
    divided = study(dataset, encoder)
    assert divided.wordings == true.wordings


def test_dev_images_may_not_be_test_images() -> None:
    dataset, encoder = pets()
    with pytest.raises(DataError, match="60 images are both in fake:pets and in fake:pets"):
        study(dataset, encoder, dev=dataset)
    with pytest.raises(DataError, match="to choose prompts on"):
        study(dataset, encoder, dev=Dataset("fake:cars", (Sample("x", class_name="car", label=0),), ("car",)))


# ---------------------------------------------------------------- ensembles


def images(encoder: FakeEncoder, dataset: Dataset) -> Labelled:
    labels = np.array([s.label for s in dataset.samples])
    return Labelled(np.stack([encoder.images[s.key] for s in dataset.samples]), labels, 20.0)


def stack(encoder: FakeEncoder, templates: Sequence[str] = TEMPLATES) -> Floats:
    assert encoder.texts is not None
    return np.stack([[encoder.texts[own] for (own,) in class_prompts(CLASSES, (t,))] for t in templates])


def slow_score(rows: Sequence[int], vectors: Floats, dev: Labelled) -> tuple[float, float]:
    """Accuracy and minus cross-entropy of the mean of ``rows``, in loops."""
    right, total = 0.0, 0.0
    for image, label in zip(dev.vectors.astype(np.float64), dev.labels, strict=True):
        cosines = []
        for c in range(5):
            mean = sum(vectors[row, c].astype(np.float64) for row in rows)
            cosines.append(float(image @ mean / np.linalg.norm(mean)))
        right += max(range(5), key=lambda c: cosines[c]) == label
        total += 20.0 * cosines[label] - np.log(sum(np.exp(20.0 * z) for z in cosines))
    return right / len(dev.labels), total / len(dev.labels)


def test_forward_selection_is_the_slow_one() -> None:
    dataset, encoder = pets()
    dev, vectors = images(encoder, dataset), stack(encoder)
    order: list[int] = []
    best: list[tuple[float, float]] = []
    while len(order) < 4:
        left = [row for row in range(4) if row not in order]
        scored = {row: slow_score([*order, row], vectors, dev) for row in left}
        order.append(max(left, key=lambda row: scored[row]))
        best.append(scored[order[-1]])
    found = greedy(vectors, dev, 12)
    assert list(found.order) == order
    assert np.allclose(found.scores, best, atol=1e-4)
    assert found.kept == 1 + best.index(max(best))
    assert greedy(vectors, dev, 2).order == tuple(order[:2])


def test_weights_reach_the_lowest_cross_entropy_of_a_grid() -> None:
    dataset, encoder = pets()
    dev, vectors = images(encoder, dataset), stack(encoder, (LEFT, RIGHT, BAD))

    def loss(weights: Sequence[float]) -> float:
        return -dev.score(mixed(vectors, weights))[1]

    grid = [(a / 20, b / 20, (20 - a - b) / 20) for a, b in itertools.product(range(21), repeat=2) if a + b <= 20]
    found = weighted(vectors, dev, steps=300)
    assert found.sum() == pytest.approx(1)
    assert loss(found.tolist()) <= min(loss(weights) for weights in grid) + 1e-3
    assert loss(found.tolist()) < loss((1 / 3, 1 / 3, 1 / 3))
    # The first step's gradient, by differences of softmax(θ): the best wording gains weight, the worst loses it.
    first = weighted(vectors, dev, steps=1)
    slopes = []
    for row in range(3):
        logs = np.zeros(3)
        logs[row] = 1e-3
        shares = np.exp(logs) / np.exp(logs).sum()
        slopes.append(loss(shares.tolist()) - loss((1 / 3, 1 / 3, 1 / 3)))
    assert [share > 1 / 3 for share in first] == [slope < 0 for slope in slopes] or len({*np.sign(slopes)}) == 1


def test_two_halves_make_a_whole() -> None:
    dataset, encoder = pets(each=24)
    found = study(dataset, encoder, [BAD, LEFT, RIGHT])
    assert set(found.wording("greedy on dev").weights) >= {LEFT, RIGHT}
    assert found.wording("greedy on dev").test.value > found.wording("best on dev").test.value
    shares = found.wording("weighted on dev").weights
    assert shares[BAD] == min(shares.values())
    assert sum(point.kept for point in found.path) == len(found.wording("greedy on dev").weights)


def test_one_wording_is_no_ensemble() -> None:
    dataset, encoder = pets()
    found = study(dataset, encoder, [GOOD])
    assert [each.name for each in found.wordings] == [GOOD, "best on dev"]
    assert prompts_page(found)


# ---------------------------------------------------------------- confusion


def test_confused_pairs_by_hand() -> None:
    """Two classes whose texts are swapped by one template, and three images."""
    eye = np.eye(WIDTH, dtype=np.float32)
    texts = {"a a": eye[0], "a b": eye[1], "a c": eye[2], "b a": eye[1], "b b": eye[0], "b c": eye[2]}
    samples = [Sample(f"{name}{i}", class_name=name, label=k) for k, name in enumerate("abc") for i in range(4)]
    encoder = FakeEncoder({s.key: eye[s.label or 0] for s in samples}, texts, dim=WIDTH)
    found = study(Dataset("fake:letters", tuple(samples), ("a", "b", "c")), encoder, ["a {}", "b {}"])
    (pair,) = found.pairs
    assert (pair.first, pair.second, pair.images, pair.mean) == ("a", "b", 4, 0.5)
    assert (pair.shares["a {}"], pair.shares["b {}"], pair.shares["best on dev"]) == (0, 1, 0)
    rows = list(csv.DictReader(io.StringIO(confusions_csv(found))))
    assert {"first": "a", "second": "b", "images": "4", "wording": "b {}", "share": "1.0"} in rows


def test_the_lookalikes_lead() -> None:
    dataset, encoder = pets(each=24)
    found = study(dataset, encoder, [GOOD])
    assert {found.pairs[0].first, found.pairs[0].second} == {"cat", "dog"}
    means = [pair.mean * pair.images for pair in found.pairs]
    assert means == sorted(means, reverse=True)


def test_transfer_is_the_rank_correlation() -> None:
    stats = pytest.importorskip("scipy.stats", reason="SciPy is the yardstick, no dependency")
    dataset, encoder = pets(each=6)
    found = study(dataset, encoder)
    values = [(each.dev.value, each.test.value) for each in found.wordings if each.kind == "template"]
    assert found.transfer() == pytest.approx(stats.spearmanr(*zip(*values, strict=True)).statistic)
    assert found.to_json()["transfer"] == found.transfer()
    assert np.isnan(study(dataset, encoder, [GOOD, BAD]).transfer())
    assert found.wording("mean of all").kind == "mean"


# ---------------------------------------------------------------- refusals


def test_what_cannot_be_studied_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, encoder = pets()
    with pytest.raises(ConfigError, match="unknown templates 'openai'"):
        study(dataset, encoder, ["openai"])
    with pytest.raises(ConfigError, match=r"the baseline 'a \{\}' is not among the wordings"):
        study(dataset, encoder, baseline="a {}")
    with pytest.raises(ConfigError, match="'best on dev'"):
        study(dataset, encoder, descriptions={"best on dev": TOLD})
    with pytest.raises(DataError, match="1 of 5 classes have no description: 'elk'"):
        study(dataset, encoder, descriptions={"cupl": {k: v for k, v in TOLD.items() if k != "elk"}})
    with pytest.raises(DataError, match="two classes or more"):
        study(Dataset("fake:none", (Sample("x"),)), encoder)
    with pytest.raises(UnsupportedError, match="no text side"):
        study(dataset, replace(encoder, texts=None))
    with pytest.raises(ConfigError, match="dev share 1"):
        StudySettings(dev_share=1)
    known = frozenset(own for (own,) in class_prompts(CLASSES, (LEFT,)))
    monkeypatch.setattr(prompt_wordings, "known_texts", lambda texts: known)
    found = study(dataset, encoder, [GOOD, LEFT])
    assert (found.baseline, found.left_out) == (LEFT, (GOOD,))
    assert GOOD in prompts_page(found)
    with pytest.raises(ConfigError, match="none of these 1 wordings"):
        study(dataset, encoder, [GOOD])


def test_unreadable_images_are_named() -> None:
    dataset, encoder = pets()
    found = study(dataset, replace(encoder, broken=frozenset({"image3"})))
    assert [failure.key for failure in found.failures] == ["image3"]
    assert found.dev_images + found.test_images == 59
    assert "truncated" in prompts_page(found)


def test_an_image_only_student_borrows_texts() -> None:
    dataset, encoder = pets()
    student = replace(encoder, texts=None, name="student")
    assert study(dataset, student, text_encoder=encoder).wordings == study(dataset, encoder).wordings


# ---------------------------------------------------------------- what is written


def renamed(dataset: Dataset, names: Mapping[str, str]) -> Dataset:
    samples = tuple(replace(s, class_name=names[s.class_name or ""]) for s in dataset.samples)
    return replace(dataset, samples=samples, class_names=tuple(names[name] for name in dataset.class_names))


def test_the_page_is_whole_escaped_and_alone() -> None:
    dataset, encoder = pets()
    evil = {name: f"<b>{name}</b>" for name in CLASSES}
    texts = dict(encoder.texts or {})
    for template in TEMPLATES:
        for (own,), (new,) in zip(
            class_prompts(CLASSES, (template,)), class_prompts([*evil.values()], (template,)), strict=True
        ):
            texts[new] = texts[own]
    found = study(renamed(dataset, evil), replace(encoder, texts=texts, name="<i>model</i>"))
    page = prompts_page(found)
    assert "<b>cat" not in page
    assert "<i>model" not in page
    assert "&lt;b&gt;cat&lt;/b&gt; ↔" in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert page.count("<figure>") == 4
    for each in found.wordings:
        assert each.name in page


def test_rows_and_json() -> None:
    dataset, encoder = pets()
    found = study(dataset, encoder)
    rows = list(csv.DictReader(io.StringIO(prompts_csv(found))))
    assert tuple(rows[0]) == COLUMNS
    assert [row["wording"] for row in rows] == [each.name for each in found.wordings]
    assert float(rows[1]["test"]) == found.wording(BAD).test.value
    told = found.to_json()
    assert told["baseline"] == GOOD
    assert len(told["wordings"]) == len(found.wordings)  # type: ignore[arg-type]
    assert pair_columns(found)[0] == GOOD
    assert study(dataset, encoder).to_json() == told, "the same twice"
