"""bench-methods' arithmetic: scores against evaluation's, claims against plain bootstraps, peers against ours."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train import tiny

from clipette.config import load_yaml, shipped_recipes
from clipette.data.dataset import Dataset
from clipette.evaluate.encoding import Settings
from clipette.evaluate.results import Figure
from clipette.evaluate.retrieval import retrieval
from clipette.evaluate.zero_shot import zero_shot
from clipette.metrics.bootstrap import Bootstrap, hierarchical_difference, ratio_interval
from clipette.models.saved import save_model
from clipette.models.spec import TimmImage
from clipette.models.students import timm_image_tower
from clipette.plain_yaml import parse_yaml
from clipette.train.recipe import Recipe

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def module(name: str) -> Any:
    """A file of benchmarks/, which is a folder of scripts and no package."""
    sys.path.append(str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


sets, claims, lists, heads, peers, pareto, arms_of = (
    module(name)
    for name in ("method_sets", "method_claims", "method_list", "method_heads", "peers", "pareto", "method_arms")
)
FEW = Settings(bootstrap=Bootstrap(resamples=20))


def labelled(count: int = 24) -> Dataset:
    return tiny.dataset(count)


# ---------------------------------------------------------------- scores


def test_the_mean_over_images_is_the_evaluations_mean_recall() -> None:
    teacher, data = tiny.teacher(), labelled()
    part = sets.Part("all", data, "retrieval")
    images = teacher.encode_samples(data.samples).vectors
    values = part.values(images, teacher.encode_texts(part.texts))
    assert values.shape == (24,)
    assert values.mean() == pytest.approx(retrieval(teacher, data, settings=FEW).mean_recall.value, abs=1e-9)


def test_unequal_numbers_of_captions_keep_the_mean() -> None:
    teacher, data = tiny.teacher(), labelled()
    uneven = replace(data, samples=(replace(data.samples[0], captions=("a", "b", "c", "d")), *data.samples[1:]))
    part = sets.Part("all", uneven, "retrieval")
    values = part.values(teacher.encode_samples(uneven.samples).vectors, teacher.encode_texts(part.texts))
    assert values.mean() == pytest.approx(retrieval(teacher, uneven, settings=FEW).mean_recall.value, abs=1e-9)


def test_top1_is_the_evaluations() -> None:
    teacher, data = tiny.teacher(), labelled()
    part = sets.Part("all", data, "top1")
    values = part.values(teacher.encode_samples(data.samples).vectors, teacher.encode_texts(part.texts))
    assert values.mean() == pytest.approx(zero_shot(teacher, data, "single", settings=FEW).top1.value)


@pytest.mark.parametrize("kind", ["retrieval", "top1"])
def test_chance_is_what_noise_scores(kind: str) -> None:
    data = labelled(48)
    part = sets.Part("all", data, kind)
    random = np.random.default_rng(0)

    def unit(count: int) -> Any:
        drawn = random.normal(size=(count, 64)).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    found = [part.values(unit(len(data)), unit(len(part.texts))).mean() for _ in range(200)]
    assert np.mean(found) == pytest.approx(part.chance, abs=4 * np.std(found) / np.sqrt(len(found)))


def test_dev_images_are_a_quarter_of_every_class_and_no_training_images() -> None:
    data = labelled(64)
    train, dev = sets.held_out(data)
    assert len(train) == 48
    assert {s.key for s in train.samples} | {s.key for s in dev.samples} == {s.key for s in data.samples}
    assert [sum(s.label == label for s in dev.samples) for label in range(4)] == [4, 4, 4, 4]
    assert sets.held_out(replace(data, samples=data.samples[::-1]))[1].subset(s.key for s in dev.samples) == dev


def test_a_harmonic_mean_of_nothing_is_nothing() -> None:
    assert sets.combined([0.5, 0.25], "harmonic") == pytest.approx(1 / 3)
    assert sets.combined([0.5, 0.0], "harmonic") == 0.0
    assert sets.combined([0.5, 0.25], "mean") == pytest.approx(0.375)


# ---------------------------------------------------------------- claims


def bench(*names: str, combine: str = "mean") -> Any:
    data = labelled(40)
    part = sets.Part("all", data, "top1")
    return [sets.Benchmark(name, (sets.Round(name, data, (part,), (part,), combine=combine),)) for name in names]


def arms(values: dict[str, dict[str, Any]]) -> Any:
    return {
        method: {name: {"test/all": array, "dev/all": array} for name, array in rounds.items()}
        for method, rounds in values.items()
    }


def test_one_part_is_the_hierarchical_bootstrap() -> None:
    random = np.random.default_rng(1)
    left, right = (random.random((5, 40)) for _ in range(2))
    table = claims.tabulate(
        bench("one"), arms({"default": {"one": left}, "other": {"one": right}}), {"one/test/all": True}, draws=20_000
    )
    found = claims.claims(table)["other"]
    expected = hierarchical_difference(left, right, Bootstrap(resamples=20_000))
    assert found["difference"] == pytest.approx(expected.value, abs=1e-5)
    assert found["low"] == pytest.approx(expected.low, abs=0.004)
    assert found["high"] == pytest.approx(expected.high, abs=0.004)


def test_items_are_paired() -> None:
    """A method that is .1 better on every item of every seed is better however much items and seeds differ."""
    random = np.random.default_rng(2)
    base = random.random((3, 40)) * 5
    values = arms({"default": {"one": base + 0.1}, "other": {"one": base}})
    found = claims.claims(claims.tabulate(bench("one"), values, {"one/test/all": True}))["other"]
    assert found["low"] == pytest.approx(0.1, abs=1e-4)
    assert found["high"] == pytest.approx(0.1, abs=1e-4)
    assert found["beats"]


def test_a_seeds_luck_does_not_cancel_over_data_sets() -> None:
    """Seeds are drawn once for all sets: three sets that repeat one set's values say no more than it does."""
    random = np.random.default_rng(3)
    shift = random.normal(size=(5, 1))
    left, right = np.repeat(shift, 40, axis=1), np.zeros((5, 40))
    names = ("one", "two", "three")
    counted = {f"{name}/test/all": True for name in names}
    values = arms({"default": dict.fromkeys(names, left), "other": dict.fromkeys(names, right)})
    wide = claims.claims(claims.tabulate(bench(*names), values, counted))["other"]
    one = claims.claims(claims.tabulate(bench("one"), values, counted))["other"]
    assert wide["high"] - wide["low"] == pytest.approx(one["high"] - one["low"], rel=0.05)


