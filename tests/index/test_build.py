from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from tests.index.made import HashEncoder, photos, png, vector_of

from clipette.data.dataset import Dataset
from clipette.errors import ConfigError, DataError, StoreError, UnsupportedError
from clipette.index import add_all, build, build_index, open_index
from clipette.types import Failure


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CHUNK", 4)


def test_a_build_is_a_searchable_index(tmp_path: Path) -> None:
    samples = photos(tmp_path / "photos", 11)
    (tmp_path / "photos" / "p3.png").write_bytes(b"broken")
    data = Dataset("folder:photos", tuple(samples), failures=(Failure("x", "x", "listed badly"),))
    encoder = HashEncoder()
    with build_index(data, encoder, tmp_path / "i", texts="captions", calibrated=False, max_failures=0.2) as collection:
        assert (collection.count("image"), collection.count("text")) == (10, 20)
    with open_index(tmp_path / "i") as reader:
        assert reader.manifest.model == {"name": "hash", "logit_scale": 10.0, "logit_bias": 0.0}
        assert [each["key"] for each in reader.facts["failures"]] == ["x", "p3"]
        assert reader.facts["recall"]["met"]
        assert reader.facts["recall"]["search"]["all"] == "exact"
        assert reader.facts["texts"] == "captions"
        assert reader.search_vectors(vector_of(png(5))[None], 1).keys == [["p5"]]
        assert len(reader.manifest.entries) == 1  # compacted
        queries = np.load(tmp_path / "i" / "queries.npy")
        assert queries.shape == (11, encoder.dim)  # one caption of each picture
        assert reader.info()["rows"] == {"image": 10, "text": 20}


def test_what_recall_is_measured_with_is_verified_and_damaged_rows_are_not_rebuilt_from(tmp_path: Path) -> None:
    data = Dataset("folder:photos", tuple(photos(tmp_path / "photos", 9)))
    with build_index(data, HashEncoder(), tmp_path / "i", calibrated=False) as collection:
        assert collection.verify()["sound"]
        queries = tmp_path / "i" / "queries.npy"
        queries.write_bytes(queries.read_bytes()[:-4])
        assert "queries.npy is cut or grown" in collection.verify(recall=False)["damaged"][0]
        queries.unlink()  # as the message of a measurement advises
        assert collection.verify()["sound"]
        rows = next((tmp_path / "i" / "rows").glob("*.npy"))
        changed = bytearray(rows.read_bytes())
        changed[-3] ^= 1
        rows.write_bytes(changed)
        with pytest.raises(StoreError, match=r"npy has changed since .*restore the file, or build the index anew"):
            collection.rebuild()


def test_too_many_bad_images_stop_a_build_that_can_go_on(tmp_path: Path) -> None:
    samples = photos(tmp_path / "photos", 10)
    for name in ("p3", "p7"):
        (tmp_path / "photos" / f"{name}.png").write_bytes(b"broken")
    data, encoder = Dataset("folder:photos", tuple(samples)), HashEncoder()
    with pytest.raises(DataError, match=r"2 of 10 samples of folder:photos failed.*allowed share of 0\.1(.|\n)*p3"):
        build_index(data, encoder, tmp_path / "i", calibrated=False)
    encoder.images.clear()
    with build_index(data, encoder, tmp_path / "i", calibrated=False, max_failures=0.2) as collection:
        assert len(collection) == 8
    assert set(encoder.images) <= {"p3", "p7"}


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path) -> None:
    data = Dataset("folder:photos", tuple(photos(tmp_path / "photos", 12)))
    encoder = HashEncoder()
    real = HashEncoder.encode_samples

    def killed(self, samples, **options):
        if samples[0].key == "p8":
            raise KeyboardInterrupt
        return real(self, samples, **options)

    with patch.object(HashEncoder, "encode_samples", killed), pytest.raises(KeyboardInterrupt):
        build_index(data, encoder, tmp_path / "i", calibrated=False)
    with pytest.raises(StoreError, match="has not finished; run the same command again"):
        open_index(tmp_path / "i")
    with pytest.raises(StoreError, match="unfinished build with other options"):
        build_index(data, encoder, tmp_path / "i", texts="captions", calibrated=False)
    encoder.images.clear()
    with build_index(data, encoder, tmp_path / "i", calibrated=False) as collection:
        assert len(collection) == 12
    assert encoder.images == ["p8", "p9", "p10", "p11"]
    with pytest.raises(StoreError, match=r"an index is there already"):
        build_index(data, encoder, tmp_path / "i", calibrated=False)


def test_a_build_that_is_killed_while_recall_is_measured_is_not_finished(tmp_path: Path) -> None:
    data = Dataset("folder:photos", tuple(photos(tmp_path / "photos", 6)))
    with patch.object(build, "raise_until", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        build_index(data, HashEncoder(), tmp_path / "i", calibrated=False)
    with pytest.raises(StoreError, match="has not finished"):
        open_index(tmp_path / "i")
    build_index(data, HashEncoder(), tmp_path / "i", calibrated=False).close()
    with open_index(tmp_path / "i") as reader:
        assert reader.facts["recall"]["met"]


def test_what_cannot_be_built_is_said(tmp_path: Path) -> None:
    samples = tuple(photos(tmp_path / "photos", 2))
    data = Dataset("folder:photos", samples)
    with pytest.raises(DataError, match=r"recall 1.5"):
        build_index(data, HashEncoder(), tmp_path / "i", recall=1.5)
    with pytest.raises(ConfigError, match="--store"):
        build_index(data, HashEncoder(), tmp_path / "i", store="nope")
    with pytest.raises(UnsupportedError, match="encodes no images"):
        build_index(data, HashEncoder(can_encode_images=False), tmp_path / "i")
    for sample in samples:
        assert sample.image is not None
        Path(sample.image.location).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"nothing of it could be indexed; the first: .*damaged"):
        build_index(data, HashEncoder(), tmp_path / "j")


def test_add_all_sums_up_and_keeps_keys_apart(tmp_path: Path) -> None:
    encoder = HashEncoder()
    data = Dataset("folder:one", tuple(photos(tmp_path / "one", 6)))
    with build_index(data, encoder, tmp_path / "i", calibrated=False) as collection:
        report = add_all(collection, photos(tmp_path / "two", 6), encoder, prefix="two/")
        assert (report.added, report.updated, report.unchanged) == (6, 0, 0)
        report = add_all(collection, photos(tmp_path / "one", 8), encoder)
        assert (report.added, report.updated + report.unchanged) == (2, 6)
        assert len(collection) == 14
        assert "two/p5" in collection
