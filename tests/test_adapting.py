"""The verb: one run, tables of several methods, and PromptKD's two stages by one command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tests.adapt import tiny as small
from tests.train import tiny

from clipette.adapting import Cell, adapt, adapt_study, lasting, read_adapt_recipe, read_each, summarize, to_markdown
from clipette.errors import ClipetteError, ConfigError
from clipette.evaluate.protocol import read_trained_on
from clipette.evaluate.wording import fitting_templates
from clipette.evaluate.zero_shot import class_vectors
from clipette.measuring import classify, evaluate
from clipette.models.saved import load_model
from clipette.prompting import prompts
from clipette.resolve import resolve
from clipette.store import open_store
from clipette.tasks.adapt import freeze
from clipette.verbs import distill

FAST = ["views.count=2"]
LOOP = [*FAST, "train.steps=3", "train.batch_size=4"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))


def write_data(folder: Path, count: int = 6) -> str:
    """A table of pictures of four classes: six to train on and two to test on of each."""
    folder.mkdir(parents=True)
    with (folder / "data.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["key", "image", "class", "label", "split"])
        for label, name in enumerate(tiny.CLASSES):
            for number in range(count + 2):
                path = f"{name}{number}.png"
                (folder / path).write_bytes(tiny.picture(label, number))
                table.writerow([path, path, name, label, "train" if number < count else "test"])
    return f"csv:{folder}/data.csv"


def test_one_run_by_references(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, data = small.write_base(tmp_path / "base"), write_data(tmp_path / "data")
    out = adapt("kgcoop", base=base, data=f"{data}?split=train&shots=2", out=tmp_path / "run", overrides=LOOP)
    assert "test split" not in caplog.text
    assert resolve(str(out), device="cpu").dim == 12
    with pytest.raises(ConfigError, match="holds another run"):
        adapt("kgcoop", base=base, data=data, out=out, overrides=LOOP)
    adapt("kgcoop", base=base, data=data, out=out, overrides=LOOP, resume=False)
    assert "8 of these images are of its test split: ?split=train leaves them out" in caplog.text
    summary = json.loads((out / "summary.json").read_text())
    assert summary["trained_on"]["images"] == 32
    assert summary["base"]["reference"] == lasting(base) == str(Path(base).resolve())
    prompts(base, data, out=tmp_path / "before", templates=["single", "plain"])
    assert "has learned what" not in caplog.text
    prompts(str(out), data, out=tmp_path / "wordings", templates=["single", "plain"])
    assert "has learned what 'single' says" in caplog.text


def test_what_is_missing_or_another_verbs_is_said(tmp_path: Path) -> None:
    for given, missing in (({"data": "x"}, "base"), ({"base": "x"}, "data")):
        with pytest.raises(ConfigError, match=f"name it with --{missing}"):
            adapt("coop", out=tmp_path / "o", **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no recipe of `clipette adapt` .* shipped ones: .*coop"):
        read_adapt_recipe("clip")
    with pytest.raises(ConfigError, match="is none of few-shot, base-to-novel"):
        adapt_study(["coop"], "few", base="x", data="y", out=tmp_path)
    with pytest.raises(ConfigError, match="each once"):
        adapt_study(["coop", "coop"], "few-shot", base="x", data="y", out=tmp_path)


def test_a_study_is_a_table_over_seeds_and_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, data = small.write_base(tmp_path / "base"), write_data(tmp_path / "data")
    sets = [*FAST, "views.scale=[0.5, 1.0]"]
    given = {"base": base, "data": data, "shots": [2], "seeds": [1, 2], "out": tmp_path / "study", "overrides": sets}
    recipes = ["zero-shot", "taskres", "tip-adapter"]
    found = adapt_study(recipes, "base-to-novel", **given)  # type: ignore[arg-type]
    table = found["table"]
    assert isinstance(table, list)
    assert [(row["method"], row["figure"]) for row in table] == [
        (method, figure) for method in recipes for figure in ("base", "novel", "harmonic_mean")
    ]
    assert all(row["seeds"] == 2 and row["shots"] == 2 and row["protocol"] == "inductive" for row in table)
    first = {row["figure"]: row for row in table if row["method"] == "zero-shot"}
    assert first["base"]["sd"] == 0, "nothing is drawn that zero-shot sees"
    # Nothing is known of classes that were never seen: their texts, as before.
    novel = [row["mean"] for row in table if row["figure"] == "novel" and row["method"] != "tip-adapter"]
    assert novel[0] == novel[1]
    page = (tmp_path / "study" / "table.md").read_text()
    assert page.splitlines()[0].startswith("| method | shots | base | novel | harmonic_mean | protocol |")
    assert len(page.splitlines()) == 5
    assert len(list((tmp_path / "study" / "stores").iterdir())) == 1, "one store for all who see the same views"
    monkeypatch.setattr("clipette.adapting.run_adapt", lambda job: pytest.fail("a finished run is trained again"))
    assert adapt_study(recipes, "base-to-novel", **given)["table"] == table  # type: ignore[arg-type]


def test_each_recipe_of_a_study_takes_what_it_has() -> None:
    names = ["zero-shot", "coop", "clip-adapter", "tip-adapter"]
    sets = ["method.alpha=2", "train.steps=3", "train.max_failures=0.5", "views.count=2", "method.tokens=5"]
    zero, coop, clip, tip = read_each(names, sets)
    assert (coop.train.steps, coop.method.tokens, tip.method.alpha) == (3, 5, 2)  # type: ignore[union-attr]
    assert [each.train.max_failures for each in (zero, coop, clip, tip)] == [0.5] * 4
    assert [each.views.count for each in (zero, coop, clip, tip)] == [2] * 4
    assert clip.method == read_adapt_recipe("clip-adapter").method
    with pytest.raises(
        ConfigError, match=r"--set method\.beta_max=3: none of zero-shot, coop, clip-adapter, tip-adapter"
    ):
        read_each(names, ["method.beta_max=3"])
    with pytest.raises(ConfigError, match=r"--set train\.steps=3: none of zero-shot, tip-adapter has this key"):
        read_each(["zero-shot", "tip-adapter"], ["train.steps=3"])
    with pytest.raises(ConfigError, match=r"taskres\.yaml with --set train\.steps: train is for methods that the loop"):
        read_each(["taskres"], ["train.steps=3"])
    with pytest.raises(ConfigError, match=r"unknown key 'method\.alpha'; known keys here: kind, tokens"):
        read_each(["coop"], ["method.alpha=3"])


@pytest.mark.parametrize("protocol", ["base-to-novel", "cross-dataset"])
def test_a_closed_probe_is_refused_before_a_study_of_other_classes(protocol: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"knows no others: --set method\.text_start=true"):
        adapt_study(["zero-shot", "linear-probe"], protocol, base="x", data="y", out=tmp_path / "o")


@pytest.mark.parametrize("templates", ["a drawing of a {}.", "wordings"])
def test_classes_that_were_not_learned_are_worded_as_before(templates: str, tmp_path: Path) -> None:
    """TaskRes moves the texts of its own classes: the others are the base's, in the templates of the whole study."""
    base, data = small.write_base(tmp_path / "base"), write_data(tmp_path / "data")
    frozen = freeze(resolve(base, device="cpu"))  # type: ignore[arg-type]
    out = adapt(
        "taskres",
        base=base,
        data=f"{data}?split=train&classes=base",
        out=tmp_path / "run",
        overrides=[*FAST, f"templates={templates}", "method.fit.epochs=2"],
    )
    run = resolve(str(out), device="cpu")
    names = tiny.CLASSES
    found, plain = class_vectors(run, names, templates), frozen.class_vectors(names, templates).numpy()
    assert abs(found[2:] - plain[2:]).max() < 1e-6
    assert abs(found[:2] - plain[:2]).max() > 1e-4
    assert fitting_templates([run], names) == templates


