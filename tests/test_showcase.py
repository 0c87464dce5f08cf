"""The demo, cut to a few pictures and steps: every stage runs, and the summary has the promised shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipette import showcase, verbs


def test_the_demo_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showcase, "SIZES", dict.fromkeys(showcase.SIZES, 48))
    short = {name: ["train.steps=2", "train.batch_size=16", "views.count=1"] for name in showcase.MODELS}
    summary = showcase.showcase(tmp_path, 0, pretrain=verbs.pretrain, distill=verbs.distill, overrides=short)
    assert set(summary) == {*showcase.MODELS, "seconds"}
    for name in showcase.MODELS:
        row = summary[name]
        assert all(0 <= row[figure] <= 1 for figure in ("seen", "novel", "shift"))
        assert row["params"] > 0
        assert row["ms"] > 0
    # The promise of the demo's recipes: the student's tower costs a quarter of its teacher's, or less.
    assert summary["student"]["gmacs"] * 4 <= summary["teacher"]["gmacs"]
    assert summary["student"]["gmacs"] == summary["no_teacher"]["gmacs"]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert "no_teacher" in (tmp_path / "report" / "report.html").read_text()
