"""The verbs of ``clipette index``: references and paths in, plain values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from clipette.data.sources import load_data
from clipette.errors import ConfigError, StoreError
from clipette.index.build import add_all, build_index
from clipette.index.calibrate import calibrate, keep_calibration
from clipette.index.clicked import evaluate_clicks
from clipette.index.clicks import read_clicks
from clipette.index.collection import Collection
from clipette.index.drafting import Texts
from clipette.index.layout import EXACT_ROWS
from clipette.index.mixed import measure_mixed
from clipette.index.opening import open_index
from clipette.index.query import Query
from clipette.index.recall import asked_recall, raise_until
from clipette.index.search import Searcher, Threshold
from clipette.index.store import Kind
from clipette.index.writing import AddReport
from clipette.resolve import resolve
from clipette.types import Encoder, Failure


def build(
    data: Sequence[str],
    model: str,
    out: str | Path,
    *,
    texts: Texts = "none",
    store: str = "lance",
    recall: float = 0.98,
    exact_rows: int = EXACT_ROWS,
    max_failures: float = 0.1,
    batch_size: int = 64,
    device: str | None = None,
) -> dict[str, Any]:
    """Build an index of ``data`` (references) by ``model`` at ``out``; what it holds then.

    ``texts``: "captions" makes captions searchable too; ``store``: "lance" or ``milvus://HOST:PORT``; ``recall``:
    recall@10 asked of approximate search, which begins beyond ``exact_rows`` rows; ``max_failures``: share of samples
    that may be unreadable. Raises as ``index.build_index``.
    """
    found = load_data(" + ".join(data))
    # A classifier's vectors are logits: they say nothing of what is like what.
    encoder = resolve(model, device=device, classifiers=False)
    with build_index(
        found,
        encoder,
        out,
        texts=texts,
        store=store,
        recall=recall,
        exact_rows=exact_rows,
        max_failures=max_failures,
        batch_size=batch_size,
        progress=True,
    ) as collection:
        return collection.info()


def add(
    index: str | Path,
    data: Sequence[str],
    model: str,
    *,
    texts: Texts | None = None,
    prefix: str = "",
    replace: bool = False,
    batch_size: int = 64,
    device: str | None = None,
) -> dict[str, Any]:
    """Add ``data`` to an index; what is there already is encoded again only where it has changed.

    ``texts``: as at the build, where not given; ``prefix``: put before every key; ``replace``: let a key be taken over
    by another file.
    """
    found = load_data(" + ".join(data))
    encoder = resolve(model, device=device, classifiers=False)
    with open_index(index, write=True) as collection:
        chosen = _texts(collection) if texts is None else texts
        report = add_all(
            collection,
            found.samples,
            encoder,
            texts=chosen,
            prefix=prefix,
            replace_files=replace,
            batch_size=batch_size,
            progress=True,
        )
        if (derived := collection.manifest.derived) is not None and derived.effort is None:
            # It has outgrown exact search, and what was measured before says nothing about the graph.
            raise_until(collection, asked_recall(collection))
        return {"path": str(index), **_told(report, found.failures), "rows": len(collection)}


def _texts(collection: Collection) -> Texts:
    return "captions" if collection.facts.get("texts") == "captions" else "none"


def _told(report: AddReport, listed: Sequence[Failure]) -> dict[str, Any]:
    failures = [asdict(failure) for failure in (*listed, *report.failures)]
    return {
        "added": report.added,
        "updated": report.updated,
        "unchanged": report.unchanged,
        "deleted": report.deleted,
        "failures": failures,
        "generation": report.generation,
    }


def delete(index: str | Path, keys: Sequence[str] = (), *, where: str | None = None) -> dict[str, Any]:
    """Delete rows by key, or all that match a filter.

    Raises ``StoreError`` naming keys that are not there, ``ConfigError`` where neither is given.
    """
    if not keys and where is None:
        raise ConfigError("nothing to delete: name keys, or a filter with --where")
    with open_index(index, write=True) as collection:
        missing = [key for key in keys if key not in collection]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise StoreError(f"{index}: no row has the key {missing[0]!r}{more}; nothing was deleted")
        chosen = list(keys) if where is None else [*keys, *collection.keys(where=where)]
        count = collection.delete(chosen)
        return {"path": str(index), "deleted": count, "rows": len(collection), "generation": collection.generation}


def search(
    index: str | Path,
    text: str | None = None,
    *,
    model: str | None = None,
    image: str | Path | None = None,
    key: str | None = None,
    negatives: Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
    k: int = 20,
    where: str | None = None,
    kind: Kind | Literal["any"] = "image",
    mmr: float | None = None,
    group: bool = False,
    threshold: Threshold = "auto",
    liked: Sequence[str] = (),
    disliked: Sequence[str] = (),
    exact: bool | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Search an index; see ``index.search.Searcher.search``. ``model`` is needed for texts and images."""
    if model is None and (text or image or negatives):
        raise ConfigError("a text or an image is searched with a model: name one of the index' space with --model")
    encoder = None if model is None else resolve(model, device=device)
    asked = text is not None or image is not None or key is not None or bool(negatives)
    query = (
        Query.parse(text, image=image, key=key, negatives=tuple(negatives), weights=weights or {}) if asked else None
    )
    with open_index(index) as collection:
        found = Searcher(collection, encoder).search(
            query,
            k,
            where=where,
            kind=kind,
            mmr=mmr,
            group=group,
            threshold=threshold,
            liked=liked,
            disliked=disliked,
            exact=exact,
        )
        told: dict[str, Any] = asdict(found)
        return told


