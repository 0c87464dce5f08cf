"""The sample world as WebDataset tars: drawn once by several processes, then read as fast as any other source."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeAlias

from clipette.data.world import WorldSpec, world_image, world_sample
from clipette.data.world_scene import WORLD_VERSION
from clipette.errors import ConfigError, DataError
from clipette.io import digest_json, write_atomic, write_json
from clipette.progress import track
from clipette.types import Sample

Job: TypeAlias = tuple[WorldSpec, Path, tuple[int, int]]


def write_world(
    folder: str | Path, spec: WorldSpec, *, shard_size: int = 500, workers: int | None = None
) -> list[Path]:
    """Write a split to ``folder/{split}-{000000..}.tar`` and return the tars in order: ``write_worlds`` of one."""
    return write_worlds(folder, [spec], shard_size=shard_size, workers=workers)[0]


def write_worlds(
    folder: str | Path, specs: Sequence[WorldSpec], *, shard_size: int = 500, workers: int | None = None
) -> list[list[Path]]:
    """Write splits to ``folder/{split}-{000000..}.tar`` (``key.png`` + ``key.json``) and return each one's tars.

    Equal specs give equal bytes, whatever ``workers`` is. A manifest ``{split}.json``, written when all are drawn,
    makes a second call a no-op; another spec replaces the split's tars.

    Args:
        folder: made if need be; several splits share one.
        specs: what to draw, each of another split.
        shard_size: samples a tar.
        workers: processes; by default one for each usable core, none beside this one for a single tar. They are
            started by ``spawn``: a script that calls this needs ``if __name__ == "__main__":``, or ``workers=1``.

    Raises:
        ConfigError: ``shard_size`` or ``workers`` below 1, or one split twice.
        DataError: the folder cannot be written.
    """
    if shard_size < 1 or (workers is not None and workers < 1):
        raise ConfigError(f"write_world: shard_size {shard_size} and workers {workers} must be at least 1")
    if len({spec.split for spec in specs}) < len(specs):
        raise ConfigError("write_worlds: a split is named twice: the second would replace the first")
    folder = Path(folder)
    splits = [_Split(folder, spec, shard_size) for spec in specs]
    try:
        stale = [split for split in splits if not split.is_written()]
        for split in stale:
            split.clear()
        jobs = [job for split in stale for job in split.jobs]
        written = _in_parallel(_write_shard, jobs, min(len(jobs), workers or _usable_cores()))
        bar = track(written, total=len(jobs), description="drawing the sample world", unit="tars")
        sizes = dict(zip((path.name for _, path, _ in jobs), bar, strict=True))
        for split in stale:
            split.finish(sizes)
    except OSError as error:
        raise DataError(
            f"{folder}: the sample world cannot be written ({error}); free space there, or name another folder"
        ) from error
    return [split.paths for split in splits]


class _Split:
    """One split's tars and manifest in a folder."""

    def __init__(self, folder: Path, spec: WorldSpec, shard_size: int) -> None:
        starts = range(0, spec.count, shard_size)
        self.folder, self.spec = folder, spec
        self.paths = [folder / f"{spec.split}-{number:06d}.tar" for number in range(len(starts))]
        ranges = [(start, min(start + shard_size, spec.count)) for start in starts]
        self.jobs: list[Job] = [(spec, path, part) for path, part in zip(self.paths, ranges, strict=True)]
        self.identity = digest_json([WORLD_VERSION, spec.to_dict(), shard_size])
        self.manifest = folder / f"{spec.split}.json"

    def is_written(self) -> bool:
        """Whether all tars of this very spec are there."""
        old = _manifest(self.manifest)
        return old.get("identity") == self.identity and _complete(self.folder, old)

    def clear(self) -> None:
        """Remove the manifest, and the tars of an older, longer split."""
        old = _sizes(_manifest(self.manifest))
        self.manifest.unlink(missing_ok=True)
        for stale in set(old) - {path.name for path in self.paths}:
            (self.folder / Path(stale).name).unlink(missing_ok=True)

    def finish(self, sizes: Mapping[str, int]) -> None:
        """Record the tars, of ``sizes`` by name: from now on the split is whole."""
        table = {path.name: sizes[path.name] for path in self.paths}
        write_json(self.manifest, {"identity": self.identity, "spec": self.spec.to_dict(), "sizes": table})


def shard_bytes(spec: WorldSpec, start: int, end: int) -> bytes:
    """The tar of samples [start, end): fixed owner, mode and time, so that it depends on nothing else."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(start, end):
            sample = world_sample(spec, index)
            _add(tar, f"{sample.key}.png", world_image(spec, index).read())
            _add(tar, f"{sample.key}.json", json.dumps(record_of(sample), sort_keys=True).encode())
    return buffer.getvalue()


def record_of(sample: Sample) -> dict[str, object]:
    """The side file's content, under the names that our reader and img2dataset's share."""
    return {
        "captions": list(sample.captions),
        "class": sample.class_name,
        "label": sample.label,
        "domain": sample.domain,
        "split": sample.split,
    }


def _write_shard(job: Job) -> int:
    spec, path, (start, end) = job
    data = shard_bytes(spec, start, end)
    write_atomic(path, data)
    return len(data)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _in_parallel(function: Callable[[Job], int], jobs: Sequence[Job], workers: int) -> Iterator[int]:
    """Results in the order of the jobs, each as soon as it and all before it are there."""
    if workers <= 1:
        yield from map(function, jobs)
        return
    # Spawned, not forked: forking a process that runs PyTorch's threads can hang it.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, jobs)


def _usable_cores() -> int:
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _manifest(path: Path) -> dict[str, object]:
    """The split's manifest, empty where there is none that can be read."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _sizes(manifest: dict[str, object]) -> dict[str, int]:
    sizes = manifest.get("sizes")
    return {str(name): int(size) for name, size in sizes.items()} if isinstance(sizes, dict) else {}


def _complete(folder: Path, manifest: dict[str, object]) -> bool:
    paths = {folder / name: size for name, size in _sizes(manifest).items()}
    return bool(paths) and all(path.is_file() and path.stat().st_size == size for path, size in paths.items())
