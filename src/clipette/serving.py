"""The verbs serve and up: an index, an encoder and a server put together; without PyTorch where a bundle serves."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI

from clipette.data.sources import load_data
from clipette.errors import ConfigError, UnsupportedError
from clipette.index.build import add_all, build_index, keep_failures
from clipette.index.collection import Collection
from clipette.index.layout import MANIFEST
from clipette.index.opening import open_index
from clipette.index.search import Searcher
from clipette.indexing import calibrate_with
from clipette.io import cache_root, digest_json
from clipette.resolve import resolve
from clipette.runtime import is_bundle, load_bundle
from clipette.runtime.encoder import BundleEncoder
from clipette.serve.adapters import IndexPort, IndexSearch
from clipette.serve.app import create_app
from clipette.serve.encoding import QueuedEncoder, Stages, image_stages
from clipette.serve.metrics import Metrics
from clipette.serve.running import bind, run
from clipette.serve.settings import ServeSettings, make_settings
from clipette.serve.thumbs import Thumbnails
from clipette.types import Encoder

# What `clipette up` serves with where no model is named: what the user keeps, then what the demo makes.
DEFAULT_MODELS = ("student.bundle", "runs/demo/student.bundle", "runs/demo/student")
CARD = "card.md"
# What of a folder `clipette up` may leave out: somebody wants to look at the rest.
UNREADABLE = 0.5


def serve(
    index: str | Path,
    *,
    model: str,
    host: str = "127.0.0.1",
    port: int = 8400,
    read_keys: str | Path | None = None,
    write_keys: str | Path | None = None,
    without_read_key: bool = False,
    allowed_hosts: Sequence[str] = (),
    clicks: str | Path | None = None,
    threads: int | None = None,
    overrides: Sequence[str] = (),
    open_page: bool = False,
) -> None:
    """Serve ``index`` with ``model`` until SIGINT or SIGTERM; the address goes to stderr once requests are answered.

    ``read_keys``, ``write_keys``: files of bearer keys; with write keys the index is opened for writing, and no other
    process can write it meanwhile. ``overrides``: ``"timeout=10"``, fields of ``ServeSettings``; ``threads``: of a
    bundle. Raises ``ConfigError`` (an option, a port that is taken), ``StoreError`` (no index, another space, another
    writer), ``ModelError``.
    """
    settings = make_settings(
        overrides,
        read_keys_file=read_keys,
        write_keys_file=write_keys,
        without_read_key=without_read_key,
        host=host,
        port=port,
        allowed_hosts=list(allowed_hosts),
        clicks=None if clicks is None else str(clicks),
    )
    # The port first: it fails at once, a model takes a while to load.
    with contextlib.closing(bind(settings)) as bound:
        serve_opened(Path(index), load_encoder(model, threads), settings, bound, announce(open_page))


def up(
    data: str | Path,
    *,
    model: str | None = None,
    index: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8400,
    read_keys: str | Path | None = None,
    without_read_key: bool = False,
    threads: int | None = None,
    overrides: Sequence[str] = (),
    open_page: bool = True,
) -> None:
    """Index a folder of pictures (or any data reference), or bring its index up to date, serve it and open the page.

    ``model``: see ``default_model``; ``index``: where it is kept, by default in the cache folder, one per data and
    embedding space. The rest is that of ``serve``. Raises as ``serve``; ``DataError`` where nothing can be indexed.
    """
    settings = make_settings(
        overrides, read_keys_file=read_keys, without_read_key=without_read_key, host=host, port=port
    )
    with contextlib.closing(bind(settings)) as bound:
        encoder = load_encoder(model or default_model(), threads)
        folder = Path(index) if index is not None else default_index(str(data), encoder)
        with up_to_date(folder, str(data), encoder) as collection:
            print(f"index: {folder}, {len(collection):,} rows{_left_out(collection)}", file=sys.stderr)
        serve_opened(folder, encoder, settings, bound, announce(open_page))


def _left_out(collection: Collection) -> str:
    lost = collection.facts.get("failures") or []
    if not lost:
        return ""
    first = lost[0]
    return f"; left out {len(lost):,} of its files, the first: {first['location'] or first['key']}: {first['reason']}"


def serve_opened(
    index: Path,
    encoder: Encoder,
    settings: ServeSettings,
    bound: socket.socket,
    ready: Callable[[str], None] | None = None,
) -> None:
    """``serve`` on a bound socket, with a model that is loaded; ``ready`` is told the address."""
    # Tidied in a thread of its own: no accepted write waits while a vector store is brought up to date.
    writes = bool(settings.write_keys)
    with open_index(index, write=writes, background=writes) as collection:
        run(application(collection, index, encoder, settings), settings, bound, ready)


def application(collection: Collection, path: Path, encoder: Encoder, settings: ServeSettings) -> FastAPI:
    """The application on an open collection, whose folder is ``path``. Raises ``StoreError`` for another space."""
    collection.check_space(encoder)
    metrics = Metrics()
    queued = QueuedEncoder(encoder, settings, metrics, stages=stages_of(encoder))
    searcher = Searcher(collection, queued)
    thumbnails = cache_root() / "thumbnails" / collection.manifest.id
    return create_app(
        settings,
        encoder=encoder,
        collection=IndexPort(collection, path.name, encoder, searcher),
        search=IndexSearch(searcher),
        thumbnails=Thumbnails(thumbnails, max_bytes=settings.thumbnail_cache_bytes),
        card=card_of(encoder),
        writable=bool(settings.write_keys),
        queued=queued,
        metrics=metrics,
    )


def stages_of(encoder: Encoder) -> Stages:
    """How pictures are encoded: preprocessing apart from the model, also for a model in PyTorch."""
    # Only looked at where something has loaded it: a bundle is served without PyTorch.
    loaded = sys.modules.get("clipette.models.inference")
    if loaded is None or not isinstance(encoder, loaded.TorchEncoder) or not encoder.can_encode_images:
        return image_stages(encoder)
    torch_encoder: Any = encoder
    return torch_encoder.model.image_tower().preprocess, lambda pixels: torch_encoder.encode_pixels(np.stack(pixels))


def up_to_date(folder: Path, data: str, encoder: Encoder) -> Collection:
    """The index of ``data`` in ``folder``, open for writing: built, finished, or with what is new or gone since."""
    found = load_data(data)
    if not encoder.can_encode_images:
        raise UnsupportedError(f"{encoder.name} encodes no images: it cannot index pictures; give another --model")
    if (folder / MANIFEST).exists():
        collection = open_index(folder, write=True, unfinished=True)
        if collection.manifest.ready:
            with _closed_on_error(collection):
                report = add_all(collection, found.samples, encoder, replace_files=True, progress=True)
                keep_failures(collection, [*found.failures, *report.failures])
                kept = {sample.key for sample in found.samples}
                gone = [key for key in collection.keys(kind="image") if key not in kept]
                if gone:
                    collection.delete(gone)
            return collection
        collection.close()
    collection = build_index(found, encoder, folder, max_failures=UNREADABLE, progress=True)
    with _closed_on_error(collection):
        calibrate_with(collection, encoder)
    return collection


@contextlib.contextmanager
def _closed_on_error(collection: Collection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        collection.close()
        raise


def load_encoder(model: str, threads: int | None = None) -> Encoder:
    """``resolve``, with a bundle's threads as asked."""
    path = Path(model).expanduser()
    if threads is not None and path.is_dir() and is_bundle(path):
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


def announce(open_page: bool) -> Callable[[str], None]:
    """What is said, and done, once requests are answered."""

    def ready(url: str) -> None:
        print(f"open {url}   (API: {url}openapi.json; stop: Ctrl-C)", file=sys.stderr, flush=True)
        if open_page:
            # A browser in the terminal, which is what a machine without a screen may have, returns when it is closed.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

    return ready


def card_of(encoder: Encoder) -> str:
    """The model card of a bundle, Markdown; nothing of other models."""
    if not isinstance(encoder, BundleEncoder):
        return ""
    # As it was read and checked: on disk it could have become a link to anything.
    return encoder.bundle.files.get(CARD, b"").decode("utf-8", errors="replace")
