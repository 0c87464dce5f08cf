"""clip-retrieval's folders in and out: ``img_emb/``, ``text_emb/``, ``metadata/``, in numbered parts.

Row i of ``img_emb/img_emb_3.npy`` belongs to row i of ``metadata/metadata_3.parquet``, and so does row i of
``text_emb/text_emb_3.npy``, where it exists. There, identity is a position; here it is a key: the metadata's ``key``,
or else the image's path, both without an image's suffix (clip-retrieval keeps suffixes in some of its outputs and not
in others, which pairs images with other images' captions).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clipette.data.refs import IMAGE_SUFFIXES
from clipette.errors import DataError, StoreError
from clipette.io import digest, digest_file, digest_json, write_atomic
from clipette.store.layout import Identity
from clipette.store.reader import Store
from clipette.store.rows import Rows, read_columns
from clipette.store.writer import StoreWriter
from clipette.types import Floats

IMAGE_FOLDER, TEXT_FOLDER, METADATA_FOLDER = "img_emb", "text_emb", "metadata"


def plain_key(path: str) -> str:
    """``photos/a.jpg`` and ``photos/a`` are one key: ``photos/a``. Other endings than an image's are kept."""
    head, dot, suffix = path.rpartition(".")
    return head if head and f"{dot}{suffix.lower()}" in IMAGE_SUFFIXES else path


@dataclass(frozen=True)
class FolderPart:
    """One numbered part. ``images``, ``texts``: [n, D] as stored, memory-mapped, or None where the folder has none."""

    number: int
    keys: tuple[str, ...]
    captions: tuple[str | None, ...]
    images: npt.NDArray[Any] | None
    texts: npt.NDArray[Any] | None


def read_clip_retrieval(folder: str | Path) -> Iterator[FolderPart]:
    """The parts of a clip-retrieval folder, in the order of their numbers.

    Raises:
        StoreError: no such folder, no metadata, or parts whose row counts differ.
    """
    root = Path(folder)
    numbers = sorted({*_numbers(root, IMAGE_FOLDER), *_numbers(root, TEXT_FOLDER)})
    if not numbers:
        raise StoreError(f"{root}: no clip-retrieval folder (no img_emb/img_emb_0.npy and no text_emb/text_emb_0.npy)")
    for number in numbers:
        metadata = root / METADATA_FOLDER / f"metadata_{number}.parquet"
        if not metadata.exists():
            raise StoreError(f"{metadata}: missing; without it nothing says which image a row belongs to")
        columns = read_columns(metadata)
        images, texts = (_load(root, kind, number, columns.num_rows) for kind in (IMAGE_FOLDER, TEXT_FOLDER))
        captions = _column(columns, "caption") or [None] * columns.num_rows
        keys = _column(columns, "key") or _column(columns, "image_path")
        if keys is None:
            if images is not None:
                raise StoreError(
                    f"{metadata}: neither a column 'key' nor 'image_path': rows of images have no identity"
                )
            keys = captions
        named = tuple(plain_key(_named(key, metadata, row)) for row, key in enumerate(keys))
        yield FolderPart(number, named, tuple(captions), images, texts)


def _numbers(root: Path, kind: str) -> list[int]:
    found = [re.fullmatch(rf"{kind}_(\d+)\.npy", path.name) for path in (root / kind).glob("*.npy")]
    return [int(match.group(1)) for match in found if match is not None]


def _path(root: Path, kind: str, number: int) -> Path:
    """clip-retrieval pads numbers with zeros where there are many parts."""
    for path in (root / kind).glob("*.npy"):
        if re.fullmatch(rf"{kind}_0*{number}\.npy", path.name):
            return path
    return root / kind / f"{kind}_{number}.npy"


def _load(root: Path, kind: str, number: int, rows: int) -> npt.NDArray[Any] | None:
    path = _path(root, kind, number)
    if not path.exists():
        return None
    try:
        vectors: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path}: cannot be read as an array of numbers ({error})") from error
    if vectors.ndim != 2 or len(vectors) != rows:
        raise StoreError(
            f"{path}: shape {list(vectors.shape)} for {rows} rows of metadata; they do not belong together"
        )
    return vectors


def _column(columns: Any, name: str) -> list[Any] | None:
    values: list[Any] | None = columns.column(name).to_pylist() if name in columns.column_names else None
    return values


def _named(key: Any, metadata: Path, row: int) -> str:
    if key is None or key == "":
        raise StoreError(f"{metadata}: row {row} has no key and no path")
    return str(key)


def unit_rows(vectors: npt.NDArray[Any]) -> Floats:
    """[n, D] float32 of unit length; rows that are so already to fp16's precision keep their bits."""
    rows = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    off = np.abs(norms[:, 0] - 1) > 2e-3
    if off.any():
        rows = rows.copy()
        rows[off] /= np.maximum(norms[off], 1e-12)
    return rows