def test_a_study_pours_no_image_that_no_run_draws_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, data = small.write_base(tmp_path / "base"), write_data(tmp_path / "data")
    given = {"base": base, "data": data, "shots": [1], "out": tmp_path / "s", "overrides": [*FAST, "train.steps=2"]}
    adapt_study(["coop"], "few-shot", seeds=[1], **given)  # type: ignore[arg-type]
    (store,) = (tmp_path / "s" / "stores").iterdir()
    views = open_store(store).views
    assert views is not None
    assert len(views) == 1 * len(tiny.CLASSES) * 2, "one image a class, two views each"
    adapt_study(["coop"], "few-shot", seeds=[1, 2], **given)  # type: ignore[arg-type]
    assert len(list((tmp_path / "s" / "stores").iterdir())) == 1
    # Cut off, and called with other settings: nothing of the old run is in the way.
    kept = tmp_path / "s" / "runs" / "coop-all-1-1" / "cell.json"
    kept.write_text(json.dumps({"mark": json.loads(kept.read_text())["mark"]}))
    adapt_study(["coop"], "few-shot", seeds=[1], **given)  # type: ignore[arg-type]
    assert "figures" in json.loads(kept.read_text())
    kept.unlink()
    other = {**given, "overrides": [*FAST, "train.steps=3"]}
    adapt_study(["coop"], "few-shot", seeds=[1], **other)  # type: ignore[arg-type]
    assert json.loads(kept.with_name("summary.json").read_text())["steps"] == 3
    made: list[object] = []
    monkeypatch.setattr("clipette.adapting.run_adapt", lambda job: made.append(job) or (_ for _ in ()).throw(Stop()))
    with pytest.raises(Stop):
        adapt_study(["coop"], "few-shot", seeds=[1], resume=False, **other)  # type: ignore[arg-type]
    assert len(made) == 1


