"""Whole adaptations: a run directory of every kind, read back as an encoder or a classifier, poured and distilled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.adapt import tiny

from clipette.adapting import read_adapt_recipe
from clipette.data.dataset import Dataset
from clipette.errors import ClipetteError, ConfigError, DataError, ModelError
from clipette.evaluate.protocol import read_trained_on
from clipette.evaluate.zero_shot import classifier_accuracy, zero_shot
from clipette.models.core import weights_digest
from clipette.models.inference import TorchEncoder
from clipette.resolve import resolve, resolve_classifier
from clipette.tasks.pour import PourPlan, pour
from clipette.train.adapt import AdaptJob, run_adapt
from clipette.train.adapt_measure import _label, measure_run, top1
from clipette.train.frozen import cache_folder
from clipette.train.log import read_metrics
from clipette.types import Encoder

FAST = {
    "coop": ["method.tokens=3"],
    "kgcoop": [],
    "cocoop": ["method.reduction=4", "train.batch_size=2"],
    "vpt": ["method.tokens=2"],
    "maple": ["method.depth=2"],
    "promptsrc": ["method.depth=2", "method.templates=single", "train.gaussian={mean: 2, sd: 1}"],
    "upl": ["method.tokens=3", "labels.per_class=3"],
    "wise-ft": [],
    "clip-adapter": ["method.fit.epochs=2"],
    "tip-adapter": [],
    "tip-adapter-f": ["method.fit.epochs=2"],
    "taskres": ["method.fit.epochs=2"],
    "linear-probe": [],
    "tpt": ["method.views=4", "method.share=0.5"],
    "zero-shot": [],
}
LOOP = ("coop", "kgcoop", "cocoop", "vpt", "maple", "promptsrc", "upl", "wise-ft")
CLASSIFIERS = ("cocoop", "tip-adapter", "tip-adapter-f", "linear-probe", "tpt")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))


def job(name: str, folder: Path, *, data: Dataset | None = None, extra: Sequence[str] = (), **options: Any) -> AdaptJob:
    """A tiny run of a shipped recipe; ``extra`` overrides."""
    reference = tiny.write_base(folder / "base")
    sets = [*FAST[name], *(["train.steps=4", "train.batch_size=4"] if name in LOOP and name != "cocoop" else [])]
    sets += ["train.steps=3"] if name == "cocoop" else []
    if name != "linear-probe":
        sets.append("views.count=2")
    recipe = read_adapt_recipe(name, [*sets, *extra])
    base = resolve(reference, device="cpu")
    assert isinstance(base, TorchEncoder)
    given = {"dev": None, "progress": False, **options}
    return AdaptJob(recipe, base, reference, tiny.data() if data is None else data, folder / "run", **given)


def accuracy(encoder: Encoder, data: Dataset, wording: str = "single") -> float:
    return zero_shot(encoder, data, wording).top1.value


@pytest.mark.parametrize("name", FAST)
def test_every_recipe_makes_a_run_that_is_read_back(name: str, tmp_path: Path) -> None:
    made = job(name, tmp_path)
    before = weights_digest(made.base.model)
    found = run_adapt(made)
    assert weights_digest(made.base.model) == before, "the base's bytes have changed"
    out = made.out
    written = {path.name for path in (out / "model").iterdir()}
    assert written == {"adapter.json", "adapter.safetensors", "trained_on.json"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["base"]["weights"] == before
    assert summary["steps"] == found.steps == {"cocoop": 3}.get(name, 4 if name in LOOP else 0)
    assert (out / "report.html").is_file()
    assert (out / "metrics.jsonl").is_file() == (name in LOOP)
    encoder = resolve(str(out), device="cpu")
    test = tiny.data(12)
    wording = "none" if name in CLASSIFIERS else "single"
    assert accuracy(encoder, test, wording) == pytest.approx(top1(tiny_frozen(made), found.adapter, test, device="cpu"))
    if name in CLASSIFIERS:
        classifier = resolve_classifier(str(out), device="cpu")
        assert classifier.class_names == tiny.CLASSES
        assert classifier_accuracy(classifier, test).top1.value == pytest.approx(accuracy(encoder, test, "none"))
        assert encoder.dim == len(tiny.CLASSES) + 1
    else:
        assert encoder.dim == 12
        with pytest.raises(ClipetteError, match="it is an encoder"):
            resolve_classifier(str(out))
    if name not in ("zero-shot", "wise-ft"):
        assert encoder.space != made.base.space
    seen = read_trained_on(out)
    assert seen is not None
    assert set(seen.classes) == (set() if name in ("tpt", "zero-shot") else set(tiny.CLASSES))


def tiny_frozen(made: AdaptJob) -> Any:
    from clipette.tasks.adapt import freeze

    return freeze(made.base)


def test_a_run_is_the_same_bytes_twice_and_resumed(tmp_path: Path) -> None:
    content = []
    for name in ("a", "b"):
        made = job("promptsrc", tmp_path / name)
        run_adapt(made)
        content.append((made.out / "model" / "adapter.safetensors").read_bytes())
    assert content[0] == content[1]
    again = job("promptsrc", tmp_path / "a")
    run_adapt(again)
    assert len(read_metrics(again.out / "metrics.jsonl", "train")) == 4, "a finished run is not trained on"
    assert (again.out / "model" / "adapter.safetensors").read_bytes() == content[0]
    with pytest.raises(ConfigError, match="holds another run"):
        run_adapt(job("promptsrc", tmp_path / "a", extra=["seed=1"]))
    with pytest.raises(ConfigError, match="holds another run"):
        run_adapt(job("taskres", tmp_path / "a"))


def test_a_wrong_base_is_refused_and_a_moved_one_named(tmp_path: Path) -> None:
    made = job("coop", tmp_path)
    run_adapt(made)
    other = tiny.write_base(tmp_path / "other", seed=5)
    with pytest.raises(ModelError, match="adapts another model"):
        resolve(f"adapter:{made.out}?base={other}")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"no such folder.*say where it is now: adapter:.*base=REFERENCE"):
        resolve(str(made.out))
    found = resolve(f"adapter:{made.out}?base={tmp_path / 'moved'}", device="cpu")
    assert found.name == "run"
    with pytest.raises(ConfigError, match="must be base=REFERENCE"):
        resolve(f"adapter:{made.out}?bse=x")


def test_vectors_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on stored vectors runs the image tower for the pour alone."""
    made = job("coop", tmp_path, extra=["train.steps=30"])
    calls: list[int] = []
    tower = made.base.model.image_tower()
    tower.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    run_adapt(made)
    assert sum(calls) == len(made.data) * 2
    calls.clear()
    second = replace(made, out=tmp_path / "second", store=made.out / "store")
    run_adapt(second)
    assert sum(calls) == 0
    stranger = resolve(tiny.write_base(tmp_path / "other", seed=5), device="cpu")
    assert isinstance(stranger, TorchEncoder)
    with pytest.raises(ConfigError, match="poured by another model"):
        run_adapt(replace(second, base=stranger, out=tmp_path / "third"))


