"""Tables of images: CSV, TSV, JSON lines and Parquet rows of a path (or the bytes) and captions and/or a class."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from clipette.data.dataset import Listing
from clipette.data.fields import sample_of
from clipette.data.paths import expand, key_of
from clipette.data.refs import CellImage, Column, FileImage
from clipette.errors import ConfigError, DataError
from clipette.types import Failure, ImageBytes, Sample

OPTIONS = {
    "root": "folder that relative image paths start from (default: the table's own)",
    "image": "column of the image's path or bytes",
    "caption": "column(s) of captions, comma-separated",
    "class": "column of class names",
    "label": "column of class numbers",
    "key": "column of keys",
}
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_path", "file_name", "filename", "path", "file", "img", "jpg",
                 "jpeg", "png", "webp")  # fmt: skip
KEY_COLUMNS = ("key", "image_id", "id", "sha256", "uid")
Record = Mapping[str, object]


def list_csv(rest: str, options: Mapping[str, str]) -> Listing:
    """``csv:`` with a header row."""
    return _merged(sample for path in expand(rest, (".csv",)) for sample in _delimited(path, ",", options))


def list_tsv(rest: str, options: Mapping[str, str]) -> Listing:
    """``tsv:`` with a header row."""
    return _merged(sample for path in expand(rest, (".tsv",)) for sample in _delimited(path, "\t", options))


def list_jsonl(rest: str, options: Mapping[str, str]) -> Listing:
    """``jsonl:``: one JSON object a line."""
    return _merged(sample for path in expand(rest, (".jsonl",)) for sample in _json_lines(path, options))


def list_parquet(rest: str, options: Mapping[str, str]) -> Listing:
    """``parquet:``: paths, or encoded images in a column (img2dataset's, Hugging Face's); held in memory."""
    return _merged(sample for path in expand(rest, (".parquet",)) for sample in _parquet(path, options))


def renamed(record: Record, options: Mapping[str, str], place: str) -> Record:
    """The record with the columns that the options name under their usual names. Raises ``ConfigError``."""
    chosen = {name: options[name] for name in ("caption", "class", "label") if name in options}
    if not chosen:
        return record
    columns = {column for text in chosen.values() for column in text.split(",")}
    if missing := columns - set(record):
        raise ConfigError(f"{place}: no column {sorted(missing)}; columns here: {sorted(record)}")
    out = dict(record)
    if "caption" in chosen:
        captions = [record[column] for column in chosen["caption"].split(",")]
        out["captions"] = captions if len(captions) > 1 else captions[0]
        # What is stated replaces what would be recognised.
        out["caption"] = None
    if "class" in chosen:
        out["clip_name"] = record[chosen["class"]]
    if "label" in chosen:
        out["label"] = record[chosen["label"]]
    return out


def find_column(columns: Iterable[str], known: tuple[str, ...], stated: str | None, place: str) -> str | None:
    """The stated column, or the first known one. Raises ``ConfigError`` if the stated one is absent."""
    present = list(columns)
    if stated is not None:
        if stated not in present:
            raise ConfigError(f"{place}: no column '{stated}'; columns here: {', '.join(present)}")
        return stated
    return next((name for name in known if name in present), None)


def _delimited(path: Path, delimiter: str, options: Mapping[str, str]) -> Iterator[Sample | Failure]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = _Lines(file)
            reader = csv.reader(lines, delimiter=delimiter)
            header = next(reader, None)
            if not header:
                raise DataError(f"{path}: the table is empty; its first row must name the columns")
            image_column, key_column = _columns(path, header, options)
            lines.taken.clear()
            for cells in reader:
                place = f"{path} row {reader.line_num}"
                lines.check_quotes(path, reader.line_num, delimiter)
                if not cells:
                    continue
                if len(cells) != len(header):
                    reason = f"{len(cells)} cells for {len(header)} columns; quote cells that hold the delimiter"
                    yield Failure(place, place, reason)
                    continue
                yield from _row(dict(zip(header, cells, strict=True)), place, path, image_column, key_column, options)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save the table as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} row {reader.line_num}: not a readable table ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


class _Lines:
    """The lines of a file, those of the present row kept: a quote that never closes swallows all rows after it."""

    def __init__(self, file: Iterable[str]) -> None:
        self._file = iter(file)
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.taken.append(line)
            yield line

    def check_quotes(self, path: Path, last: int, delimiter: str) -> None:
        """After a row: raises ``DataError`` where it ended with the file, inside quotes."""
        taken, self.taken = self.taken, []
        if len(taken) < 2:
            return
        try:
            list(csv.reader(taken, delimiter=delimiter, strict=True))
        except csv.Error as error:
            if "end of data" in str(error):
                raise DataError(
                    f"{path} row {last - len(taken) + 1}: a quote opens here and never closes, so that the "
                    f"{len(taken) - 1} lines after it would be one cell; close it"
                ) from None


def _json_lines(path: Path, options: Mapping[str, str]) -> Iterator[Sample | Failure]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                place = f"{path} row {number}"
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    yield Failure(place, place, f"not a JSON object: {error}")
                    continue
                if not isinstance(record, dict):
                    yield Failure(place, place, "not a JSON object")
                    continue
                image_column, key_column = _columns(path, record, options)
                yield from _row(record, place, path, image_column, key_column, options)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _parquet(path: Path, options: Mapping[str, str]) -> Iterator[Sample | Failure]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); fetch it again") from error
    image_column, key_column = _columns(path, table.column_names, options)
    images = table.column(image_column)
    holds_bytes = not (pa.types.is_string(images.type) or pa.types.is_large_string(images.type))
    plain = [
        name for name in table.column_names
        if not (pa.types.is_binary(table.schema.field(name).type) or name == image_column)
    ]  # fmt: skip
    for batch_start in range(0, table.num_rows, 4096):
        for offset, record in enumerate(table.select(plain).slice(batch_start, 4096).to_pylist()):
            row = batch_start + offset
            place = f"{path} row {row + 1}"
            if holds_bytes:
                yield from _cell_row(record, images, row, place, path, key_column, options)
            else:
                record[image_column] = images[row].as_py()
                yield from _row(record, place, path, image_column, key_column, options)


def _columns(path: Path, header: Iterable[str], options: Mapping[str, str]) -> tuple[str, str | None]:
    columns = list(header)
    image = find_column(columns, IMAGE_COLUMNS, options.get("image"), str(path))
    if image is None:
        raise DataError(
            f"{path}: no column of images among {', '.join(columns)}; name it with ?image=COLUMN "
            f"(recognised: {', '.join(IMAGE_COLUMNS)})"
        )
    return image, find_column(columns, KEY_COLUMNS, options.get("key"), str(path))


def _row(
    record: Record, place: str, path: Path, image_column: str, key_column: str | None, options: Mapping[str, str]
) -> Iterator[Sample | Failure]:
    """The sample of a row that names an image file, then what was dropped from it."""
    name = record.get(image_column)
    if not isinstance(name, str) or not name.strip():
        yield Failure(place, place, f"column '{image_column}' is empty")
        return
    name = name.strip()
    if "://" in name:
        yield Failure(place, place, f"'{name}' is an address, not a file; fetch the images first (img2dataset)")
        return
    root = os.path.expanduser(options["root"]) if "root" in options else str(path.parent)
    image = FileImage(os.path.join(root, name), place)
    key = _stated_key(record, key_column) or key_of(name, root)
    # Where the image lies is no fact about it: an index shows facts to everyone who searches.
    told = {column: value for column, value in record.items() if column not in (image_column, "key")}
    yield from _sample(key, image, told, place, options)


def _cell_row(
    record: Record, images: Column, row: int, place: str, path: Path, key_column: str | None, options: Mapping[str, str]
) -> Iterator[Sample | Failure]:
    """The sample of a row that holds the encoded image."""
    value = images[row].as_py()
    name = value.get("path") if isinstance(value, Mapping) else None
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes) and not name:
        yield Failure(place, place, "the image cell is null")
        return
    key = _stated_key(record, key_column) or content_key(name, data)
    yield from _sample(key, CellImage(images, row, place, str(path.parent)), record, place, options)


def content_key(name: object, data: object) -> str:
    """The key of an image in a table: its file's name where it has one, else a digest of its bytes."""
    from clipette.io import digest

    if isinstance(name, str) and name:
        return key_of(name)
    return digest(data) if isinstance(data, bytes) else ""


