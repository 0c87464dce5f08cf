"""What a model costs: parameters, GMACs, bytes, latency and throughput of each tower; ratios to another model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipette.models.core import DualEncoder, ImageTower, TextTower
from clipette.models.inference import TorchEncoder
from clipette.types import Encoder

TEXT_TOKENS = 32
_FILLER = "a photo of a dog on the grass " * 60
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """How to time. ``repeats``: rounds for latency at batch 1; a quarter of them (3 or more) for throughput at
    ``batch_size``. No more rounds begin once ``max_seconds`` are spent on a model and kind; one round is always run."""

    warmup: int = 2
    repeats: int = 20
    batch_size: int = 16
    max_seconds: float = 3.0


@dataclass(frozen=True, slots=True)
class TowerCost:
    """One tower. ``gmacs``: multiply-adds / 1e9 of one input; ``bytes``: of its weights; ``ms``: median latency of one
    input; ``per_second``: inputs a second in batches. ``input``: what it was timed with. None: not timed."""

    params: int
    bytes: int
    gmacs: float
    input: str
    ms: float | None = None
    per_second: float | None = None


@dataclass(frozen=True, slots=True)
class ModelCost:
    """Both towers; ``params`` and ``bytes`` of the whole model, shared weights counted once. Preprocessing and
    tokenizing are not timed."""

    model: str
    params: int
    bytes: int
    image: TowerCost | None
    text: TowerCost | None
    device: str
    threads: int
    batch_size: int

    def flat(self) -> dict[str, float | None]:
        """Figures by the names that tables and CSV use."""
        out: dict[str, float | None] = {"params": self.params, "bytes": self.bytes}
        sides = {"image": self.image, "text": self.text}
        out["gmacs"] = sum(tower.gmacs for tower in sides.values() if tower is not None)
        for side, tower in sides.items():
            for name in ("params", "gmacs", "ms", "per_second"):
                out[f"{side}_{name}"] = None if tower is None else getattr(tower, name)
        return out

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


def measure_costs(encoders: Sequence[Encoder], timing: Timing | None = Timing()) -> list[ModelCost | None]:
    """The cost of each encoder; None for one without a model (stored embeddings). ``timing=None``: counts only.

    GMACs = FLOPs of torch's ``FlopCounterMode`` / 2e9 at batch 1, with 32 text tokens (fewer where the tower takes
    fewer), attention included. Bytes are those of the tensors in a safetensors file, header left out. Latency is the
    median over rounds in which the models take turns, so that a busy machine slows all of them alike.
    """
    counted = [_count(encoder) if isinstance(encoder, TorchEncoder) else None for encoder in encoders]
    if timing is None:
        return counted
    single, batched = {}, {}
    for row, encoder in enumerate(encoders):
        if isinstance(encoder, TorchEncoder):
            for side in ("image", "text"):
                if getattr(encoder.model, side) is not None:
                    single[row, side] = _call(encoder, side, 1)
                    batched[row, side] = _call(encoder, side, timing.batch_size)
    one = _median_seconds(single, timing, timing.repeats)
    many = _median_seconds(batched, timing, max(3, timing.repeats // 4))
    return [
        None if cost is None else _timed(cost, row, one, many, timing.batch_size) for row, cost in enumerate(counted)
    ]


def ratios(reference: ModelCost, cost: ModelCost) -> dict[str, float | None]:
    """How many times cheaper ``cost`` is than ``reference``: > 1 is smaller or faster.

    ``compression`` (parameters), ``bytes``, ``gmacs`` of both towers and of each, ``image_speedup`` and
    ``text_speedup`` (latency), ``image_throughput`` and ``text_throughput``. None where either has none.
    """
    ours, theirs = cost.flat(), reference.flat()
    names = {"compression": "params", "bytes": "bytes", "gmacs": "gmacs"}
    names |= {f"{side}_gmacs": f"{side}_gmacs" for side in ("image", "text")}
    names |= {f"{side}_speedup": f"{side}_ms" for side in ("image", "text")}
    out = {name: _divide(theirs[source], ours[source]) for name, source in names.items()}
    for side in ("image", "text"):
        out[f"{side}_throughput"] = _divide(ours[f"{side}_per_second"], theirs[f"{side}_per_second"])
    return out


def count_gmacs(call: Call) -> float:
    """Multiply-adds / 1e9 of ``call``: FLOPs by ``FlopCounterMode`` / 2e9. Matrix products and convolutions count.

    Fused attention is taken apart for the count: some of torch's fused kernels are not in its table.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _no_fast_path(), sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return float(counter.get_total_flops()) / 2e9


def tower_gmacs(tower: ImageTower | TextTower) -> float:
    """GMACs of one tower at batch 1: an image of its own size, or 32 tokens.

    Fewer tokens where it takes fewer; all of its context where it cannot be cut to 32.
    """
    with _short_masks(tower):
        given = _input(tower, 1)
        with _untrained(tower):
            return _evaluating(tower, lambda: count_gmacs(lambda: tower(given)))