def test_a_store_that_would_not_be_read_is_refused(tmp_path: Path) -> None:
    made = job("coop", tmp_path)
    run_adapt(made)
    given = {"store": made.out / "store", "out": tmp_path / "no"}
    for name in ("vpt", "maple", "wise-ft", "tpt", "zero-shot"):
        with pytest.raises(ConfigError, match=f"{name} reads no stored vectors of the training images"):
            run_adapt(replace(job(name, tmp_path), **given))
    with pytest.raises(ConfigError, match=r"holds 2 views by .* the recipe's views are 2 views by"):
        run_adapt(replace(job("coop", tmp_path, extra=["views.scale=[0.9, 1.0]"]), **given))
    with pytest.raises(ConfigError, match=r"holds 2 views by .* the recipe's views are the whole"):
        run_adapt(replace(job("linear-probe", tmp_path), **given))


def test_the_best_of_several_shares_is_what_keeps_weights(tmp_path: Path) -> None:
    """A share of 0 scores the same at each step: by it alone the first step, where nothing is learned, is kept."""
    sets = ["method.shares=[0.0, 1.0]", "train.keep=best", "train.steps=30", "train.optimizer.lr=0.01"]
    made = job("wise-ft", tmp_path, extra=sets, dev=tiny.data(12))
    found = run_adapt(made)
    scores = [row["top1"] for row in read_metrics(made.out / "metrics.jsonl", "dev")]
    assert max(scores) > scores[0]
    assert found.dev == pytest.approx(max(scores))


