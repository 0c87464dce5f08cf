"""An index from a data source: encoded in pieces, each on disk before the next, so that a killed build goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipette.data.dataset import Dataset
from clipette.data.loading import FailureLimit
from clipette.errors import DataError, StoreError, UnsupportedError
from clipette.index.calibrate import calibrate, keep_calibration
from clipette.index.collection import Collection
from clipette.index.derived import check_store
from clipette.index.drafting import Texts
from clipette.index.layout import EXACT_ROWS, MANIFEST
from clipette.index.opening import create, open_index
from clipette.index.recall import QUERIES, keep_queries, raise_until
from clipette.index.shards import check_key
from clipette.index.writing import AddReport
from clipette.progress import track
from clipette.types import Encoder, Failure, Sample

log = logging.getLogger(__name__)

CHUNK = 1024


def build_index(
    data: Dataset,
    encoder: Encoder,
    out: str | Path,
    *,
    texts: Texts = "none",
    store: str = "lance",
    recall: float = 0.98,
    exact_rows: int = EXACT_ROWS,
    calibrated: bool = True,
    model: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    max_failures: float = 0.1,
    progress: bool = False,
) -> Collection:
    """Encode ``data`` into a new index at ``out`` and open it for writing. Killed, it goes on when called again.

    Args:
        data: images, texts, or both.
        encoder: whose space the index is of.
        out: a new folder, or that of a build that did not finish.
        texts: ``captions``: an image's captions become rows of their own.
        store: ``lance``, or ``milvus://HOST:PORT``.
        recall: recall@10 asked of approximate search, filters included; ``facts["recall"]`` says whether it is met.
        exact_rows: up to so many rows every search compares with all of them.
        calibrated: measure what scores mean, for confidences and the "no result" threshold.
        model: further facts about the model, kept in the index (its digest, its licence).
        batch_size: of the encoder.
        max_failures: share of samples that may be unreadable; they are left out and recorded. Past it the build stops
            unfinished: called again with a larger share it goes on, and encodes nothing twice.
        progress: show bars.

    Raises:
        StoreError: the folder holds something else, or a finished index.
        DataError: nothing of ``data`` could be read, or too much could not.
    """
    if not 0 < recall <= 1:
        raise DataError(f"recall {recall}: expected a share above 0, up to 1")
    check_store(store)
    limit = FailureLimit(max_failures)
    if not encoder.can_encode_images and any(sample.image is not None for sample in data.samples):
        raise UnsupportedError(f"{encoder.name} encodes no images; build the index with a model that does")
    known = {"name": encoder.name, "logit_scale": encoder.logit_scale, "logit_bias": encoder.logit_bias}
    collection = _opened(Path(out), encoder, {**known, **(model or {})}, texts, store, exact_rows)
    try:
        report = add_all(collection, data.samples, encoder, texts=texts, batch_size=batch_size, progress=progress)
        lost = [*data.failures, *report.failures]
        if not len(collection):
            first = f"; the first: {lost[0].location}: {lost[0].reason}" if lost else ""
            raise DataError(f"{data.reference}: nothing of it could be indexed{first}")
        limit.check(lost, len(data.samples) + len(data.failures), what=f"samples of {data.reference}")
        _keep_queries(collection, data.samples, encoder)
        keep_failures(collection, lost)
        collection.optimize(progress=progress)
        found = raise_until(collection, recall)
        if not found["met"]:
            log.warning("recall@10 of %s asked, %s measured: even the greatest effort does not reach it",
                        recall, found["recall"])  # fmt: skip
        if calibrated:
            keep_calibration(collection, calibrate(collection, encoder))
        # Last: a build that is killed before goes on, and what readers may open is measured and calibrated.
        collection.finish(progress=progress)
        return collection
    except BaseException:
        collection.close()
        raise


def _opened(
    out: Path, encoder: Encoder, model: Mapping[str, Any], texts: Texts, store: str, exact_rows: int
) -> Collection:
    if not (out / MANIFEST).exists():
        return create(
            out,
            space=encoder.space,
            dim=encoder.dim,
            model=model,
            store=store,
            exact_rows=exact_rows,
            ready=False,
            facts={"texts": texts},
        )
    collection = open_index(out, write=True, unfinished=True)
    try:
        if collection.manifest.ready:
            raise StoreError(f"{out}: an index is there already; add to it with `clipette index add`, or name another")
        collection.check_space(encoder)
        if (collection.manifest.store, collection.facts.get("texts"), collection.manifest.exact_rows) != (
            store,
            texts,
            exact_rows,
        ):
            raise StoreError(
                f"{out}: an unfinished build with other options is there; delete the folder, or name another"
            )
    except BaseException:
        collection.close()
        raise
    return collection


def add_all(
    collection: Collection,
    samples: Sequence[Sample],
    encoder: Encoder,
    *,
    texts: Texts = "none",
    prefix: str = "",
    replace_files: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> AddReport:
    """``Collection.add`` in pieces of ``CHUNK`` samples, each acknowledged by itself; the sum of the reports.

    ``prefix``: put before each key, to keep data apart that uses the same keys. A file whose name cannot be a key is a
    failure like one that cannot be read.
    """
    if prefix:
        samples = [replace(sample, key=prefix + sample.key) for sample in samples]
    samples, failures = _named(samples)
    pieces = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
    counts = np.zeros(4, dtype=np.int64)
    bar = track(pieces, total=len(samples), description="encoding", unit="rows", enabled=progress, size=len)
    for piece in bar:
        report = collection.add(piece, encoder, texts=texts, replace=replace_files, batch_size=batch_size)
        counts += (report.added, report.updated, report.unchanged, report.deleted)
        failures += report.failures
    added, updated, unchanged, deleted = counts.tolist()
    return AddReport(added, updated, unchanged, deleted, tuple(failures), collection.generation)


def _named(samples: Sequence[Sample]) -> tuple[list[Sample], list[Failure]]:
    """The samples whose keys an index takes, and the others."""
    kept, failures = [], []
    for position, sample in enumerate(samples):
        try:
            check_key(sample.key, position)
            kept.append(sample)
        except DataError as error:
            location = "" if sample.image is None else sample.image.location
            failures.append(Failure(sample.key, repr(location), str(error)))
    return kept, failures


def _keep_queries(collection: Collection, samples: Sequence[Sample], encoder: Encoder) -> None:
    """Captions are what people type: recall is measured with some of them, whether or not they are in the index."""
    if not encoder.can_encode_text or not collection.count("image"):
        return
    captions = list(dict.fromkeys(sample.captions[0] for sample in samples if sample.image and sample.captions))
    chosen = np.random.default_rng(0).permutation(len(captions))[:QUERIES]
    if len(chosen):
        try:
            keep_queries(collection, encoder.encode_texts([captions[i] for i in sorted(chosen.tolist())]))
        except UnsupportedError as error:  # a table of stored texts knows only its own
            log.info("recall is measured without captions: %s", error)


def keep_failures(collection: Collection, failures: Sequence[Failure]) -> None:
    """Keep with the collection what of its data could not be read, at most 1,000 of them."""
    told = [asdict(each) for each in failures[:1000]]
    # A write where nothing is new would empty every cache.
    if told != collection.facts.get("failures", []):
        collection.set_fact("failures", told)