def test_unranked_parts_are_left_out_of_means_and_kept_in_the_figures() -> None:
    good, bad = np.full((2, 40), 0.8), np.full((2, 40), 0.1)
    found = bench("good", "bad")
    values = arms({"default": {"good": good, "bad": bad}})
    table = claims.tabulate(found, values, {"good/test/all": True, "bad/test/all": False})
    assert claims.means(table)["default"]["mean"] == pytest.approx(0.8)
    assert set(claims.means(table)["default"]["sets"]) == {"good"}
    assert claims.everything(found, values)["default"]["bad/test/all"]["mean"] == pytest.approx(0.1)
    verdict = sets.ranked({"good": 0.31, "bad": 0.29}, {"good": 0.1, "bad": 0.1})
    assert verdict == {"good": True, "bad": False}


def test_harmonic_rounds_combine_within_each_replicate() -> None:
    data = labelled(40)
    parts = tuple(sets.Part(name, data, "top1") for name in ("base", "novel"))
    found = [sets.Benchmark("two", (sets.Round("two", data, parts, parts, combine="harmonic"),))]
    random = np.random.default_rng(4)
    base, novel = random.random((4, 40)), random.random((4, 40)) / 2
    values = {"default": {"two": {"test/base": base, "test/novel": novel}}}
    table = claims.tabulate(found, values, {"two/test/base": True, "two/test/novel": True})
    by_seed = [2 * b * n / (b + n) for b, n in zip(base.mean(axis=1), novel.mean(axis=1), strict=True)]
    row = claims.means(table)["default"]
    assert row["mean"] == pytest.approx(np.mean(by_seed), abs=1e-5)
    assert row["sd"] == pytest.approx(np.std(by_seed, ddof=1), abs=1e-5)
    assert row["low"] < row["mean"] < row["high"]