def import_clip_retrieval(
    folder: str | Path, out: str | Path, *, identity: Identity | None = None, info: Mapping[str, Any] | None = None
) -> Path:
    """A clip-retrieval folder as a store; imported again, it changes nothing.

    ``identity``: of the encoder that made the folder, where known; else the digest of its files. Captions become
    rows of the table of texts. ``info``: for example ``{"logit_scale": 100.0}``.

    Raises:
        StoreError: parts that do not fit together, two images of one key, or another store at ``out``.
    """
    root, target = Path(folder), Path(out)
    parts = list(read_clip_retrieval(root))
    first = next(array for part in parts for array in (part.images, part.texts) if array is not None)
    files = sorted(path for kind in (IMAGE_FOLDER, TEXT_FOLDER) for path in (root / kind).glob("*.npy"))
    origin = {"space": digest_json([digest_file(path) for path in files]), "dim": int(first.shape[1])}
    known = identity or {"encoder": origin}
    with StoreWriter(target, known, int(first.shape[1]), info={"name": root.name, **(info or {})}) as writer:
        images, texts = writer.known("images"), writer.known("texts")
        seen: set[str] = set()
        for part in parts:
            tables: dict[str, Rows] = {}
            if part.images is not None:
                tables["images"] = _image_rows(part, images, seen)
            if part.texts is not None:
                tables["texts"] = _text_rows(part, texts)
            if any(len(rows.keys) for rows in tables.values()):
                writer.append(tables)
        writer.finish()
    return target


def _image_rows(part: FolderPart, known: Mapping[str, str], seen: set[str]) -> Rows:
    assert part.images is not None
    chosen, content = [], []
    for row, key in enumerate(part.keys):
        if key in seen:
            raise StoreError(
                f"part {part.number}, row {row}: the key {key!r} is there twice (paths that differ only in their "
                "suffix?); give the metadata a column 'key' with a name of its own for each image"
            )
        seen.add(key)
        # The images themselves are elsewhere: their vectors stand for their content.
        value = digest(np.ascontiguousarray(part.images[row]).tobytes())
        if known.get(key) != value:
            chosen.append(row)
            content.append(value)
    return Rows([part.keys[row] for row in chosen], content, unit_rows(part.images[chosen]))


def _text_rows(part: FolderPart, known: dict[str, str]) -> Rows:
    """One row per caption that is new; equal captions have equal vectors, so the first stands for all."""
    assert part.texts is not None
    chosen: list[int] = []
    for row, caption in enumerate(part.captions):
        if caption and caption not in known:
            known[caption] = digest(caption.encode("utf-8", "surrogatepass"))
            chosen.append(row)
    texts = [str(part.captions[row]) for row in chosen]
    return Rows(texts, [known[text] for text in texts], unit_rows(part.texts[chosen]))


def export_clip_retrieval(
    store: Store,
    folder: str | Path,
    *,
    captions: Mapping[str, str] | None = None,
    paths: Mapping[str, str] | None = None,
    part_rows: int = 100_000,
) -> Path:
    """A store's images as a clip-retrieval folder, with keys in its metadata; a store of texts alone as its texts.

    ``captions``: key → the one caption whose vector stands beside the image (``text_emb``, only where given);
    ``paths``: key → the image's path for ``image_path`` (the key, where not given).

    Raises:
        StoreError: a caption that was not poured, or an empty store.
        DataError: an image without a caption, where captions are given.
    """
    root = Path(folder)
    images, texts = store.images, store.texts
    keys = images.keys if images is not None else texts.keys if texts is not None else ()
    if not keys:
        raise StoreError(f"{store.path}: nothing to export")
    if images is None:
        captions = {key: key for key in keys}
    for number, start in enumerate(range(0, len(keys), part_rows)):
        chosen = keys[start : start + part_rows]
        columns: dict[str, list[str]] = {"image_path": [(paths or {}).get(key, key) for key in chosen]}
        if captions is not None:
            missing = next((key for key in chosen if key not in captions), None)
            if missing is not None:
                raise DataError(f"{store.path}: the image {missing!r} has no caption to export")
            columns["caption"] = [captions[key] for key in chosen]
            table = store.table("texts")
            _save(root, TEXT_FOLDER, number, table.vectors(table.rows(columns["caption"])))
        if images is not None:
            _save(root, IMAGE_FOLDER, number, images.vectors(images.rows(chosen)))
        sink = io.BytesIO()
        pq.write_table(pa.table({**columns, "key": list(chosen)}), sink)
        write_atomic(root / METADATA_FOLDER / f"metadata_{number}.parquet", sink.getvalue())
    return root


def _save(root: Path, kind: str, number: int, vectors: Floats) -> None:
    buffer = io.BytesIO()
    np.save(buffer, vectors.astype(np.float16), allow_pickle=False)
    write_atomic(root / kind / f"{kind}_{number}.npy", buffer.getvalue())
