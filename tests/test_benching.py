"""``clipette bench``: each model timed in a process of its own, the front marked, the page whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.export.kinds import student

from clipette import benching
from clipette.benching import bench, bench_models
from clipette.errors import ConfigError
from clipette.evaluate.bench_page import Bench, bench_page
from clipette.evaluate.results import Figure
from clipette.export.bundle import export_bundle
from clipette.models.inference import TorchEncoder
from clipette.models.saved import save_model
from clipette.runtime.sessions import choose_engine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("bench")
    model = student()
    save_model(model, folder / "whole", name="star")
    return str(folder / "whole"), str(export_bundle(TorchEncoder(model, name="s", device="cpu"), folder / "b").path)


@pytest.mark.bench
def test_a_model_and_its_bundle(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["image,class", *(f"{number}.png,{name}" for number, name in enumerate(["red", "blue"] * 4))]
    from PIL import Image

    for number in range(8):
        Image.new("RGB", (40, 40), "red" if number % 2 == 0 else "blue").save(tmp_path / f"{number}.png")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    out = tmp_path / "out"
    summary = bench(list(models), data=f"csv:{tmp_path / 't.csv'}", out=out, threads=1)
    assert json.loads((out / "summary.json").read_text()) == summary
    whole, bundle = (summary["models"][name] for name in models)  # type: ignore[index]
    assert summary["threads"] == 1
    assert whole["figure"] == bundle["figure"]
    assert (whole["engine"], bundle["engine"]) == ("torch", choose_engine())
    for row in (whole, bundle):
        assert row["images_s"] > 0
        assert row["ms_1"] <= row["ms_1_p99"]
        assert row["texts_s"] > 0
        # Some tens of megabytes of Python at least, and less than this machine has.
        assert 20 < row["peak_mb"] < 20_000
    assert bundle["peak_mb"] < whole["peak_mb"] / 2, "a bundle loads no PyTorch"
    page = (out / "bench.html").read_text()
    assert page.count('class="chart"') == 2
    assert ">front<" in page
    assert "zero-shot top-1" in capsys.readouterr().err


def test_a_model_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        bench_models([str(tmp_path / "absent")])
    with pytest.raises(ConfigError, match="no model"):
        bench([], out=tmp_path)


def test_a_page_without_data_has_no_figure() -> None:
    flat = dict.fromkeys(("images_s", "images_core_s", "ms_1", "ms_1_p99", "texts_s", "text_ms_1"), 2.0)
    row = {**flat, "mb": 3.0, "peak_mb": 4.0, "load_s": None}
    page = bench_page(Bench(["<b>x</b>"], [row]), data="", threads=2)
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert 'class="chart"' not in page
    shown = bench_page(Bench(["x", "y"], [row, row], "top-1", [Figure(0.5), Figure(0.4)]), data="d", threads=2)
    assert shown.count(">front<") == 1


def test_figures_come_back_as_they_were_sent() -> None:
    speed = benching.Speed({1: (1.0, 2.0), 8: (3.0, 4.0), 32: (5.0, 6.0)}, 7.0, 8.0)
    sent = benching.Benched("m", speed, None, 1.0, 2.0, 3.0, 1, engine="openvino")
    from dataclasses import asdict

    assert benching._benched(json.loads(json.dumps(asdict(sent)))) == sent