def test_retention_of_one_seed_is_the_paired_ratio() -> None:
    random = np.random.default_rng(5)
    teacher = random.random(200)
    student = teacher * 0.9 + random.normal(size=200) * 0.05
    found = pareto.retention(student[None], teacher, draws=20_000)
    expected = ratio_interval(student, teacher, how=Bootstrap(resamples=20_000))
    assert found.value == pytest.approx(expected.value)
    assert found.low == pytest.approx(expected.low, abs=0.002)
    assert found.high == pytest.approx(expected.high, abs=0.002)
    assert pareto.front([(1.0, 0.9), (2.0, 0.8), (2.0, 0.95), (0.5, 0.9)]) == [False, False, True, True]


def test_every_size_is_a_recipe_and_the_page_shows_all(tmp_path: Path) -> None:
    assert len(pareto.SIZES) >= 5
    for size in pareto.SIZES.values():
        load_yaml(Recipe, module("flickr8k").RECIPES / f"flickr8k-{size.recipe.lower()}.yaml", size.changes)
    points = {name: (0.1 * (number + 1), Figure(0.9, 0.8, 0.95, 10)) for number, name in enumerate(pareto.SIZES)}
    row = {
        "gmacs": 0.1,
        "times_cheaper": 6.0,
        "retention": 0.9,
        "low": 0.8,
        "high": 0.95,
        "mean_recall": 0.4,
        "front": True,
    }
    summary = {"teacher": {"gmacs": 0.6, "mean_recall": 0.5}, "sizes": dict.fromkeys(points, row), "seeds": [0]}
    pareto.page(summary, points, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in points)
    assert (tmp_path / "pareto.png").stat().st_size > 1000


# ---------------------------------------------------------------- methods and peers


def test_every_recipe_that_distils_is_in_a_table() -> None:
    """A recipe that is shipped is measured, or named here with the reason."""
    apart = {
        # Pretraining and pairs; the demo; ours under other names.
        *("siglip", "lit", "demo-teacher", "demo-student", "demo-no-teacher"),
        # The same loss as affinity: weight inheritance is bench-flickr8k's and the pruning's.
        *("tinyclip", "tinyclip-auto"),
    }
    distils = set()
    for name, path in shipped_recipes().items():
        # Recipes of `clipette adapt` have no sum of losses.
        if name not in apart and "loss" in parse_yaml(path.read_text())[0]:
            distils.add(name)
    assert distils <= {*lists.KNOWN, *lists.WORLD}, distils - {*lists.KNOWN, *lists.WORLD}


@pytest.mark.parametrize("captions", [True, False])
def test_every_method_has_a_loss(captions: bool) -> None:
    known = lists.CAPTIONED if captions else lists.LABELLED_SET
    for name in (*lists.KNOWN, *lists.TRIED):
        method = lists.find_method(name, known)
        assert heads.method_needs(method)
        assert not (captions and name not in lists.BOTH and "class_text_ce" in method.loss)
    assert "default" in lists.KNOWN
    assert "class_text_ce" in lists.find_method("default", lists.LABELLED_SET).loss
    assert "labels" not in heads.method_needs(lists.find_method("default", lists.UNLABELLED))


def test_an_arm_of_the_default_is_kept_by_both_of_its_sums() -> None:
    """Whether it trusts its teacher is measured when it is trained; the recipes do not ask."""
    errs, right = lists.kept_by("default", lists.LABELLED_SET)
    assert "image_to_teacher" in errs["loss"]
    assert "class_text_kl" in right["loss"]
    one, other = lists.kept_by("clip-kd", lists.LABELLED_SET)
    assert one == other


def test_without_labels_only_methods_that_read_none_run() -> None:
    methods = module("methods")
    blind = {name for name in (*lists.KNOWN, *peers.PEERS) if methods.unlabelled(name)}
    assert {"default", "promptkd-stage2", "dkd", "dist", "standardized", "unlabelled", "torchdistill-dist"} <= blind
    assert not blind & {"ood", "clip", "clip-kd", "torchdistill-kd", "open_clip"}


