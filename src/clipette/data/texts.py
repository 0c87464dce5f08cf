"""Text-only corpora, for distilling a text tower: lines, JSON lines, or a column of a table."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from clipette.data.dataset import Listing
from clipette.data.fields import record_captions
from clipette.data.paths import expand
from clipette.errors import DataError
from clipette.io import digest
from clipette.types import Failure, Sample

OPTIONS = {"column": "column of the text, in tables and JSON lines (default: caption, text, sentence, title)"}
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".json", ".csv", ".tsv", ".parquet")


def list_texts(rest: str, options: Mapping[str, str]) -> Listing:
    """``text:``. A sample's key is a digest of its text, so that equal texts are one sample and order is free."""
    listing = Listing()
    seen: dict[str, str] = {}
    for path in expand(rest, SUFFIXES):
        try:
            for row, text in _texts(path, options.get("column")):
                place = f"{path} row {row}"
                text = text.strip()
                key = digest(text.encode())
                if not text:
                    listing.failures.append(Failure(place, place, "an empty text was dropped"))
                elif key in seen:
                    listing.failures.append(Failure(key, place, f"the same text as {seen[key]}: kept once"))
                else:
                    seen[key] = place
                    listing.samples.append(Sample(key, captions=(text,)))
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, OSError) as error:
            raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
        except csv.Error as error:
            raise DataError(f"{path}: not a readable table ({error})") from error
    return listing


def _texts(path: Path, column: str | None) -> Iterator[tuple[int, str]]:
    """(row, text), rows from 1."""
    name = path.name
    if name.endswith((".csv", ".tsv")):
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if name.endswith(".tsv") else ",")
            for record in reader:
                yield from ((reader.line_num, text) for text in _of_record(dict(record), column, path))
    elif name.endswith(".parquet"):
        yield from _of_parquet(path, column)
    elif name.endswith(".json"):
        yield from enumerate(_of_json(path), 1)
    else:
        data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
        # Not splitlines(): it would also cut at form feeds and Unicode's own separators inside a text.
        lines = data.decode("utf-8-sig").split("\n")
        for row, line in enumerate(lines if lines[-1] else lines[:-1], 1):
            if name.endswith(".jsonl"):
                yield from ((row, text) for text in _of_line(line, column, path, row))
            else:
                yield row, line


def _of_line(line: str, column: str | None, path: Path, row: int) -> list[str]:
    if not line.strip():
        return []
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path} row {row}: not JSON ({error})") from error
    return [value] if isinstance(value, str) else _of_record(value, column, path)


def _of_record(record: object, column: str | None, path: Path) -> list[str]:
    if not isinstance(record, dict):
        raise DataError(f"{path}: expected one object or string a row, found {record!r:.60}")
    if column is None:
        return record_captions(record)
    if column not in record:
        raise DataError(f"{path}: no column '{column}'; columns here: {', '.join(map(str, record))}")
    return record_captions({"captions": record[column]})


def _of_parquet(path: Path, column: str | None) -> Iterator[tuple[int, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=None if column is None else [column])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from error
    for row, record in enumerate(table.to_pylist(), 1):
        yield from ((row, text) for text in _of_record(record, column, path))


def _of_json(path: Path) -> list[str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if isinstance(value, dict):
        # CuPL's format: class -> sentences.
        return [text for sentences in value.values() for text in record_captions({"captions": sentences})]
    return record_captions({"captions": value})