class Stop(Exception):
    pass


def test_few_shots_of_images_without_labels(tmp_path: Path) -> None:
    """UPL's shots are those of its own choice, among all training images: transductive of nothing but these."""
    base, data = small.write_base(tmp_path / "base"), write_data(tmp_path / "data")
    found = adapt_study(
        ["upl"], "few-shot", base=base, data=data, shots=[1, 2], seeds=[1], out=tmp_path / "s", overrides=LOOP
    )
    table = found["table"]
    assert isinstance(table, list)
    assert [row["shots"] for row in table] == [1, 2]
    for shots in (1, 2):
        card = json.loads((tmp_path / "s" / "runs" / f"upl-all-{shots}-1" / "summary.json").read_text())
        assert card["labels"] == "pseudo"
        assert 0 < card["trained_on"]["images"] <= shots * 4


def test_means_and_deviations_by_hand() -> None:
    def cell(seed: int, base: float, novel: float) -> Cell:
        told = {"base": "inductive (…)", "novel": "inductive (…)"}
        return Cell("m", "base", 4, seed, {"base": base, "novel": novel}, told, 10, 100, 1.0 * seed)

    rows = summarize([cell(1, 0.8, 0.6), cell(2, 0.6, 0.4)], "base-to-novel")
    found = {str(row["figure"]): (row["mean"], row["sd"]) for row in rows}
    harmonic = [2 * 0.8 * 0.6 / 1.4, 2 * 0.6 * 0.4 / 1.0]
    assert found["base"] == (0.7, 0.1414)
    assert found["harmonic_mean"][0] == pytest.approx(sum(harmonic) / 2, abs=1e-4)
    assert rows[0]["seconds"] == 1.5
    assert "| m | 4 | 70.00 ± 14.14 | 50.00 ± 14.14 |" in to_markdown(rows)
    domains = [Cell("m", name, None, 1, {name: value}, {}, 0, 0, 0.0) for name, value in (("a", 0.2), ("b", 0.6))]
    several = summarize(domains, "domain-generalisation")
    assert {str(row["figure"]): row["mean"] for row in several} == {"a": 0.2, "b": 0.6, "mean": 0.4}


STUDENT = {
    "kind": "timm",
    "name": "vit_tiny_patch16_224",
    "args": {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8},
    "size": 16,
    "prompts": {"count": 2, "depth": 2},
    "head": {"kind": "bn_mlp", "hidden": 12},
    "train": "head",
}


def test_promptkd_is_both_stages_by_one_command(tmp_path: Path) -> None:
    base, data = small.write_base(tmp_path / "base"), write_data(tmp_path / "data")
    stage = "[method.depth=2, method.templates=single, views.count=2, train.steps=2, train.batch_size=4]"
    sets = [f"student.image={json.dumps(STUDENT)}", "train.steps=2", f"adapt.set={stage}", "adapt.shots=2"]
    out = distill("promptkd", teacher=base, data=data, out=tmp_path / "run", overrides=sets, device="cpu")
    teacher = resolve(str(out / "teacher"), device="cpu")
    card = json.loads((out / "teacher" / "summary.json").read_text())
    assert card["recipe"] == "promptsrc"
    assert card["trained_on"] == {"images": 4, "classes": 2}, "two shots of the two base classes"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["teacher"]["space"] == teacher.space
    assert summary["trained_on"] == {"images": 32, "classes": 4}
    # The student's class texts are the prompted teacher's.
    student = resolve(str(out), device="cpu")
    texts = [f"a photo of a {name}." for name in tiny.CLASSES]
    assert abs(student.encode_texts(texts) - teacher.encode_texts(texts)).max() < 1e-2
    assert "adapt: null" in (out / "recipe.yaml").read_text()
    distill("promptkd", teacher=base, data=data, out=out, overrides=sets, device="cpu")
    alone = [*sets[:2], "adapt=null"]
    plain = distill("promptkd", teacher=base, data=data, out=tmp_path / "two", overrides=alone, device="cpu")
    assert not (plain / "teacher").exists()
    assert load_model(plain).space == resolve(base, device="cpu").space


