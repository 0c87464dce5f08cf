from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipette.data.prompts import class_prompts
from clipette.errors import ConfigError, StoreError, UnsupportedError
from clipette.models import stored_vectors
from clipette.models.stored import StoredEncoder, open_stored
from clipette.models.stored_vectors import ArrayLookup, StoredFacts
from clipette.store import Rows, StoreWriter, open_store
from clipette.types import Sample


def unit(count: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_npz(path: Path) -> Path:
    np.savez(
        path,
        pictures=unit(3).astype(np.float16),
        files=np.array(["a.jpg", "b.jpg", "sub/c.jpg"]),
        words=unit(2, seed=1).astype(np.float16),
        names=np.array(["hot_dog", "cat"]),
    )
    return path


ARRAYS = "?images=pictures&image_keys=files&texts=words&text_keys=names&prompt=a {}&scale=50"


def test_npz_samples_by_key_and_texts_by_wording(tmp_path: Path) -> None:
    encoder = open_stored(f"stored:{write_npz(tmp_path / 'x.npz')}{ARRAYS}")
    samples = [Sample("sub/c"), Sample("nowhere"), Sample("a.jpg")]
    encoded = encoder.encode_samples(samples)
    assert encoded.keys == ("sub/c", "a.jpg")
    np.testing.assert_allclose(encoded.vectors, unit(3)[[2, 0]], atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(encoded.vectors, axis=1), 1, atol=1e-6)
    assert [failure.key for failure in encoded.failures] == ["nowhere"]
    prompts = [prompt for each in class_prompts(["hot_dog", "cat"], ("a {}",)) for prompt in each]
    np.testing.assert_allclose(encoder.encode_texts(prompts), unit(2, seed=1), atol=2e-3)
    assert encoder.texts == ("a hot dog", "a cat")
    assert (encoder.dim, encoder.logit_scale, encoder.logit_bias, encoder.name) == (6, 50.0, 0.0, "x")
    assert encoder.can_encode_text
    assert encoder.can_encode_images


def test_a_text_that_is_not_stored_is_refused_with_the_nearest(tmp_path: Path) -> None:
    encoder = open_stored(f"{write_npz(tmp_path / 'x.npz')}{ARRAYS}")
    with pytest.raises(StoreError, match=r"no vector of 'the cat' is stored .*nearest is 'a cat'"):
        encoder.encode_texts(["a cat", "the cat"])


def test_new_pixels_are_refused_in_words(tmp_path: Path) -> None:
    encoder = open_stored(f"{write_npz(tmp_path / 'x.npz')}{ARRAYS}")
    with pytest.raises(UnsupportedError, match="cannot encode new images"):
        encoder.encode_images([tmp_path / "a.jpg"])


def test_a_key_without_suffix_is_found_only_if_unambiguous(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", unit(4))
    (tmp_path / "keys.txt").write_text("a.jpg\na.png\nb.jpg\nc\n")
    encoder = open_stored(f"{tmp_path / 'v.npy'}?keys=keys.txt")
    encoded = encoder.encode_samples([Sample("a"), Sample("b"), Sample("c.jpeg"), Sample("a.png")])
    assert encoded.keys == ("b", "c.jpeg", "a.png")
    np.testing.assert_allclose(encoded.vectors, unit(4)[[2, 3, 1]], atol=1e-6)
    with pytest.raises(UnsupportedError, match="holds no texts"):
        encoder.encode_texts(["x"])
    (tmp_path / "keys.json").write_text(json.dumps(["w", "x", "y", "z"]))
    assert open_stored(f"{tmp_path / 'v.npy'}?keys=keys.json").keys == ("w", "x", "y", "z")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ("?imagess=pictures", ConfigError, "unknown option 'imagess'; did you mean 'images'"),
        ("?images=picture&image_keys=files", ConfigError, "no array 'picture'.*did you mean 'pictures'"),
        ("?images=pictures", ConfigError, "images need keys: add image_keys=NAME"),
        ("", ConfigError, "say which arrays are which"),
        ("?images=pictures&image_keys=names", StoreError, "3 rows but 2 keys"),
        ("?images=pictures&image_keys=files&scale=big", ConfigError, "scale and bias must be numbers"),
        ("?images", ConfigError, "needs a value"),
        ("?images=files&image_keys=files", StoreError, "expected floats"),
    ],
)
def test_wrong_options_are_refused_in_words(tmp_path: Path, options: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        open_stored(f"{write_npz(tmp_path / 'x.npz')}{options}")


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", pictures=unit(1), files=np.array([{"a": 1}], dtype=object))
    with pytest.raises(StoreError, match="cannot be read as arrays"):
        open_stored(f"{tmp_path / 'x.npz'}?images=pictures&image_keys=files")
    np.save(tmp_path / "v.npy", np.array([{"a": 1}], dtype=object))
    (tmp_path / "keys.txt").write_text("a\n")
    with pytest.raises(StoreError, match="cannot be read as an array"):
        open_stored(f"{tmp_path / 'v.npy'}?keys=keys.txt")


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(StoreError, match="cannot be read as arrays"):
        open_stored(f"{path}{ARRAYS}")


def test_duplicate_keys_different_widths_and_missing_paths_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", unit(2))
    (tmp_path / "keys.txt").write_text("a\na\n")
    with pytest.raises(StoreError, match="'a' is there twice"):
        open_stored(f"{tmp_path / 'v.npy'}?keys=keys.txt")
    with pytest.raises(ConfigError, match=r"rows need keys"):
        open_stored(str(tmp_path / "v.npy"))
    np.savez(tmp_path / "x.npz", i=unit(1, 6), ik=np.array(["a"]), t=unit(1, 5), tk=np.array(["b"]))
    with pytest.raises(StoreError, match="different widths"):
        open_stored(f"{tmp_path / 'x.npz'}?images=i&image_keys=ik&texts=t&text_keys=tk")
    with pytest.raises(ConfigError, match="no stored embeddings there"):
        open_stored("stored:./nothing/here")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "holds NaN, infinity or numbers too large"),
        (np.inf, "holds NaN, infinity or numbers too large"),
        (-np.inf, "holds NaN, infinity or numbers too large"),
        (0, "is all zeros"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz", "clip_retrieval"])
def test_a_row_without_a_direction_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, value: float, words: str
) -> None:
    monkeypatch.setattr(stored_vectors, "BLOCK", 12)  # two rows
    keys, vectors = [f"k{row}" for row in range(5)], unit(5).astype(np.float16)
    vectors[3] = value if value == 0 else vectors[3]
    vectors[3, 2] = value
    if kind == "npy":
        np.save(tmp_path / "v.npy", vectors)
        (tmp_path / "keys.txt").write_text("\n".join(keys))
        where, options = tmp_path / "v.npy", "?keys=keys.txt"
    elif kind == "npz":
        np.savez(tmp_path / "x.npz", i=vectors, k=np.array(keys))
        where, options = tmp_path / "x.npz", "?images=i&image_keys=k"
    else:
        for folder in ("img_emb", "metadata"):
            (tmp_path / folder).mkdir()
        np.save(tmp_path / "img_emb" / "img_emb_0.npy", vectors)
        pq.write_table(pa.table({"key": keys}), tmp_path / "metadata" / "metadata_0.parquet")
        where, options = tmp_path, ""
    with pytest.raises(StoreError, match=rf"row 3 \('k3'\) {words}: compute that vector anew, or take") as caught:
        open_stored(f"stored:{where}{options}")
    assert str(where) in str(caught.value)