def batch(count: int = 12, dim: int = 16, classes: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=-1)

    texts = unit(classes)
    return {
        "student_image": unit(count),
        "student_text": unit(count),
        "teacher_image": unit(count),
        "teacher_text": unit(count),
        "student_classes": texts,
        "teacher_classes": texts,
        "student_scale": torch.tensor(20.0),
        "teacher_scale": torch.tensor(30.0),
        "student_bias": torch.tensor(0.0),
        "teacher_bias": torch.tensor(0.0),
        "ids": torch.arange(count),
        "text_ids": torch.arange(count),
        "labels": torch.full((count,), -1),
    }


def ours(loss: dict[str, Any], tensors: dict[str, torch.Tensor]) -> float:
    from clipette.tasks.terms import read_terms

    known = {**tensors, "adapted_image": tensors["student_image"], "adapted_text": tensors["student_text"]}
    return float(sum(t.weight * t.term.call(known, t.options) for t in read_terms(loss)))


def test_open_clips_loss_is_our_sum() -> None:
    tensors = batch()
    theirs = float(peers.PEERS["open_clip"].build()(tensors))
    assert theirs == pytest.approx(ours({"clip": 1, "distill_clip": 1}, tensors), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("torchdistill-kd", {"class_text_kl": 1}),
        ("torchdistill-dist", {"class_text_dist": 1}),
    ],
)
def test_torchdistills_losses_are_ours(name: str, loss: dict[str, Any]) -> None:
    pytest.importorskip("torchdistill", reason="not in the lock: pip install torchdistill")
    tensors = batch()
    assert float(peers.PEERS[name].build()(tensors)) == pytest.approx(ours(loss, tensors), abs=1e-5)


def test_sentence_transformers_mse_is_ours_over_the_width() -> None:
    pytest.importorskip("sentence_transformers")
    tensors = batch()
    theirs = float(peers.sentence_transformers_loss("MSELoss")(tensors["student_text"], tensors["teacher_text"]))
    assert theirs == pytest.approx(ours({"text_mse": 1}, tensors) / 16, abs=1e-6)


def test_a_missing_peer_is_named_with_what_to_do() -> None:
    assert "pip install" in peers.missing(("no_such_package",))["no_such_package"]
    with pytest.raises(SystemExit, match="no such folder"):
        peers.add_path(Path("/nowhere/at/all"))


# ---------------------------------------------------------------- arms


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """(bench, benchmark, material) of 40 tiny pictures, with a tiny trunk in MobileNet's place."""
    spec = TimmImage.model_validate({"name": "test_resnet", "size": 32, "head": {"kind": "none"}})
    monkeypatch.setattr(heads, "image_tower", lambda shared: timm_image_tower(spec, None, Path()).eval())
    data = labelled(40)
    train, dev = sets.held_out(data)
    parts = (sets.Part("all", dev, "retrieval"),), (sets.Part("all", dev, "top1"),)
    rounds = (
        sets.Round("captions", train, *parts),
        sets.Round("labels", sets.captioned(train), *parts, captions=False),
    )
    found = sets.Benchmark("flickr8k", rounds[:1]), sets.Benchmark("caltech101", rounds[1:])
    teacher = heads.Teacher(tiny.teacher(), "first", {})
    second = heads.Teacher(tiny.teacher(dim=20), "second", {})
    steps = {"flickr8k": 2, "caltech101": 2}
    bench = arms_of.Bench(tmp_path, tmp_path / "cache", teacher, second, tiny.CLASSES, (0, 1), steps, None)
    material = {each.name: heads.prepare(each, tmp_path, teacher, second, bench.cache) for each in found}
    return bench, found, material


@pytest.mark.parametrize("which", [0, 1])
def test_every_method_and_peer_trains_an_arm(small: tuple[Any, Any, Any], which: int) -> None:
    bench, found, material = small
    part = found[which].rounds[0]
    arms = arms_of.Arms(bench.cache / "arms")
    there = [name for name, peer in peers.PEERS.items() if peer.package not in peers.missing()]
    for name in (*lists.KNOWN, *lists.TRIED, *there):
        made = arms_of.head_arm(bench, arms, found[which], part, lambda: material[found[which].name], name, 0)
        assert set(made) == {"dev/all", "test/all"}
        assert all(values.shape == (10,) and np.isfinite(values).all() for values in made.values())