def verify(
    index: str | Path,
    *,
    recall: bool = True,
    queries: str | None = None,
    model: str | None = None,
    own: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Check an index' files, its vector store and its recall; ``sound`` says whether all is well.

    ``queries``: data that was indexed, for what ``model``'s queries find there (a student's on its teacher's index),
    beside those of ``own``, the model that built it.
    """
    if (queries is None) != (model is None):
        raise ConfigError("--queries and --model go together: the data to ask about, and the model that asks")
    with open_index(index) as collection:
        report = {"path": str(index), **collection.verify(recall=recall)}
        if queries is not None and model is not None:
            builder = None if own is None else resolve(own, device=device)
            samples = load_data(queries).samples
            measured = measure_mixed(collection, resolve(model, device=device), samples, own=builder)
            report["mixed"] = measured.to_json()
        return report


def rebuild(
    index: str | Path, *, recall: float | None = None, model: str | None = None, device: str | None = None
) -> dict[str, Any]:
    """Make an index' vector store anew from its rows; with ``model``, calibrate its scores anew too."""
    with open_index(index, write=True) as collection:
        measured = collection.rebuild(recall=recall, progress=True)
        if model is not None:
            calibrate_with(collection, resolve(model, device=device))
        return {"path": str(index), "rows": len(collection), "recall": measured}


def calibrate_with(collection: Collection, encoder: Encoder) -> None:
    """Measure what scores mean, and keep it."""
    keep_calibration(collection, calibrate(collection, encoder))


def clicks(
    index: str | Path, log: str | Path, *, model: str | None = None, device: str | None = None
) -> dict[str, Any]:
    """What users clicked (the log of ``serve --clicks``) asked of the index again: where their choices rank now.

    ``model`` is needed where the log holds queries in words. Raises ``DataError``: no log, or nothing in it that can
    be asked.
    """
    found = read_clicks(log)
    encoder = None if model is None else resolve(model, device=device)
    if encoder is None and any(click.query.get("text") or click.query.get("negatives") for click in found.clicks):
        raise ConfigError(f"{log} holds queries in words: name a model of the index' space with --model")
    with open_index(index) as collection:
        report = evaluate_clicks(Searcher(collection, encoder), found.clicks)
    return {"path": str(index), "log": str(log), **report.to_json(), "skipped_lines": len(found.skipped)}


def info(index: str | Path) -> dict[str, Any]:
    """What an index holds: model, rows, columns for filters, measured recall, size."""
    with open_index(index, unfinished=True) as collection:
        return collection.info()
