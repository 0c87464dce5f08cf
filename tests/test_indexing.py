from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.index.made import HashEncoder, photos, png

from clipette import indexing
from clipette.errors import ConfigError, DataError, StoreError
from clipette.index.clicks import Click, ClickLog


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> HashEncoder:
    made = HashEncoder()
    monkeypatch.setattr(indexing, "resolve", lambda reference, **options: made)
    return made


def with_captions(folder: Path, count: int, start: int = 0) -> str:
    for sample in photos(folder, count, start):
        (folder / f"{sample.key}.json").write_text(
            json.dumps({"captions": sample.captions, "year": 2000 + len(sample.key)})
        )
    return f"folder:{folder}"


def test_the_whole_life_of_an_index(encoder: HashEncoder, tmp_path: Path) -> None:
    data = with_captions(tmp_path / "photos", 8)
    index = tmp_path / "my.index"
    built = indexing.build([data], "m", index, texts="captions")
    assert built["rows"] == {"image": 8, "text": 16}
    assert built["columns"] == {"year": "int"}
    assert built["recall"]["met"]
    assert built["ready"]
    with_captions(tmp_path / "photos", 3, 8)
    added = indexing.add(index, [data], "m")
    assert (added["added"], added["unchanged"], added["failures"]) == (9, 24, [])
    other = with_captions(tmp_path / "other", 2)
    assert indexing.add(index, [other], "m", texts="none", prefix="o/")["added"] == 2
    found = indexing.search(index, "picture 5", model="m", kind="text", k=1)
    assert found["hits"][0]["key"] == "p5#0"
    (tmp_path / "query.png").write_bytes(png(9))
    found = indexing.search(index, model="m", image=tmp_path / "query.png", k=2, where="key like 'p%'")
    assert found["hits"][0]["key"] == "p9"
    assert found["hits"][0]["score"] == pytest.approx(1.0)
    assert len(indexing.search(index, key="p1", k=3)["hits"]) == 3
    deleted = indexing.delete(index, ["p1"], where="key like 'o/%'")
    assert (deleted["deleted"], deleted["rows"]) == (5, 30)
    report = indexing.verify(index, queries=data, model="m", own="m")
    assert report["sound"]
    assert report["mixed"]["image"]["hit@1"][0] == 1.0
    assert indexing.rebuild(index, model="m")["recall"]["met"]
    assert indexing.info(index)["generation"] == 4
    json.dumps([built, added, found, deleted, report], allow_nan=False)


@pytest.mark.slow
def test_an_index_that_outgrows_exact_search_is_measured_again(encoder: HashEncoder, tmp_path: Path) -> None:
    index = tmp_path / "my.index"
    built = indexing.build([with_captions(tmp_path / "photos", 5)], "m", index, exact_rows=6, recall=0.9)
    assert built["recall"]["search"]["all"] == "exact"
    indexing.add(index, [with_captions(tmp_path / "photos", 5, 5)], "m")
    recall = indexing.info(index)["recall"]
    assert (recall["search"]["all"], recall["met"], recall["asked"]) == ("approximate", True, 0.9)


def test_what_is_missing_is_said(encoder: HashEncoder, tmp_path: Path) -> None:
    index = tmp_path / "i"
    indexing.build([with_captions(tmp_path / "photos", 3)], "m", index)
    with pytest.raises(ConfigError, match="nothing to delete"):
        indexing.delete(index)
    with pytest.raises(StoreError, match=r"no row has the key 'x' \(and 1 more\); nothing was deleted"):
        indexing.delete(index, ["p0", "x", "y"])
    with pytest.raises(ConfigError, match="with a model"):
        indexing.search(index, "dog")
    with pytest.raises(ConfigError, match="go together"):
        indexing.verify(index, queries="folder:x")
    assert np.isfinite(indexing.search(index, key="p0")["hits"][0]["score"])


def test_clicks_are_asked_again(encoder: HashEncoder, tmp_path: Path) -> None:
    index, log = tmp_path / "i", ClickLog(tmp_path / "clicks.jsonl")
    indexing.build([with_captions(tmp_path / "photos", 5)], "m", index)
    log.append(Click({"key": "p2"}, "p3", 2))
    found = indexing.clicks(index, log.path)
    assert (found["queries"], found["clicks"], found["mrr_then"][0], found["skipped_lines"]) == (1, 1, 0.5, 0)
    rank = [hit["key"] for hit in indexing.search(index, key="p2", k=5)["hits"]].index("p3") + 1
    assert found["mrr"][0] == pytest.approx(1 / rank, abs=1e-4)
    log.append(Click({"text": "picture 4"}, "p4", 1))
    with pytest.raises(ConfigError, match=r"clicks\.jsonl holds queries in words: name a model"):
        indexing.clicks(index, log.path)
    assert indexing.clicks(index, log.path, model="m")["queries"] == 2
    with pytest.raises(DataError, match="no click log"):
        indexing.clicks(index, tmp_path / "absent")
