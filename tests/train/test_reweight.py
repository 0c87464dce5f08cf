"""A run whose class-text losses hear rare classes more, and recipes that ask for it in vain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.train import tiny
from tests.train.test_run import job, losses, poured

from clipette.errors import ConfigError
from clipette.train.job import identity_of
from clipette.train.run import run_job


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))


def test_rare_classes_weigh_more_only_where_asked(tmp_path: Path) -> None:
    whole = tiny.dataset()
    # Half of the reds remain, and a quarter of the greens.
    kept = [s for i, s in enumerate(whole.samples) if s.label not in (0, 1) or i % (8 if s.label == 0 else 16) < 4]
    data = replace(whole, samples=tuple(kept))
    teacher = tiny.teacher()
    given = {"teacher": teacher, "store": poured(teacher, tmp_path), "data": data, "loss": {"class_text_kl": 1}}
    rules: dict[str, dict[str, str]] = {
        "before": {},
        "none": {"reweight": "none"},
        "again": {"reweight": "inverse"},
        "rare": {"reweight": "inverse"},
    }
    for name, classes in rules.items():
        run_job(job(tmp_path / name, **given, rest={"classes": classes}))
    found = {name: losses(tmp_path / name) for name in rules}
    assert found["before"] == found["none"]
    assert found["rare"] == found["again"] != found["none"]
    digests = {identity_of(job(tmp_path / name, **given, rest={"classes": rules[name]})) for name in rules}
    assert len(digests) == 2, "a run of before there was the key goes on, one with other weights does not"
    bare = replace(data, samples=(*data.samples[:3], replace(data.samples[3], label=None, class_name=None)))
    wrong: dict[str, dict[str, Any]] = {
        "the recipe has none that can be weighed": {"loss": {"class_text_dist": 1}},
        "both make up for rare classes": {"rest": {"classes": {"reweight": "inverse"}, "sampling": {"balance": 1}}},
        f"classes.reweight needs a class for every sample, and 1 of 4 have none .the first: '{data.samples[3].key}'": {
            "data": bare
        },
        f"sampling.balance needs a class for every sample, and 1 of 4 have none .the first: '{data.samples[3].key}'": {
            "data": bare,
            "rest": {"sampling": {"balance": 1}},
        },
    }
    for message, changed in wrong.items():
        rest = {"classes": {"reweight": "effective"}}
        with pytest.raises(ConfigError, match=message):
            run_job(job(tmp_path / "wrong", **{**given, "rest": rest, **changed}))
