"""From samples to rows: what is new or changed is encoded, what is neither is left alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from clipette.errors import BadImageError, DataError
from clipette.index.filters import BUILT_IN, Filter, In
from clipette.index.places import BLOB, NOWHERE, Place, file_of, place_of, stamp_of, with_roots
from clipette.index.shards import Draft
from clipette.index.snapshot import Snapshot
from clipette.index.store import Kind, Row, Value
from clipette.io import digest
from clipette.types import Encoder, Failure, Floats, Sample

Texts: TypeAlias = Literal["none", "captions"]
# Facts of a sample that become columns beside its metadata.
SAMPLE_COLUMNS = {"class": "class_name", "label": "label", "domain": "domain", "split": "split"}


@dataclass
class Drafted:
    """What an add will write: rows, image bytes to keep, keys to delete, and what happened to the rest."""

    rows: Draft
    roots: tuple[str, ...]
    blob: bytes = b""
    gone: list[str] = field(default_factory=list)
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    failures: list[Failure] = field(default_factory=list)


@dataclass
class _Plan:
    """One row to be: ``data``: image bytes to keep; ``vector`` is known where its image or text has not changed."""

    row: Row
    place: Place
    stamp: str
    sample: Sample | None
    data: bytes = b""
    old: int = -1
    vector: Floats | None = None


def meta_of(sample: Sample) -> dict[str, Value]:
    """A sample's metadata as columns; class, label, domain and split are columns too. Raises ``DataError``."""
    found: dict[str, Value] = {}
    for name, value in sample.meta.items():
        if value is not None and not isinstance(value, str | int | float | bool):
            raise DataError(f"{sample.key!r}: the value of {name!r} is {type(value).__name__}; a column holds text, "
                            "numbers, true or false")  # fmt: skip
        found[_column_name(name)] = value
    for name, attribute in SAMPLE_COLUMNS.items():
        value = getattr(sample, attribute)
        if value is not None:
            found[name] = value
    return {name: value for name, value in found.items() if value is not None}


def _column_name(name: str) -> str:
    """Names that the index uses itself get an underscore."""
    return f"{name}_" if name in BUILT_IN or name.startswith("__") else name


def merged_columns(known: Mapping[str, str], rows: Iterable[Row]) -> dict[str, str]:
    """Types of all columns: of new ones by their values (mixed ones are text), whole numbers widened to float.

    Raises ``DataError`` where a known column meets a value of another type.
    """
    columns = dict(known)
    fresh: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.meta.items():
            kind = _type_of(value)
            if kind is None:
                continue
            if name not in known:
                fresh.setdefault(name, set()).add(kind)
            elif kind != columns[name] and columns[name] != "text":
                if {kind, columns[name]} != {"int", "float"}:
                    raise DataError(
                        f"{row.key!r}: the column {name!r} holds {columns[name]}, {value!r} is {kind}; correct the "
                        "value, or give it a column of another name"
                    )
                columns[name] = "float"
    for name, kinds in fresh.items():
        columns[name] = kinds.pop() if len(kinds) == 1 else "float" if kinds == {"int", "float"} else "text"
    return columns


def _type_of(value: Value) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    return "text" if isinstance(value, str) else "int" if isinstance(value, int) else "float"