def _sample(
    key: str, image: ImageBytes, record: Record, place: str, options: Mapping[str, str]
) -> Iterator[Sample | Failure]:
    notes: list[Failure] = []
    yield sample_of(key, image, renamed(record, options, place), notes, place=place)
    yield from notes


def _stated_key(record: Record, key_column: str | None) -> str:
    value = record.get(key_column) if key_column is not None else None
    return "" if value is None else str(value).strip()


def _merged(rows: Iterable[Sample | Failure]) -> Listing:
    """One sample an image: rows that name the same image and bring another caption add it (one caption a row)."""
    listing = Listing()
    position: dict[str, int] = {}
    for row in rows:
        if isinstance(row, Failure):
            listing.failures.append(row)
            continue
        known = position.setdefault(row.key, len(listing.samples))
        if known == len(listing.samples):
            listing.samples.append(row)
            continue
        first = listing.samples[known]
        fresh = tuple(caption for caption in row.captions if caption not in first.captions)
        if fresh and _same_image(first, row):
            listing.samples[known] = replace(first, captions=first.captions + fresh)
        else:
            listing.samples.append(row)  # a duplicate key: recorded where keys are made unique
    return listing


def _same_image(first: Sample, second: Sample) -> bool:
    one, other = first.image, second.image
    if isinstance(one, FileImage) and isinstance(other, FileImage):
        return one.path == other.path
    return isinstance(one, CellImage) and isinstance(other, CellImage) and one.read() == other.read()