def test_a_teacher_without_tokens_says_what_to_do(tmp_path: Path) -> None:
    from tests.train.small_world import write_teacher

    folder, data = write_teacher(tmp_path / "cnn"), write_data(tmp_path / "data")
    own = ["student.image={kind: timm, name: test_resnet, size: 32, head: {kind: linear}}"]
    with pytest.raises(ConfigError, match=r"own stage \(adapt\): .*tokens of a vision transformer.*--set adapt=null"):
        distill("promptkd", teacher=str(folder), data=data, out=tmp_path / "run", overrides=own, device="cpu")
    fits = small.write_base(tmp_path / "vit")
    sets = ["student.image={kind: timm, name: test_resnet, weights: nowhere.safetensors}"]
    with pytest.raises(ClipetteError, match=r"nowhere\.safetensors"):
        distill("promptkd", teacher=fits, data=data, out=tmp_path / "two", overrides=sets, device="cpu")
    assert not (tmp_path / "two" / "teacher").exists(), "the second stage is looked at before the first is trained"
    with pytest.raises(ConfigError, match="no teacher to adapt"):
        distill("promptkd", data=data, out=tmp_path / "run", device="cpu")


def test_a_classifier_teaches_a_student_with_texts_of_its_own(tmp_path: Path) -> None:
    """CoCoOp's logits, poured and distilled: the student's own text tower ranks the classes."""
    base, data = small.write_base(tmp_path / "base"), write_data(tmp_path / "data")
    teacher = adapt(
        "cocoop", base=base, data=data, out=tmp_path / "t", overrides=[*FAST, "train.steps=2", "method.reduction=4"]
    )
    spec = {**small.SPEC, "dim": 8, "space": "own"}
    spec["text"] = {"kind": "small", "width": 16, "layers": 1, "heads": 2, "tokenizer": "clip"}
    sets = [f"student={json.dumps(spec)}", "train.steps=2", "train.batch_size=8"]
    out = distill("promptkd-stage2", teacher=str(teacher), data=data, out=tmp_path / "s", overrides=sets, device="cpu")
    theirs, own = read_trained_on(teacher), read_trained_on(out)
    assert theirs is not None
    assert own is not None
    assert set(theirs.fingerprints) <= set(own.fingerprints)
    assert load_model(out).model.dim == 8
    with pytest.raises(ConfigError, match=r"no image-text space for a student to live in; use student\.space: own"):
        distill("promptkd-stage2", teacher=str(teacher), data=data, out=tmp_path / "no", overrides=sets[1:])


def test_a_classifier_is_poured_from_data_with_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from clipette.verbs import pour

    base, world = small.write_base(tmp_path / "base"), "world:train?n=48&size=32"
    run = adapt("tip-adapter", base=base, data=world, out=tmp_path / "tip", overrides=FAST)
    store = open_store(pour(str(run), [world], tmp_path / "store", device="cpu"))
    assert store.texts is not None
    assert len(store.texts) == 48
    assert "knows its classes alone: no captions are poured" in caplog.text


def test_evaluate_takes_encoders_and_classifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipette import measuring
    from clipette.evaluate.cost import Timing

    monkeypatch.setattr(measuring, "TIMING", Timing(warmup=0, repeats=1, batch_size=2, max_seconds=0.1))
    base, data = small.write_base(tmp_path / "base"), write_data(tmp_path / "data")
    test = f"{data}?split=test"
    for name, sets in (("coop", [*LOOP, "method.tokens=3"]), ("tip-adapter", FAST)):
        run = adapt(name, base=base, data=f"{data}?split=train&classes=base", out=tmp_path / name, overrides=sets)
        found = evaluate(str(run), [test], teacher=base, out=tmp_path / f"report-{name}", device="cpu")
        models = found["models"]
        assert isinstance(models, dict)
        (figures,) = models[name]["figures"].values()
        assert {"base", "novel", "harmonic_mean"} <= set(figures["zero_shot"])
        assert 0 <= figures["agreement"]["top1"] <= 1
        (protocol,) = models[name]["protocol"].values()
        assert protocol.startswith("inductive (trained on 2 of its 4 classes and 0 of its 8 images)")
        page = (tmp_path / f"report-{name}" / "report.html").read_text()
        assert f"{name}: inductive (trained on 2 of its 4 classes" in page
        with pytest.raises(ConfigError, match=r"that is an adaptation, .* it can be the --teacher"):
            distill(teacher=base, data=data, student=str(run), out=tmp_path / "no", device="cpu")
        # Of labels that it never learned, a run names the likelier too.
        told = classify(str(run), tmp_path / "data" / "red0.png", labels=["dog", "red"], device="cpu")
        assert sum(each["probability"] for each in told["scores"]) == pytest.approx(1)  # type: ignore[attr-defined]
