from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipette.errors import DataError, StoreError
from clipette.models.stored import open_stored
from clipette.store import open_store
from clipette.store.clip_retrieval import export_clip_retrieval, import_clip_retrieval, plain_key
from clipette.types import Sample

from .helpers import contents, small_store, unit


def write_part(
    folder: Path, number: int, columns: dict[str, list[Any]], *, images: Any = None, texts: Any = None
) -> None:
    for kind, vectors in (("img_emb", images), ("text_emb", texts)):
        if vectors is not None:
            (folder / kind).mkdir(parents=True, exist_ok=True)
            np.save(folder / kind / f"{kind}_{number}.npy", vectors.astype(np.float16))
    (folder / "metadata").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two parts, as clip-retrieval writes them: keys with suffixes in one, without in the other, order not sorted."""
    root = tmp_path / "laion"
    write_part(
        root,
        0,
        {"image_path": ["d/b.jpg", "d/a.jpg"], "caption": ["a dog", "a cat"]},
        images=unit(["b", "a"]),
        texts=unit(["a dog", "a cat"]),
    )
    write_part(
        root,
        1,
        {"image_path": ["d/c", "d/v1.0"], "caption": ["a cat", None]},
        images=3 * unit(["c", "v"]),
        texts=unit(["a cat", ""]),
    )
    return root


def test_import_finds_rows_by_key_whatever_their_position_or_suffix(folder: Path, tmp_path: Path) -> None:
    store = open_store(import_clip_retrieval(folder, tmp_path / "s", info={"logit_scale": 100.0}))
    store.verify()
    assert store.images is not None
    assert store.images.keys == ("d/b", "d/a", "d/c", "d/v1.0")
    rows = store.images.rows(["d/a", "d/c", "d/b"])
    np.testing.assert_allclose(store.images.vectors(rows), unit(["a", "c", "b"]), atol=2e-3)
    assert store.texts is not None
    assert store.texts.keys == ("a dog", "a cat")
    np.testing.assert_allclose(store.texts.vectors(store.texts.rows(["a cat"])), unit(["a cat"]), atol=2e-3)


def test_importing_twice_changes_nothing_and_another_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    import_clip_retrieval(folder, tmp_path / "s")
    before = contents(tmp_path / "s")
    import_clip_retrieval(folder, tmp_path / "s")
    assert contents(tmp_path / "s") == before
    write_part(folder, 2, {"image_path": ["z.jpg"], "caption": ["z"]}, images=unit(["z"]), texts=unit(["z"]))
    with pytest.raises(StoreError, match="poured by something else"):
        import_clip_retrieval(folder, tmp_path / "s")


def test_the_folder_is_an_encoder_too(folder: Path) -> None:
    encoder = open_stored(f"stored:{folder}?scale=80")
    encoded = encoder.encode_samples([Sample("d/c"), Sample("d/a.jpg"), Sample("d/x")])
    assert encoded.keys == ("d/c", "d/a.jpg")
    np.testing.assert_allclose(encoded.vectors, unit(["c", "a"]), atol=2e-3)
    np.testing.assert_allclose(encoder.encode_texts(["a cat", "a dog"]), unit(["a cat", "a dog"]), atol=2e-3)


def test_export_and_import_give_the_same_vectors(tmp_path: Path) -> None:
    store = open_store(small_store(tmp_path / "s"))
    captions = {f"k{i}": "a cat" if i % 2 else "a dog" for i in range(7)}
    paths = {f"k{i}": f"k{i}.jpg" for i in range(7)}
    out = export_clip_retrieval(store, tmp_path / "out", captions=captions, paths=paths, part_rows=3)
    assert len(list((out / "img_emb").iterdir())) == 3
    metadata = pq.read_table(out / "metadata" / "metadata_1.parquet").to_pydict()
    assert metadata == {
        "image_path": ["k3.jpg", "k4.jpg", "k5.jpg"],
        "caption": ["a cat", "a dog", "a cat"],
        "key": ["k3", "k4", "k5"],
    }
    assert np.load(out / "img_emb" / "img_emb_0.npy").dtype == np.float16
    back = open_store(import_clip_retrieval(out, tmp_path / "back"))
    assert back.images is not None
    assert store.images is not None
    assert back.images.keys == store.images.keys
    np.testing.assert_array_equal(back.images.vectors(), store.images.vectors())
    assert back.texts is not None
    assert store.texts is not None
    np.testing.assert_array_equal(
        back.texts.vectors(back.texts.rows(["a cat", "a dog"])),
        store.texts.vectors(store.texts.rows(["a cat", "a dog"])),
    )


def test_export_refuses_what_would_be_wrong(tmp_path: Path) -> None:
    store = open_store(small_store(tmp_path / "s"))
    with pytest.raises(DataError, match="'k1' has no caption"):
        export_clip_retrieval(store, tmp_path / "out", captions={"k0": "a cat"})
    with pytest.raises(StoreError, match="'never poured' is not stored"):
        export_clip_retrieval(store, tmp_path / "out", captions=dict.fromkeys(store.images.keys, "never poured"))


def test_parts_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no clip-retrieval folder"):
        import_clip_retrieval(tmp_path / "nothing", tmp_path / "s")
    np.save(folder / "img_emb" / "img_emb_1.npy", unit(["c"]))
    with pytest.raises(StoreError, match=r"shape \[1, 8\] for 2 rows"):
        import_clip_retrieval(folder, tmp_path / "s")
    (folder / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(StoreError, match=r"metadata_1\.parquet: missing"):
        import_clip_retrieval(folder, tmp_path / "s")


def test_two_images_of_one_key_are_refused(folder: Path, tmp_path: Path) -> None:
    write_part(folder, 2, {"image_path": ["d/a.png"], "caption": ["x"]}, images=unit(["z"]), texts=unit(["x"]))
    with pytest.raises(StoreError, match="'d/a' is there twice"):
        import_clip_retrieval(folder, tmp_path / "s")


def test_only_images_suffixes_are_cut_from_keys() -> None:
    assert [plain_key(key) for key in ("a/b.JPG", "a.webp", "v1.0", ".jpg", "a.b.png")] == [
        "a/b", "a", "v1.0", ".jpg", "a.b",
    ]  # fmt: skip
