"""Comparison, charts and pages: every figure arrives, everything is inside, and nothing from outside is markup."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.evaluate.fakes import captioned, classified, encoder_of, unit
from tests.train.tiny import Memory, picture

from clipette.data.dataset import Dataset
from clipette.errors import ConfigError, DataError
from clipette.evaluate import plots
from clipette.evaluate.compare import Comparison, Entry, compare
from clipette.evaluate.cost import ModelCost, TowerCost
from clipette.evaluate.curves import dev_curves, loss_curve, read_log, smooth, term_curves
from clipette.evaluate.encoding import Settings
from clipette.evaluate.page import count, figures, interval, number, times
from clipette.evaluate.report import WORDS, build_report, word, wordings
from clipette.evaluate.results import ROW_COLUMNS, Figure, RobustnessResult
from clipette.evaluate.run_report import write_run_report
from clipette.evaluate.suite import SuiteSettings, evaluate
from clipette.evaluate.tables import print_tables
from clipette.metrics.bootstrap import Bootstrap
from clipette.types import Failure

SETTINGS = SuiteSettings(templates=("{}",), run=Settings(bootstrap=Bootstrap(20)), base_novel=True)
EVIL = "<script>alert('x')</script>"


def pets() -> Dataset:
    """Pictures with classes, domains and captions; one row was left out."""
    plain = classified(30, ("photo", "sketch"))
    samples = tuple(
        replace(s, image=Memory(picture(i % 4, i), f"{i}.png"), captions=(f"caption {i} {EVIL}",))
        for i, s in enumerate(plain.samples)
    )
    return replace(plain, samples=samples, failures=(Failure("z", f"{EVIL}.jpg", "the image is damaged"),))


def comparison(names: list[str], run: Path | None = None) -> tuple[Comparison, dict[str, Dataset]]:
    data = pets()
    first, entries = None, []
    for i, name in enumerate(names):
        encoder = encoder_of(data, seed=1, noise=0.3)
        rng = np.random.default_rng(i)
        images = {key: unit(v + 0.1 * i * rng.standard_normal(8)) for key, v in encoder.images.items()}
        encoder = replace(encoder, name=name, images=images, broken=frozenset({"image0"}))
        result = evaluate(encoder, {"pets": data}, first, settings=SETTINGS)
        first = first or encoder
        tower = TowerCost(1000 // (i + 1), 4000, 0.5 / (i + 1), "32 × 32 pixels", 2.0, 100.0)
        cost = ModelCost(name, 2000 // (i + 1), 8000, tower, None, "cpu", 2, 16)
        entries.append(Entry(result, cost, {"paper": EVIL}, run))
    return compare(entries), {"pets": data}


def write_run(folder: Path) -> Path:
    lines = []
    for step in range(1, 21):
        where = {"step": step, "images": step * 8, "epoch": step / 4, "seconds": step / 2}
        parts = {"kl": 1 / step, EVIL: 0.5}
        total = sum(parts.values())
        effective = {name: value / total for name, value in parts.items()}
        values = {"loss": total, "raw": parts, "weighted": parts, "effective": effective, "gradient_norm": 1.0}
        lines.append({"kind": "train", **where, **values, "rate_factor": 1.0})
        if step % 5 == 0:
            lines.append({"kind": "dev", **where, "mean_recall": step / 40})
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"kind": "tr')
    (folder / "recipe.yaml").write_text(f"name: {EVIL}\n")
    (folder / "summary.json").write_text(json.dumps({"images_per_second": 12.5, "failures": []}))
    return folder


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return image.size


def test_lines_hold_values_and_what_was_kept() -> None:
    found, _ = comparison(["teacher", "student"])
    line = next(line for line in found.lines() if (line.kind, line.measure) == ("zero_shot", "top1"))
    teacher, student = (entry.evaluation.zero_shot["pets"].top1 for entry in found.entries)
    assert line.values == (teacher, student)
    assert line.kept[0] is None
    assert line.kept[1].value == pytest.approx(student.value / teacher.value)
    agreement = next(line for line in found.lines() if line.kind == "agreement")
    assert agreement.values[0] is None, "the first is not compared with itself"
    everything = {(line.kind, line.measure) for line in found.lines(headline=False)}
    assert {(line.kind, line.measure) for line in found.lines()} < everything
    assert ("shift", "domain/sketch") in everything


def test_csv_json_and_summary_agree() -> None:
    found, _ = comparison(["teacher", "student"])
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert tuple(rows[0]) == ROW_COLUMNS
    keyed = {(row["model"], row["kind"], row["measure"]): row["value"] for row in rows}
    assert len(keyed) == len(rows), "each figure once: the teacher's own rows are not repeated by its student"
    summary = found.summary()
    top1 = summary["student"]["figures"]["pets"]["zero_shot"]["top1"]
    assert float(keyed["student", "zero_shot", "top1"]) == top1
    assert float(keyed["student", "ratio", "compression"]) == summary["student"]["ratios"]["compression"] == 2.0
    assert "ratios" not in summary["teacher"]
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert value["models"][1]["evaluation"]["teacher"] == "teacher"
    assert value["models"][1]["evaluation"]["zero_shot"]["pets"]["top1"]["value"] == top1


def test_models_of_one_name_stay_apart() -> None:
    found, _ = comparison(["student", "student"])
    assert found.names == ("student (1)", "student (2)")
    assert set(found.summary()) == set(found.names)
    with pytest.raises(ConfigError, match="no model"):
        compare([])


@pytest.mark.parametrize("names", [["only"], ["teacher", EVIL], [f"_{i}$x$ 日本" for i in range(8)]])
def test_the_report_is_one_escaped_file(names: list[str], tmp_path: Path) -> None:
    found, data = comparison(names, write_run(tmp_path / "run"))
    page = build_report(found, data, title=f"{names[-1]} {EVIL}")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page), "no file outside"
    assert "@import" not in page
    assert "url(" not in page
    assert page.count('class="chart"') >= 5
    assert page.count("data:image/jpeg;base64,") >= 8
    for text in (
        "Zero-shot classification",
        "caption ",
        "the image is damaged",
        "truncated",
        data["pets"].fingerprint()[:12],
    ):
        assert text in page
    top1 = found.entries[-1].evaluation.zero_shot["pets"].top1
    assert f"{top1.value:.3f}" in page
    assert (">kept<" in page) == (len(names) > 1)
    assert ("at a glance</p>" in page) == (len(names) > 1)
    assert f"templates: {found.entries[-1].evaluation.zero_shot['pets'].templates}" in page


def test_report_without_classes_costs_or_pictures() -> None:
    data = captioned(6)
    result = evaluate(encoder_of(data), {"scenes": data}, settings=SETTINGS)
    page = build_report(compare([Entry(result)]), {"scenes": data}, title="scenes")
    assert "no picture" in page
    assert "<h2>Cost</h2>" not in page
    assert "None: every sample was read" in page


def test_tables_show_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = comparison(["teacher [a]", "student"])
    print_tables(found)
    printed = capsys.readouterr()
    assert printed.out == "", "stdout is for scripts"
    assert "teacher [a]" in printed.err
    assert f"{found.entries[1].evaluation.zero_shot['pets'].top1.value:.3f}" in printed.err
    assert f"templates: {found.entries[1].evaluation.zero_shot['pets'].templates}" in printed.err


def test_protocols_stand_beside_the_templates_where_they_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    found, data = comparison(["teacher", "student"])
    assert all("protocol" not in text for text in (*wordings(found).values(), json.dumps(found.summary())))
    entry = found.entries[1]
    result = replace(entry.evaluation.zero_shot["pets"], protocol="inductive (trained on 2 [of] its 5 classes)")
    told = replace(entry, evaluation=replace(entry.evaluation, zero_shot={"pets": result}))
    both, alone = compare([found.entries[0], told]), compare([told])
    assert both.summary()["student"]["protocol"] == {"pets": result.protocol}
    assert "protocol" not in both.summary()["teacher"]
    (heading,) = wordings(both).values()
    assert heading.endswith(f"· protocol: student: {result.protocol}")
    (heading,) = wordings(alone).values()
    assert heading.endswith(f"· protocol: {result.protocol}")
    assert f"protocol: student: {result.protocol}" in build_report(both, data, title="x")
    print_tables(both)
    printed = " ".join(re.sub(r"[^ -~·]", " ", capsys.readouterr().err).split())
    assert "protocol: student: inductive" in printed
    assert json.loads(json.dumps(both.to_json()))["models"][1]["evaluation"]["zero_shot"]["pets"]["protocol"]


def test_charts_grow_with_what_they_show() -> None:
    figure = Figure(0.5, 0.4, 0.6, 10)
    few = size_of(plots.bars(["top1"], {"a": [figure]}))
    many = size_of(plots.bars(["top1"] * 9, {str(i): [figure, None] + [figure] * 7 for i in range(8)}))
    assert many[0] == few[0]
    assert many[1] > 4 * few[1]
    assert plots.bars(["x"], {"a": [Figure(float("nan"))]}).startswith(b"\x89PNG")
    assert plots.bars(["x"], {"a": [figure]}) == plots.bars(["x"], {"a": [figure]}), "equal figures, equal bytes"
    cells = {"blur": {1: figure, 5: Figure(0.1)}}
    robust = RobustnessResult("m", "d", "top1", figure, cells, figure, figure)
    assert size_of(plots.robustness_curves({"a": robust, "b": robust}, "top-1"))[0] > 300
    assert size_of(plots.pareto({"a": (1.0, figure), "b": (0.01, figure)}, x="GMACs", y="top-1"))[0] > 300


def test_confusions_only_where_there_are_mistakes() -> None:
    found, _ = comparison(["teacher"])
    result = found.entries[0].evaluation.zero_shot["pets"]
    assert plots.confusions(replace(result, confusion=np.eye(5))) is None
    assert plots.confusions(replace(result, confusion=None)) is None
    assert plots.confusions(replace(result, confusion=np.ones((5, 5))), result) is not None


def test_run_report(tmp_path: Path) -> None:
    path = write_run_report(write_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page = path.read_text()
    assert "<script" not in page
    assert page.count('class="chart"') == 3
    assert "0.500" in page, "the last dev figure"
    assert "12.50" in page, "images a second"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no run"):
        write_run_report(tmp_path / "empty")
    (tmp_path / "empty" / "recipe.yaml").write_text("name: x\n")
    assert "name: x" in write_run_report(tmp_path / "empty").read_text()


def test_logs_and_curves(tmp_path: Path) -> None:
    log = read_log(write_run(tmp_path / "run"))
    assert (len(log.train), len(log.dev), log.figure()) == (20, 4, "mean_recall")
    empty = read_log(tmp_path)
    assert (loss_curve(empty), term_curves(empty), dev_curves({"a": empty}, "top1")) == (None, None, None)
    assert smooth(np.ones(200)) == pytest.approx(np.ones(200))
    assert len(smooth(np.arange(101.0))) == 101


def test_numbers_for_people() -> None:
    shown = [number(value) for value in (0.5, -0.25, 12.25, 1234567, None, float("nan"))]
    assert shown == ["0.500", "−0.250", "12.25", "1,234,567", "–", "–"]
    assert [count(v) for v in (1_240_000, 340_000, 12)] == ["1.24 M", "340 k", "12"]
    assert [times(v) for v in (4.213, 123.4, None)] == ["4.21×", "123×", "–"]
    assert figures(0.00436) == "0.00436"
    assert interval(Figure(0.0, -0.2, 0.1)) == "−0.200 to 0.100"
    assert interval(Figure(0.5, 0.4, 0.6)) == "0.400–0.600"
    assert interval(Figure(0.5)) == ""
    assert word("retrieval", "i2t/hit@5") == "image → text hit@5"
    assert word("agreement", "top1") != word("zero_shot", "top1")
    assert all(word("agreement", measure) in WORDS.values() for measure in ("text_neighbours", "text_kl", "distance"))
