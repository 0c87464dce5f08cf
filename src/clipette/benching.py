"""The verb ``bench``: models and bundles on this machine: speed, memory, size, quality, and the Pareto front."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipette.errors import ConfigError, UserError
from clipette.progress import track

BATCHES = (1, 8, 32)
TASKS = {"mean_recall": "mean recall", "top1": "zero-shot top-1"}
TEXT = "a photo of a brown dog that runs over the wet grass of a park"
# No more rounds begin once so many seconds are spent on one batch size.
MOST_SECONDS = 5.0
ROUNDS, WARMUP = 60, 3


@dataclass(frozen=True, slots=True)
class Speed:
    """One side of one model. ``ms``: by batch size, (median, 99th percentile) of a call; ``per_second``: inputs a
    second at the best batch size; ``per_core_second``: inputs per second of CPU time there (all threads counted)."""

    ms: dict[int, tuple[float, float]]
    per_second: float
    per_core_second: float


@dataclass(frozen=True, slots=True)
class Benched:
    """One model on this machine. ``mb``: its files, ``peak_mb``: the most memory its process held (10⁶ bytes).

    ``engine``: ``torch``, ``onnxruntime`` or ``openvino``.
    """

    model: str
    images: Speed | None
    texts: Speed | None
    mb: float
    peak_mb: float
    load_seconds: float
    threads: int
    engine: str

    def flat(self) -> dict[str, float | None]:
        """The figures that tables and ``summary.json`` show."""
        image, text = self.images, self.texts
        # Median and 99 % of every batch; the names of batch 1 are those of the table.
        batches = {
            f"{prefix}ms_{size}{suffix}": None if speed is None else speed.ms[size][place]
            for prefix, speed in (("", image), ("text_", text))
            for size in BATCHES
            for place, suffix in enumerate(("", "_p99"))
        }
        return {
            **batches,
            "images_s": None if image is None else image.per_second,
            "images_core_s": None if image is None else image.per_core_second,
            "texts_s": None if text is None else text.per_second,
            "mb": self.mb,
            "peak_mb": self.peak_mb,
            "load_s": self.load_seconds,
        }


def bench_models(references: Sequence[str], *, threads: int | None = None) -> list[Benched]:
    """Each model in a process of its own: peaks of memory and warm caches are its own. Raises ``ConfigError``."""
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    found = []
    for reference in track(references, total=len(references), description="bench", unit="models"):
        command = [sys.executable, "-m", "clipette.benching", reference]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise ConfigError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{reference}: failed")
        found.append(_benched(json.loads(done.stdout.splitlines()[-1])))
    return found


def _benched(values: dict[str, Any]) -> Benched:
    def speed(side: dict[str, Any] | None) -> Speed | None:
        if side is None:
            return None
        ms = {int(size): (float(pair[0]), float(pair[1])) for size, pair in side["ms"].items()}
        return Speed(ms, side["per_second"], side["per_core_second"])

    return Benched(**{**values, "images": speed(values["images"]), "texts": speed(values["texts"])})


def bench_here(reference: str) -> Benched:
    """Time one model in this process."""
    from clipette.resolve import resolve

    begun = time.perf_counter()
    encoder: Any = resolve(reference, device="cpu")
    loading = time.perf_counter() - begun
    torch = "torch" in sys.modules
    images = texts = None
    if encoder.can_encode_images:
        preprocess = encoder.model.image_tower().preprocess if torch else encoder.preprocess
        generator = np.random.default_rng(0)
        pixels = generator.normal(size=(max(BATCHES), 3, *preprocess.size)).astype(np.float32)
        images = _speed(lambda size: encoder.encode_pixels(pixels[:size]))
    if encoder.can_encode_text:
        asked = _texts(encoder)
        texts = _speed(lambda size: encoder.encode_texts(asked[:size]))
    return Benched(
        model=reference,
        images=images,
        texts=texts,
        mb=_bytes(reference, encoder) / 1e6,
        peak_mb=_peak_bytes() / 1e6,
        load_seconds=loading,
        threads=_threads(torch),
        engine="torch" if torch else encoder.engine,
    )


def _speed(call: Callable[[int], object]) -> Speed:
    ms, best = {}, (0.0, 0.0)
    for size in BATCHES:
        seconds, busy = _rounds(partial(call, size))
        ms[size] = (1e3 * float(np.median(seconds)), 1e3 * float(np.percentile(seconds, 99)))
        best = max(best, (size / float(np.median(seconds)), size / busy))
    return Speed(ms, *best)


def _rounds(call: Callable[[], object]) -> tuple[list[float], float]:
    """Seconds of each round, and mean seconds of CPU time a round."""
    for _ in range(WARMUP):
        call()
    seconds: list[float] = []
    begun, cpu = time.perf_counter(), time.process_time()
    while len(seconds) < ROUNDS and (not seconds or time.perf_counter() - begun < MOST_SECONDS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds, (time.process_time() - cpu) / len(seconds)


def _texts(encoder: Any) -> list[str]:
    """As many texts as the largest batch: those that it has stored, where it can encode no others."""
    from clipette.runtime.encoder import BundleEncoder
    from clipette.runtime.tokens import TableTokenizer

    stored: Sequence[str] = ()
    if isinstance(encoder, BundleEncoder):  # not by known_texts: it would load PyTorch
        stored = encoder.tokenizer.texts if isinstance(encoder.tokenizer, TableTokenizer) else ()
    else:
        from clipette.evaluate.wording import known_texts

        stored = sorted(known_texts(encoder) or ())
    chosen = stored or [TEXT]
    return [chosen[i % len(chosen)] for i in range(max(BATCHES))]


def _bytes(reference: str, encoder: Any) -> int:
    """Of a bundle, its files; of a PyTorch model, its tensors."""
    path = Path(reference).expanduser()
    if (path / "manifest.json").is_file():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    state = encoder.model.state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in state)


def _peak_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    # Not ru_maxrss: a child begins with its parent's.
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _threads(torch: bool) -> int:
    if torch:
        return int(sys.modules["torch"].get_num_threads())
    from clipette.runtime.sessions import default_threads

    return default_threads()


def bench(
    references: Sequence[str], *, out: str | Path, data: str | None = None, threads: int | None = None
) -> dict[str, object]:
    """Speed, memory and size of each model, with ``data`` also its task figure; the Pareto front marked.

    Writes ``bench.html`` and ``summary.json`` into ``out``; returns the summary. Raises ``ConfigError`` for no model.
    """
    from clipette.data.sources import load_data
    from clipette.evaluate.bench_page import Bench, bench_page, print_bench
    from clipette.evaluate.task import task_figure, task_templates
    from clipette.io import write_atomic, write_json
    from clipette.resolve import resolve

    if not references:
        raise ConfigError("no model to bench: name one or more")
    opened = None if data is None else load_data(data)
    benched = bench_models(references, threads=threads)
    figures = None
    name = ""
    if opened is not None:
        encoders = [resolve(reference, device="cpu") for reference in references]
        found = [task_figure(each, opened, task_templates(each, opened)) for each in encoders]
        name, figures = TASKS[found[0][0]], [figure for _, figure in found]
    flat = [each.flat() for each in benched]
    summary: dict[str, object] = {
        "models": {
            reference: {
                **each,
                "engine": benched[row].engine,
                **({} if figures is None else {"figure": figures[row].value}),
            }
            for row, (reference, each) in enumerate(zip(references, flat, strict=True))
        },
        "figure": name,
        "data": data,
        "threads": benched[0].threads,
    }
    folder = Path(out)
    table = Bench(references, flat, name, figures)
    page = bench_page(table, data=data or "", threads=benched[0].threads)
    write_atomic(folder / "bench.html", page.encode())
    write_json(folder / "summary.json", summary)
    print_bench(table)
    return summary


def main(arguments: Sequence[str]) -> int:
    """What ``bench_models`` starts: one model, one line of JSON."""
    try:
        found = bench_here(arguments[0])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
