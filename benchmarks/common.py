"""What all benchmarks share: arguments, the final summary, the machine, real data, vectors without a teacher."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from clipette.data.dataset import Dataset
from clipette.data.views import ViewPolicy, draw_view
from clipette.io import cache_root, digest, write_json
from clipette.store import Rows, StoreWriter

PROJECT = Path(__file__).resolve().parents[1]
# Views are fractions of the original: any size draws the law of a photograph of this shape.
DRAWN_AT = (224, 224)


def arguments(description: str | None, default_out: str) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=PROJECT / "runs" / default_out, help="summary.json is written here")
    parser.add_argument("--smoke", action="store_true", help="tiny settings: does it run at all")
    return parser


def finish(summary: Mapping[str, Any], out: Path) -> None:
    """Write ``out/summary.json`` and print the same object as one last line."""
    write_json(out / "summary.json", dict(summary))
    print(json.dumps(summary), flush=True)


def say(text: str) -> None:
    """One line of progress, with the time of day."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def shared_folder() -> Path | None:
    """The folder of real data and weights (CLIPETTE_SHARED, default ../shared beside the project), where it exists."""
    folder = Path(os.environ.get("CLIPETTE_SHARED", PROJECT.parent / "shared"))
    return folder.resolve() if (folder / "data").is_dir() else None


def bench_cache(name: str) -> Path:
    """Where finished arms are kept: ``CLIPETTE_CACHE`` or ``~/.cache/clipette``, then ``bench/name``."""
    return cache_root() / "bench" / name


def machine(device: str = "cpu") -> dict[str, object]:
    """What the figures were measured on; ``load`` is the one-minute load average when this is called."""
    found: dict[str, object] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "open_clip_torch", "timm")},
        "date": date.today().isoformat(),
    }
    if device != "cpu":
        import torch

        found["device"] = torch.cuda.get_device_name()
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def random_store(path: Path, data: Dataset, *, dim: int, views: int, scale: float = 100.0, seed: int = 0) -> Path:
    """A store of random unit vectors for the images, views and captions of ``data``: right in all but its contents.

    For timing and for bits that repeat; what a teacher would have said does not matter there.
    """
    policy = ViewPolicy()
    identity = {
        "encoder": {"space": f"random-{seed}", "dim": dim},
        "views": {"count": views, "policy": policy.to_dict(), "seed": seed},
    }
    generator = np.random.default_rng(seed)

    def unit(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        drawn = generator.normal(size=(count, dim)).astype(np.float32)
        return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))

    keys = [sample.key for sample in data.samples]
    texts = list(dict.fromkeys(caption for sample in data.samples for caption in sample.captions))
    every = [key for key in keys for _ in range(views)]
    drawn = [draw_view(policy, DRAWN_AT, seed, key, index) for key in keys for index in range(views)]
    tables = {
        "images": Rows(keys, [""] * len(keys), unit(len(keys))),
        "views": Rows(every, [""] * len(every), unit(len(every)), drawn),
        "texts": Rows(texts, [digest(text.encode()) for text in texts], unit(len(texts))),
    }
    with StoreWriter(path, identity, dim, info={"name": "random", "logit_scale": scale, "logit_bias": 0.0}) as writer:
        writer.append({name: rows for name, rows in tables.items() if len(rows.keys)})
        writer.finish()
    return path