@contextmanager
def _untrained(tower: nn.Module) -> Iterator[None]:
    """The counter hooks the gradients of what enters each module, and fails on a view of a parameter (SigLIP's latent
    query of timm's attention pooling): meanwhile no parameter asks for one."""
    asking = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def _short_masks(tower: nn.Module) -> Iterator[None]:
    """open_clip's text towers hold a causal mask of their whole context and refuse shorter texts: cut it meanwhile."""
    whole: list[tuple[nn.Module, Tensor]] = []
    for module in tower.modules():
        mask = module._buffers.get("attn_mask")
        if mask is not None and mask.ndim == 2 and mask.shape[0] == mask.shape[1] > TEXT_TOKENS:
            whole.append((module, mask))
            module._buffers["attn_mask"] = mask[:TEXT_TOKENS, :TEXT_TOKENS]
    try:
        yield
    finally:
        for module, mask in whole:
            module._buffers["attn_mask"] = mask


def text_tokens(tower: TextTower, batch: int = 1, length: int = TEXT_TOKENS) -> dict[str, Tensor]:
    """``batch`` rows of real tokens cut to ``length``, the last one kept (it ends the text): [batch, <= length]."""
    tokenizer = tower.tokenizer
    if tokenizer.context_length == 1:
        # A table of stored texts looks one row up.
        return {"row": torch.zeros(batch, 1, dtype=torch.long)}
    tokens = {name: torch.from_numpy(values) for name, values in tokenizer([_FILLER]).items()}
    cut = {
        name: torch.cat([values[:, : length - 1], values[:, -1:]], dim=1) if values.shape[1] > length else values
        for name, values in tokens.items()
    }
    return {name: values.repeat(batch, 1) for name, values in cut.items()}


def _count(encoder: TorchEncoder) -> ModelCost:
    model = encoder.model
    return ModelCost(
        model=encoder.name,
        params=sum(parameter.numel() for parameter in model.parameters()),
        bytes=_bytes(model),
        image=_count_tower(model.image),
        text=_count_tower(model.text),
        device=_device_name(encoder.device),
        threads=torch.get_num_threads(),
        batch_size=0,
    )


def _count_tower(tower: ImageTower | TextTower | None) -> TowerCost | None:
    if tower is None:
        return None
    params = sum(parameter.numel() for parameter in tower.parameters())
    given = _input(tower, 1)
    if isinstance(given, Tensor):
        shown = f"{given.shape[3]} × {given.shape[2]} pixels"
    else:
        shown = f"{next(iter(given.values())).shape[1]} tokens"
    return TowerCost(params, _bytes(tower), tower_gmacs(tower), shown)


def _input(tower: ImageTower | TextTower, batch: int) -> Tensor | dict[str, Tensor]:
    """Something to read, on the tower's device: 32 tokens of text, or its whole context if it refuses those."""
    device = next((t.device for t in (*tower.parameters(), *tower.buffers())), torch.device("cpu"))
    if isinstance(tower, ImageTower):
        return torch.zeros(batch, 3, *tower.preprocess.size, device=device)
    tokens = {name: values.to(device) for name, values in text_tokens(tower, batch).items()}
    try:
        _evaluating(tower, lambda: tower({name: values[:1] for name, values in tokens.items()}))
    except RuntimeError:
        # Positions or a mask of one length only.
        whole = text_tokens(tower, batch, tower.tokenizer.context_length)
        tokens = {name: values.to(device) for name, values in whole.items()}
    return tokens


def _evaluating(module: nn.Module, call: Callable[[], float]) -> float:
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return call()
    finally:
        module.train(training)


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """torch's fused encoder layers are one operation that the counter does not know."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _call(encoder: TorchEncoder, side: str, batch: int) -> Call:
    """One encoding by one tower, as inference runs it, waited for."""
    model: DualEncoder = encoder.model
    half, device = encoder.precision == "bf16", encoder.device
    if side == "image":
        pixels = torch.randn(batch, 3, *model.image_tower().preprocess.size, device=device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        run: Call = lambda: model.encode_image(pixels)  # noqa: E731
    else:
        tokens = _input(model.text_tower(), batch)
        assert not isinstance(tokens, Tensor)
        run = lambda: model.encode_text(tokens)  # noqa: E731

    def call() -> None:
        model.eval()
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def _median_seconds(
    calls: Mapping[tuple[int, str], Call], timing: Timing, repeats: int
) -> dict[tuple[int, str], float]:
    spent = dict.fromkeys(calls, 0.0)
    seen: dict[tuple[int, str], list[float]] = {key: [] for key in calls}
    for turn in range(-timing.warmup, repeats):
        for key, call in calls.items():
            if seen[key] and spent[key] > timing.max_seconds:
                continue
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
            spent[key] += seconds
            if turn >= 0 or spent[key] > timing.max_seconds:
                seen[key].append(seconds)
    return {key: statistics.median(values) for key, values in seen.items()}


def _timed(
    cost: ModelCost,
    row: int,
    one: Mapping[tuple[int, str], float],
    many: Mapping[tuple[int, str], float],
    batch_size: int,
) -> ModelCost:
    def tower(side: str, counted: TowerCost | None) -> TowerCost | None:
        if counted is None:
            return None
        values = {**asdict(counted), "ms": 1000 * one[row, side], "per_second": batch_size / many[row, side]}
        return TowerCost(**values)

    values = {name: getattr(cost, name) for name in ("model", "params", "bytes", "device", "threads")}
    return ModelCost(**values, image=tower("image", cost.image), text=tower("text", cost.text), batch_size=batch_size)


def _divide(upper: float | None, lower: float | None) -> float | None:
    return None if upper is None or not lower else upper / lower