def test_an_arm_is_made_once_and_repeats_its_bits(small: tuple[Any, Any, Any]) -> None:
    bench, found, material = small
    part = found[0].rounds[0]
    calls = []

    def make() -> Any:
        calls.append(1)
        return material["flickr8k"]

    def arm(folder: str, name: str, seed: int) -> Any:
        return arms_of.head_arm(bench, arms_of.Arms(bench.cache / folder), found[0], part, make, name, seed)

    first, again, anew = arm("arms", "default", 0), arm("arms", "default", 0), arm("others", "default", 0)
    assert len(calls) == 2
    assert all(np.array_equal(first[name], other[name]) for name in first for other in (again, anew))
    arm("arms", "default", 1)
    arm("arms", "dkd", 0)
    assert len(calls) == 4
    assert len(list((bench.cache / "arms").rglob("*.npz"))) == 3


def test_what_is_missing_is_counted_and_not_run(small: tuple[Any, Any, Any]) -> None:
    bench, found, _ = small
    arms = arms_of.Arms(bench.cache / "arms", estimating=True)

    def make() -> Any:
        raise AssertionError("an estimate runs nothing")

    for seed in bench.seeds:
        assert arms_of.head_arm(bench, arms, found[0], found[0].rounds[0], make, "clip", seed) is None
    assert arms.waiting == {"flickr8k": 2}
    assert arms.seconds("flickr8k") == arms_of.USUAL["flickr8k"]


def test_labelled_images_of_one_class_are_partners(small: tuple[Any, Any, Any]) -> None:
    _, found, material = small
    kept, samples = material["caltech101"], found[1].rounds[0].train.samples
    outputs = heads.StoredOutputs(kept.store, samples, heads.CaptionIndex(samples).texts, seed=0)
    preprocess = tiny.student().image_tower().preprocess
    plan = heads.FeedPlan(
        10, 0, preprocess, teacher_images=True, image_trunk=kept.trunk, texts=False, teacher_texts=True
    )
    feed = heads.Feed(samples, plan, outputs)
    batch = next(heads.ByClass(feed).run(0, 1))
    feed.close()
    assert batch.targets["ids"].tolist() == batch.targets["labels"].tolist()
    assert batch.targets["text_ids"].tolist() == batch.targets["labels"].tolist()


# ---------------------------------------------------------------- the scripts


def run(script: str, out: Path, *options: str) -> dict[str, Any]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(BENCHMARKS.parent / "src"), os.environ.get("PYTHONPATH", ""))),
        "CLIPETTE_CACHE": str(out / "cache"),
    }
    command = [sys.executable, str(BENCHMARKS / script), "--smoke", "--out", str(out), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    return summary


@pytest.fixture
def small_teacher(tmp_path: Path) -> Path:
    save_model(tiny.student(seed=7, dim=24), tmp_path / "teacher" / "model", name="teacher")
    return tmp_path / "teacher"


@pytest.mark.bench
def test_tier_one_runs_and_finds_its_arms_again(shared: Path, tmp_path: Path, small_teacher: Path) -> None:
    first = ("--teacher", str(small_teacher), "--sets", "caltech101", "--methods", "default,dkd,open_clip")
    summary = run("methods.py", tmp_path, *first)
    assert set(summary["methods"]) == {"dkd"}
    assert set(summary["peers"]) == {"open_clip"}
    assert set(summary["claims"]) == {"of", "dkd", "open_clip"}
    assert {"mean", "sd", "low", "high", "dev", "sets"} <= set(summary["default"])
    again = run("methods.py", tmp_path, *first)
    assert again["claims"] == summary["claims"]


@pytest.mark.bench
def test_the_sample_world_runs(shared: Path, tmp_path: Path, small_teacher: Path) -> None:
    methods = ("--methods", "promptkd,clip-kd-masked,default", "--sets", "world", "--teacher", str(small_teacher))
    summary = run("methods.py", tmp_path, *methods)
    assert set(summary["world"]["parts"]) == {"promptkd", "clip-kd-masked", "default"}
    assert set(summary["world"]["parts"]["promptkd"]) >= {"world/test/seen", "world/test/novel", "world/test/shifted"}


""""""