def draft_samples(
    snapshot: Snapshot,
    samples: Sequence[Sample],
    encoder: Encoder,
    *,
    texts: Texts = "none",
    replace: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> Drafted:
    """Rows of ``samples``; see ``Collection.add``."""
    files = [path for path in (file_of(sample.image) for sample in samples) if path is not None]
    roots = with_roots(snapshot.manifest.roots, files)
    drafted = Drafted(Draft([], np.zeros((0, encoder.dim), np.float32), [], []), roots)
    plans: list[_Plan] = []
    readable: list[Sample] = []
    for sample in samples:
        try:
            plans += _plan_sample(sample, texts, drafted)
            readable.append(sample)
        except BadImageError as error:
            location = sample.image.location if sample.image is not None else ""
            drafted.failures.append(Failure(sample.key, location, str(error)))
    stale = _stale_captions(snapshot, readable, texts)
    plans = [plan for plan in plans if _compared(snapshot, plan, drafted, replace)]
    lost = _encode(plans, encoder, drafted, batch_size, progress)
    kept = [plan for plan in plans if plan.vector is not None and plan.row.of not in lost]
    drafted.added = sum(plan.old < 0 for plan in kept)
    drafted.updated = len(kept) - drafted.added
    vectors = np.stack([plan.vector for plan in kept if plan.vector is not None]) if kept else drafted.rows.vectors
    drafted.blob = _blob(kept)
    drafted.rows = Draft([p.row for p in kept], vectors, [p.place for p in kept], [p.stamp for p in kept])
    drafted.gone = [key for key, owner in stale.items() if owner not in lost]
    return drafted


def _blob(plans: Sequence[_Plan]) -> bytes:
    """The image bytes that are to be kept, one after the other, and their places in it."""
    blob = bytearray()
    for plan in plans:
        if plan.place.root == BLOB and not plan.place.path:
            plan.place = Place(BLOB, "", plan.place.member, len(blob), len(plan.data))
            blob += plan.data
    return bytes(blob)


def _plan_sample(sample: Sample, texts: Texts, drafted: Drafted) -> list[_Plan]:
    meta, plans = meta_of(sample), []
    if sample.image is not None:
        data = b""
        if file_of(sample.image) is not None:
            place, stamp = place_of(sample.image, drafted.roots), stamp_of(sample.image)
        else:
            data = sample.image.read()
            # Where in which blob is known when it is written.
            place, stamp = Place(BLOB, "", sample.image.location), digest(data)
        caption = sample.captions[0] if sample.captions else None
        row = Row(sample.key, "image", place.shown, caption, meta)
        plans.append(_Plan(row, place, stamp, sample, data))
    elif not sample.captions:
        drafted.failures.append(Failure(sample.key, "", "neither an image nor a text; drop the row"))
    if sample.image is None or texts == "captions":
        of = None if sample.image is None else sample.key
        for position, text in enumerate(sample.captions):
            key = sample.key if of is None and position == 0 else f"{sample.key}#{position}"
            plans.append(_Plan(Row(key, "text", "", text, meta, of), NOWHERE, digest(text.encode()), None))
    return plans


def _stale_captions(snapshot: Snapshot, samples: Sequence[Sample], texts: Texts) -> dict[str, str]:
    """Keys of captions that samples no longer have, each with the key of its sample."""
    stale: dict[str, str] = {}
    images = [sample.key for sample in samples if sample.image is not None] if texts == "captions" else []
    there = {key for key, row in zip(images, snapshot.find(images).tolist(), strict=True) if row >= 0}
    if there and snapshot.count("text"):
        # By the image's key: where one caption was deleted by itself, those after it are its own still.
        known = snapshot.keys(snapshot.mask(Filter(In("of", tuple(sorted(there)))), "text")[0])
        counts = {sample.key: len(sample.captions) for sample in samples}
        for key in known:
            owner, _, number = key.rpartition("#")
            if owner in there and number.isdecimal() and int(number) >= counts[owner]:
                stale[key] = owner
    for sample in samples:
        position = len(sample.captions)
        while sample.image is None and position and _is_text(snapshot, key := f"{sample.key}#{position}"):
            stale[key] = sample.key
            position += 1
    return stale


def _is_text(snapshot: Snapshot, key: str) -> bool:
    """Whether ``key`` is that of a text by itself."""
    row = int(snapshot.find([key])[0])
    return row >= 0 and (known := snapshot.row(row)).kind == "text" and known.of is None


def _compared(snapshot: Snapshot, plan: _Plan, drafted: Drafted, replace: bool) -> bool:
    """Whether the row must be written; takes its vector over where only other things changed."""
    plan.old = int(snapshot.find([plan.row.key])[0])
    if plan.old < 0:
        return True
    old, place = snapshot.row(plan.old), snapshot.place(plan.old)
    if old.kind != plan.row.kind or (old.of is not None and old.of != plan.row.of):
        _refuse(old, plan.row)
    if not replace and place.root >= 0 and plan.place.root >= 0 and place != plan.place:
        same_file = (place.root, place.path, place.member) == (plan.place.root, plan.place.path, plan.place.member)
        if not same_file:
            raise DataError(
                f"the key {plan.row.key!r} is already that of {place.shown}, and {plan.place.shown} is another image: "
                "give the new data a prefix of its own (--prefix), or say that it replaces the old (--replace)"
            )
    if snapshot.stamp(plan.old) != plan.stamp:
        return True
    if plan.place.root == BLOB:
        plan.place = place  # the same bytes are there already
    if place == plan.place and old == plan.row:
        drafted.unchanged += 1
        return False
    plan.vector = snapshot.vectors([plan.old])[0]
    return True


def _refuse(old: Row, new: Row) -> None:
    raise DataError(
        f"the key {new.key!r} of this {new.kind} is already that of {'an' if old.kind == 'image' else 'a'} {old.kind}"
        f"{f' (a caption of {old.of!r})' if old.of else ''}; rename it"
    )


def _encode(plans: Sequence[_Plan], encoder: Encoder, drafted: Drafted, batch_size: int, progress: bool) -> set[str]:
    """Give every plan its vector; the keys of images that could not be read."""
    todo = [plan for plan in plans if plan.vector is None]
    images = [plan for plan in todo if plan.sample is not None]
    lost: set[str] = set()
    if images:
        samples = [plan.sample for plan in images if plan.sample is not None]
        encoded = encoder.encode_samples(samples, batch_size=batch_size, progress=progress)
        found = dict(zip(encoded.keys, encoded.vectors, strict=True))
        for plan in images:
            plan.vector = found.get(plan.row.key)
        lost = {failure.key for failure in encoded.failures}
        drafted.failures += encoded.failures
    texts = [plan for plan in todo if plan.sample is None and plan.row.of not in lost]
    if texts:
        vectors = encoder.encode_texts([plan.row.text or "" for plan in texts])
        for plan, vector in zip(texts, vectors, strict=True):
            plan.vector = vector
    return lost


def kind_counts(rows: Sequence[Row]) -> dict[Kind, int]:
    """How many rows of each kind."""
    return {"image": sum(row.kind == "image" for row in rows), "text": sum(row.kind == "text" for row in rows)}