def test_an_adapted_model_has_seen_what_its_base_has(tmp_path: Path) -> None:
    first = job("clip-adapter", tmp_path)
    run_adapt(first)
    base = resolve(str(first.out), device="cpu")
    assert isinstance(base, TorchEncoder)
    other = replace(tiny.data(8), reference="other", class_names=("cat", "dog"))
    samples = tuple(replace(s, label=0, class_name="cat", key=f"o-{s.key}") for s in other.samples)
    for name in ("zero-shot", "taskres"):
        again = replace(
            job(name, tmp_path), base=base, reference=str(first.out), data=replace(other, samples=samples),
            out=tmp_path / name,
        )  # fmt: skip
        run_adapt(again)
        seen = read_trained_on(again.out)
        assert seen is not None
        assert not any(seen.knows(tiny.CLASSES)), "a backbone's classes make nothing transductive"
        assert seen.images_of(first.data) == len(first.data)


def test_what_learns_nothing_has_seen_nothing(tmp_path: Path) -> None:
    for name in ("zero-shot", "tpt"):
        made = job(name, tmp_path / name)
        run_adapt(made)
        seen = read_trained_on(made.out)
        assert seen is not None
        assert (seen.classes, seen.images_of(made.data)) == ((), 0)
        assert json.loads((made.out / "summary.json").read_text())["trained_on"]["images"] == 0


def test_trained_parameters_are_those_that_were_trained(tmp_path: Path) -> None:
    counts = {name: run_adapt(job(name, tmp_path / name)).parameters for name in ("tip-adapter", "tip-adapter-f")}
    assert counts == {"tip-adapter": 0, "tip-adapter-f": 24 * 12}


def test_a_classifier_is_no_space_to_adapt_or_to_search(tmp_path: Path) -> None:
    from tests.test_adapting import write_data

    from clipette.adapting import adapt
    from clipette.indexing import build

    made = job("tip-adapter", tmp_path)
    run_adapt(made)
    with pytest.raises(ClipetteError, match="is a classifier of 4 classes: its vectors are logits"):
        resolve(str(made.out), classifiers=False)
    data = write_data(tmp_path / "data", 1)
    with pytest.raises(ClipetteError, match="no image-text space that can be searched or adapted"):
        build([data], str(made.out), tmp_path / "index", device="cpu")
    with pytest.raises(ClipetteError, match="is a classifier of 4 classes"):
        adapt("taskres", base=str(made.out), data=data, out=tmp_path / "again", device="cpu")


def test_dev_chooses_and_only_where_there_is_something_to_choose(tmp_path: Path) -> None:
    made = job("wise-ft", tmp_path, extra=["method.shares=[0.0, 0.5, 1.0]"])
    with pytest.raises(ConfigError, match="3 values to choose from and no validation images"):
        run_adapt(made)
    found = run_adapt(replace(made, out=tmp_path / "chosen", dev=tiny.data(12)))
    assert found.adapter.facts["share"] in (0.0, 0.5, 1.0)
    frozen = tiny_frozen(made)
    assert found.dev == pytest.approx(top1(frozen, found.adapter, tiny.data(12), device="cpu"))
    searched = run_adapt(job("tip-adapter", tmp_path / "tip", dev=tiny.data(12)))
    assert (searched.adapter.facts["alpha"], searched.adapter.facts["beta"]) != (1.0, 5.5)
    assert searched.dev is not None