def test_what_has_a_direction_is_what_becomes_a_unit_vector() -> None:
    for length in (1e-11, 1.0, 1e15):
        facts = StoredFacts("here", "space", 2)
        encoder = StoredEncoder(facts, ArrayLookup(["a"], np.array([[0, length]], dtype=np.float32), "here"), None)
        np.testing.assert_allclose(encoder.encode_samples([Sample("a")]).vectors, [[0, 1]], atol=1e-6)
    for length, words in ((1e-14, "is all zeros"), (1e30, "too large")):
        with pytest.raises(StoreError, match=rf"here: row 0 \('a'\) .*{words}"):
            ArrayLookup(["a"], np.array([[0, length]], dtype=np.float32), "here")


def test_our_store_brings_its_teachers_facts(tmp_path: Path) -> None:
    identity = {"encoder": {"space": "s1", "dim": 6}, "views": None}
    with StoreWriter(tmp_path / "s", identity, 6, info={"name": "teacher", "logit_scale": 80.0}) as writer:
        writer.append({"images": Rows(["a", "b"], ["", ""], unit(2)), "texts": Rows(["a cat"], [""], unit(1, seed=1))})
        writer.finish()
    encoder = open_stored(f"stored:{tmp_path / 's'}")
    assert (encoder.name, encoder.space, encoder.logit_scale) == ("teacher", "s1", 80.0)
    np.testing.assert_allclose(encoder.encode_samples([Sample("b")]).vectors, unit(2)[1:], atol=2e-3)
    np.testing.assert_allclose(encoder.encode_texts(["a cat"]), unit(1, seed=1), atol=2e-3)
    renamed = open_stored(f"stored:{tmp_path / 's'}?name=old%20teacher&space=s2&scale=10&bias=-3")
    assert (renamed.name, renamed.space, renamed.logit_scale, renamed.logit_bias) == ("old teacher", "s2", 10.0, -3.0)
    assert StoredEncoder.of_store(open_store(tmp_path / "s"), scale=7.0).logit_scale == 7.0


def test_the_real_teacher_of_flickr8k_and_lvis(shared: Path) -> None:
    path = shared / "data" / "clip_vitb32_teacher_features.npz"
    encoder = open_stored(
        f"stored:{path}?images=flickr8k_image_features&image_keys=flickr8k_files&texts=lvis_text_features"
        "&text_keys=lvis_classes&prompt=a {}&scale=100"
    )
    from clipette.data.sources import load_data

    data = load_data(f"wds:{shared / 'data' / 'flickr8k-train-000.tar'}")
    encoded = encoder.encode_samples(data.samples)
    assert encoded.keys == tuple(sample.key for sample in data.samples)
    assert encoded.vectors.shape == (1000, 512)
    dog = next(i for i, s in enumerate(data.samples) if all(" dog" in f" {caption}" for caption in s.captions))
    scores = encoder.encode_texts(encoder.texts) @ encoded.vectors[dog]
    best = [encoder.texts[i] for i in np.argsort(-scores)[:5]]
    assert any("dog" in text or "puppy" in text for text in best), best
