"""What this machine has and lacks, and whether a store or a run folder is sound: the verb ``clipette doctor``."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from clipette.errors import StoreError
from clipette.version import VERSION

# The modules of each extra: it is installed when all can be found.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("torch", "torchvision", "accelerate", "open_clip", "timm", "transformers", "safetensors"),
    "tensorboard": ("tensorboard",),
    "export": ("onnx", "onnxruntime", "tokenizers"),
    "openvino": ("openvino",),
    "index": ("lancedb", "pymilvus"),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "scale": ("ray",),
}
LIBRARIES = ("numpy", "pillow", "pyarrow", "torch", "torchvision", "open_clip_torch", "timm", "transformers")
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LOW_DISK = 5 * 2**30
LOW_MEMORY = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor. ``status``: ``ok``, ``note`` (worth knowing) or ``bad`` (will not work)."""

    name: str
    status: str
    value: str


def doctor(paths: Sequence[str | Path] = (), folder: str | Path = ".") -> list[Finding]:
    """Look at the machine, the installation, and each store, run or model folder in ``paths``.

    ``folder``: where results would go, for the free space.
    """
    found = [_python(), *_libraries(), *_machine(Path(folder)), *_threads(), _gpu(), *_extras()]
    return found + [finding for path in paths for finding in examine(Path(path))]


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _libraries() -> Iterator[Finding]:
    yield Finding("clipette", "ok", VERSION)
    known = {name: _version(name) for name in LIBRARIES}
    yield Finding("libraries", "ok", ", ".join(f"{name} {found}" for name, found in known.items() if found))


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def available_cores() -> int:
    """Cores this process may use: fewer than the machine's under taskset or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine(folder: Path) -> Iterator[Finding]:
    yield Finding("cores", "ok", f"{available_cores()} usable of {os.cpu_count()}")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _free_memory()
    text = _gibibytes(total) + ("" if free is None else f", {_gibibytes(free)} free")
    yield Finding("memory", "note" if free is not None and free < LOW_MEMORY else "ok", text)
    disk = shutil.disk_usage(folder).free
    low = disk < LOW_DISK
    yield Finding("disk", "note" if low else "ok", f"{_gibibytes(disk)} free in {folder.resolve()}")


def _free_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    values = {line.partition(":")[0]: line.split()[1] for line in lines}
    return int(values["MemAvailable"]) * 1024 if "MemAvailable" in values else None


def _threads() -> Iterator[Finding]:
    given = {name: os.environ[name] for name in THREAD_SETTINGS if name in os.environ}
    cores = available_cores()
    if not given:
        yield Finding("threads", "ok", "libraries' own choice (set OMP_NUM_THREADS to pin them)")
        return
    too_many = any(value.isdigit() and int(value) > cores for value in given.values())
    text = ", ".join(f"{name}={value}" for name, value in given.items())
    yield Finding("threads", "note" if too_many else "ok", text + (f": more than {cores} cores" if too_many else ""))


def _gpu() -> Finding:
    if importlib.util.find_spec("torch") is None:
        seen = "nvidia-smi is here, " if shutil.which("nvidia-smi") else ""
        return Finding("gpu", "note", f"{seen}PyTorch is not installed: pip install 'clipette[train]'")
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        return Finding("gpu", "ok", f"{', '.join(names)} ({bf16}, CUDA {torch.version.cuda})")
    if torch.backends.mps.is_available():
        return Finding("gpu", "ok", "Apple MPS")
    return Finding("gpu", "note", "none: everything runs on the CPU")


def _extras() -> Iterator[Finding]:
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        text = "installed" if not missing else f"lacks {', '.join(missing)}: pip install 'clipette[{extra}]'"
        yield Finding(f"[{extra}]", "note" if missing else "ok", text)


# ---------------------------------------------------------------- folders


def examine(path: Path) -> list[Finding]:
    """Whether one store, run or model folder is whole: a ``bad`` finding for each fault, or one ``ok``.

    A store is read through and its checksums compared; in other folders every safetensors, JSON and JSON-lines file
    is checked.
    """
    name = str(path)
    if not path.is_dir():
        return [Finding(name, "bad", "no such folder")]
    if (path / "store.json").is_file():
        return [_examine_store(path)]
    faults, count = [], 0
    for file in sorted(path.rglob("*")):
        check = CHECKS.get(file.suffix)
        if check is None or not file.is_file() or file.name.startswith("."):
            continue
        count += 1
        try:
            check(file)
        except (OSError, ValueError) as error:
            faults.append(Finding(name, "bad", f"{file.relative_to(path)}: {error}"))
    if not count:
        return [Finding(name, "bad", "neither a store nor a run: no store.json, no weights, no logs inside")]
    return faults or [Finding(name, "ok", f"{count} files are whole")]


def _examine_store(path: Path) -> Finding:
    from clipette.store import open_store

    try:
        store = open_store(path)
        store.verify()
    except StoreError as error:
        return Finding(str(path), "bad", str(error))
    tables = {"images": store.images, "views": store.views, "texts": store.texts}
    counts = ", ".join(f"{len(table.keys)} {name}" for name, table in tables.items() if table is not None)
    return Finding(str(path), "ok", f"store of width {store.dim}: {counts}, {len(store.failures)} failures recorded")


def check_safetensors(path: Path) -> None:
    """Header readable and the file exactly as long as it says. Raises ``ValueError``. Needs no PyTorch."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > size - 8:
            raise ValueError("cut off within its header; restore it or resume the run from an older checkpoint")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise ValueError("its header is not readable; the file is damaged") from None
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ValueError(f"{size} bytes where its header says {expected}; the file is damaged")


def check_json(path: Path) -> None:
    """One JSON value. Raises ``ValueError``."""
    json.loads(path.read_text(encoding="utf-8"))


def check_json_lines(path: Path) -> None:
    """A JSON value on every line. Raises ``ValueError`` naming the line."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None


CHECKS: dict[str, Callable[[Path], None]] = {
    ".safetensors": check_safetensors,
    ".json": check_json,
    ".jsonl": check_json_lines,
}