def test_shots_classes_and_labels(tmp_path: Path) -> None:
    made = job("coop", tmp_path, extra=["shots=2", "classes=base", "train.batch_size=64"])
    found = run_adapt(made)
    assert found.adapter.classes == tiny.CLASSES[:2]
    summary = json.loads((made.out / "summary.json").read_text())
    assert summary["trained_on"] == {"images": 4, "classes": 2}
    # Batches cannot be larger than the four images there are: each of the four steps saw all of them.
    assert read_metrics(made.out / "metrics.jsonl", "train")[-1]["epoch"] == 4
    bare = replace(tiny.data(), samples=tuple(replace(s, label=None, class_name=None) for s in tiny.data().samples))
    with pytest.raises(DataError, match="no image has a class: use the recipe upl"):
        run_adapt(job("coop", tmp_path / "bare", data=bare))
    with pytest.raises(DataError, match="classes must have names"):
        run_adapt(job("coop", tmp_path / "nameless", data=replace(bare, class_names=())))


def test_pseudo_labels_never_read_the_given_ones(tmp_path: Path) -> None:
    """UPL on images whose labels are gone, or all wrong, is UPL on the same images."""
    samples = tiny.data().samples
    wrong = tuple(replace(s, label=0, class_name=tiny.CLASSES[0]) for s in samples)
    gone = tuple(replace(s, label=None, class_name=None) for s in samples)
    content = []
    for name, kept in (("a", samples), ("b", wrong), ("c", gone)):
        made = job("upl", tmp_path / name, data=replace(tiny.data(), samples=kept))
        run_adapt(made)
        content.append((made.out / "model" / "adapter.safetensors").read_bytes())
    assert content[0] == content[1] == content[2]
    card = json.loads((tmp_path / "a" / "run" / "summary.json").read_text())
    assert card["labels"] == "pseudo"
    assert card["trained_on"]["images"] <= 3 * len(tiny.CLASSES)
    with pytest.raises(DataError, match=r"no image is as confident as labels\.at_least 1"):
        run_adapt(job("upl", tmp_path / "d", extra=["labels.at_least=1.0"]))


def test_damaged_images_are_left_out_and_named(tmp_path: Path) -> None:
    from tests.train import tiny as pictures

    data = pictures.dataset(24, bad=(3,))
    for name in ("coop", "taskres", "upl"):
        made = job(name, tmp_path / name, data=data)
        run_adapt(made)
        summary = json.loads((made.out / "summary.json").read_text())
        assert [failure["key"] for failure in summary["failures"]] == ["s003"], name


@pytest.mark.parametrize("name", ["coop", "promptsrc", "tip-adapter", "upl"])
def test_how_many_images_may_be_lost_is_asked_of_every_method(name: str, tmp_path: Path) -> None:
    from tests.train import tiny as pictures

    data = pictures.dataset(24, bad=(3, 4, 5, 6))
    with pytest.raises(DataError, match=r"4 of 24 .* failed, more than the allowed share of 0\.1"):
        run_adapt(job(name, tmp_path / "few", data=data))
    run_adapt(job(name, tmp_path / "more", data=data, extra=["train.max_failures=0.2"]))


def test_templates_and_prompts_over_prompts_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown templates 'nosuch'"):
        run_adapt(job("coop", tmp_path, extra=["templates=nosuch"]))
    first = job("coop", tmp_path)
    run_adapt(first)
    prompted = resolve(str(first.out), device="cpu")
    assert isinstance(prompted, TorchEncoder)
    with pytest.raises(ConfigError, match="this base is an adaptation itself: its class texts are learned already"):
        run_adapt(replace(first, base=prompted, out=tmp_path / "again"))
    with pytest.raises(ConfigError, match="no prompts stand before prompts"):
        run_adapt(replace(job("maple", tmp_path), base=prompted, out=tmp_path / "both"))
    run_adapt(replace(job("taskres", tmp_path), base=prompted, out=tmp_path / "over"))


