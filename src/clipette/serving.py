"""The verbs serve and up: an index, an encoder and a server put together."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI

from clipette.data.sources import load_data
from clipette.errors import ConfigError
from clipette.index.build import add_all, build_index
from clipette.index.collection import Collection, open_index
from clipette.index.layout import MANIFEST
from clipette.index.search import Searcher
from clipette.io import cache_root, digest_json
from clipette.resolve import resolve
from clipette.runtime.encoder import BundleEncoder, load_bundle
from clipette.serve.adapters import IndexPort, IndexSearch
from clipette.serve.app import create_app
from clipette.serve.encoding import QueuedEncoder
from clipette.serve.metrics import Metrics
from clipette.serve.running import bind, run
from clipette.serve.settings import ServeSettings
from clipette.serve.thumbs import Thumbnails
from clipette.types import Encoder

Ready = Callable[[str], None]
# What `clipette up` serves with where no model is named: what the user keeps, then what the demo makes.
DEFAULT_MODELS = ("student.bundle", "runs/demo/student.bundle", "runs/demo/student")
CARD = "card.md"


def serve(
    index: str | Path,
    *,
    model: str,
    settings: ServeSettings = ServeSettings(),
    threads: int | None = None,
    ready: Ready | None = None,
) -> None:
    """Serve ``index`` with ``model`` until SIGINT or SIGTERM; ``ready`` is told the address.

    With write keys the index is opened for writing: no other process can write it meanwhile. Raises ``ConfigError``
    (port taken), ``StoreError`` (no index, another space, another writer), ``ModelError``.
    """
    # The port first: it fails at once, a model takes a while to load.
    with contextlib.closing(bind(settings)) as bound:
        _serve(Path(index), load_encoder(model, threads), settings, bound, ready)


def _serve(index: Path, encoder: Encoder, settings: ServeSettings, bound: socket.socket, ready: Ready | None) -> None:
    with open_index(index, write=bool(settings.write_keys)) as collection:
        collection.check_space(encoder)
        run(_application(collection, index, encoder, settings), settings, bound, ready)


def up(
    data: str,
    *,
    model: str | None = None,
    index: str | Path | None = None,
    settings: ServeSettings = ServeSettings(),
    threads: int | None = None,
    ready: Ready | None = None,
) -> None:
    """Index a folder of pictures (or any data reference), or bring its index up to date, and serve it.

    ``model``: see ``default_model``; ``index``: where it is kept, by default in the cache folder, one per data and
    embedding space. Raises as ``serve``; ``DataError`` where nothing can be indexed.
    """
    with contextlib.closing(bind(settings)) as bound:
        encoder = load_encoder(model or default_model(), threads)
        folder = Path(index) if index is not None else default_index(data, encoder)
        up_to_date(folder, data, encoder).close()
        _serve(folder, encoder, settings, bound, ready)


def up_to_date(folder: Path, data: str, encoder: Encoder) -> Collection:
    """The index of ``data`` in ``folder``, open for writing: built, finished, or with what is new or gone since."""
    found = load_data(data)
    if not (folder / MANIFEST).exists():
        return build_index(found, encoder, folder, progress=True)
    collection = open_index(folder, write=True, unfinished=True)
    if not collection.manifest.ready:
        collection.close()
        return build_index(found, encoder, folder, progress=True)
    try:
        collection.check_space(encoder)
        add_all(collection, found.samples, encoder, replace_files=True, progress=True)
        kept = {sample.key for sample in found.samples}
        gone = [key for key in collection.keys() if key not in kept]  # noqa: SIM118  # no mapping
        if gone:
            collection.delete(gone)
    except BaseException:
        collection.close()
        raise
    return collection


def load_encoder(model: str, threads: int | None = None) -> Encoder:
    """``resolve``, with a bundle's threads as asked."""
    path = Path(model).expanduser()
    if threads is not None and (path / "manifest.json").is_file() and not (path / "store.json").is_file():
        return load_bundle(path, name=path.name, threads=threads)
    return resolve(model)


def default_model() -> str:
    """``CLIPETTE_MODEL``, or the first of ``DEFAULT_MODELS`` that is there. Raises ``ConfigError``."""
    stated = os.environ.get("CLIPETTE_MODEL", "").strip()
    if stated:
        return stated
    for name in DEFAULT_MODELS:
        if Path(name).is_dir():
            return name
    raise ConfigError(
        f"no model: give --model BUNDLE or set CLIPETTE_MODEL (looked for {', '.join(DEFAULT_MODELS)}); "
        "`clipette demo` makes one, `clipette export` makes a bundle of any model"
    )


def default_index(data: str, encoder: Encoder) -> Path:
    """Where ``up`` keeps the index of ``data`` in the space of ``encoder``."""
    path = Path(data).expanduser()
    where = str(path.resolve()) if path.exists() else data
    return cache_root() / "up" / f"{digest_json([where, encoder.space])[:16]}.index"


def _application(collection: Collection, path: Path, encoder: Encoder, settings: ServeSettings) -> FastAPI:
    metrics = Metrics()
    queued = QueuedEncoder(encoder, settings, metrics)
    return create_app(
        settings,
        encoder=encoder,
        collection=IndexPort(collection, path.name, encoder),
        search=IndexSearch(Searcher(collection, queued), collection),
        thumbnails=Thumbnails(
            cache_root() / "thumbnails" / collection.manifest.id, max_bytes=settings.thumbnail_cache_bytes
        ),
        card=card_of(encoder),
        writable=bool(settings.write_keys),
        queued=queued,
        metrics=metrics,
    )


def card_of(encoder: Encoder) -> str:
    """The model card of a bundle, Markdown; nothing of other models."""
    if not isinstance(encoder, BundleEncoder):
        return ""
    try:
        return (encoder.bundle.path / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