def test_tpt_begins_from_a_coop_run(tmp_path: Path) -> None:
    first = job("coop", tmp_path)
    run_adapt(first)
    made = replace(job("tpt", tmp_path, extra=[f"method.from_run={first.out}"]), out=tmp_path / "tpt")
    found = run_adapt(made)
    assert found.adapter.tensors["context"].shape == (3, 16)
    probe = replace(job("linear-probe", tmp_path), out=tmp_path / "probe")
    run_adapt(probe)
    with pytest.raises(ConfigError, match="TPT begins from a CoOp run"):
        run_adapt(replace(job("tpt", tmp_path, extra=[f"method.from_run={probe.out}"]), out=tmp_path / "no"))
    stranger = resolve(tiny.write_base(tmp_path / "stranger", seed=5), device="cpu")
    assert isinstance(stranger, TorchEncoder)
    with pytest.raises(ModelError, match="adapts another model"):
        run_adapt(replace(made, base=stranger, out=tmp_path / "wrong"))
    seen = read_trained_on(made.out)
    assert seen is not None
    assert seen.images_of(first.data) == len(first.data), "what it begins from has seen these"


@pytest.mark.parametrize("name", ["promptsrc", "cocoop", "tip-adapter"])
def test_an_adaptation_is_poured_like_any_teacher(name: str, tmp_path: Path) -> None:
    """Features of an encoder, logits of a classifier: what the store says is what the adaptation says."""
    from clipette.models.stored import StoredEncoder
    from clipette.store import open_store

    made = job(name, tmp_path)
    run_adapt(made)
    encoder = resolve(str(made.out), device="cpu")
    assert isinstance(encoder, TorchEncoder)
    data = tiny.data(8)
    plan = PourPlan(captions=False, templates="single")
    store = open_store(pour(encoder, data, tmp_path / "store", plan, progress=False).path)
    stored = StoredEncoder.of_store(store)
    images = stored.encode_samples(data.samples).vectors
    texts = stored.encode_texts([f"a photo of a {each}." for each in tiny.CLASSES])
    found = encoder.logit_scale * images @ texts.T
    live = encoder.encode_samples(data.samples).vectors
    named = encoder.encode_texts([f"a photo of a {each}." for each in tiny.CLASSES])
    expected = encoder.logit_scale * live @ named.T
    np.testing.assert_allclose(
        found - found.mean(axis=1, keepdims=True), expected - expected.mean(axis=1, keepdims=True), atol=0.05
    )


def test_measured_runs_say_what_they_may_be_compared_with(tmp_path: Path) -> None:
    made = job("kgcoop", tmp_path, extra=["classes=base"])
    run_adapt(made)
    halves = {"base": tiny.data(12).filter(classes="base"), "all": tiny.data()}
    found = measure_run(made.base, made.out, halves)
    assert set(found.figures) == {"base", "all"}
    assert all(0 <= value <= 1 for value in found.figures.values())
    assert found.protocol["base"].startswith("transductive (trained on 2 of its 2 classes and 6 of its 6 images)")
    fresh = Dataset(
        "other", tuple(replace(s, key=f"t-{s.key}", image=None) for s in tiny.data(8).samples), tiny.CLASSES
    )
    halves = {"base": fresh.filter(classes="base"), "novel": fresh.filter(classes="novel")}
    seen = read_trained_on(made.out)
    assert seen is not None
    assert [_label(seen, name, half).partition(" ")[0] for name, half in halves.items()] == ["inductive"] * 2
    assert _label(seen, "test", halves["base"]).startswith("supervised (trained on 2 of its 2 classes and 0 of its")
    assert _label(seen, "novel", halves["base"]).startswith("transductive (trained on 2 of its 2 classes and 0 of its")
    assert set(found.cost) == {"parameters", "bytes", "seconds"}
    assert found.cost["parameters"] == 4 * 16
    kept = len(list(cache_folder().glob("image-*")))
    measure_run(made.base, made.out, {"all": tiny.data()})
    assert len(list(cache_folder().glob("image-*"))) == kept, "test images are encoded once"
