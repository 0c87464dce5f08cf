"""The loop: feed, step, schedule, log, evaluate, save. It knows no method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from clipette.errors import ConfigError, ModelError
from clipette.io import write_atomic
from clipette.models.saved import state_bytes
from clipette.progress import track
from clipette.tasks.batch import Batch
from clipette.tasks.feed import Feed
from clipette.tasks.task import StepOutput, Task
from clipette.train.checkpoint import find_checkpoint, load_checkpoint, read_state, save_checkpoint
from clipette.train.log import MetricsLog
from clipette.train.optim import Average, build_average, build_optimizer, clip_gradients, rate_factor
from clipette.train.ranks import average_gradients, barrier, broadcast_state, rank
from clipette.train.settings import TrainSettings
from clipette.train.step import NORMS, compute_gradients
from clipette.types import Failure


@dataclass(frozen=True)
class Dev:
    """How to measure the student on dev data; ``figure`` names the value that ``keep: best`` maximises."""

    measure: Callable[[], Mapping[str, float]]
    figure: str


@dataclass(frozen=True)
class LoopResult:
    """How the run went; the weights, averaged or best as the settings say, are in the task."""

    steps: int
    seconds: float
    images_per_second: float
    best: float | None
    best_step: int | None


class Loop:
    """One run of ``task`` on ``feed``, resumed from ``folder/checkpoints`` where there is one.

    Everything random is a function of (``seed``, step), so that a resumed run ends in the same bits on a CPU.
    ``identity``: digest of the resolved recipe; a checkpoint of another recipe is refused. ``rates``: learning rates of
    the task's parts that have one of their own, by name.
    """

    def __init__(
        self,
        task: Task,
        feed: Feed,
        settings: TrainSettings,
        *,
        folder: Path,
        seed: int,
        device: torch.device,
        dev: Dev | None = None,
        identity: str = "",
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.task = task
        self.feed = feed
        self.settings = settings
        self.folder = folder
        self.seed = seed
        self.device = device
        self.dev = dev
        self.identity = identity
        if settings.keep == "best" and dev is None:
            raise ConfigError("keep: best needs dev data to choose by: name it with --dev, or use keep: last")
        self.total = settings.total_steps(feed.steps_per_epoch)
        self.parts = task.parts.to(device)
        if settings.channels_last and task.student.image is not None:
            task.student.image.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.parts, settings.optimizer, rates)
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.average = build_average(self.parts, settings, steps_per_epoch=feed.steps_per_epoch)
        self.step = 0
        self.seconds = 0.0
        self.best: float | None = None
        self.best_step = -1
        self._resume()
        broadcast_state(self.parts)

    def run(self, *, progress: bool = True) -> LoopResult:
        """Train to the end and leave the final weights in the task."""
        s = self.settings
        log = MetricsLog(
            self.folder / "metrics.jsonl",
            resumed=self.step,
            batch_size=s.batch_size,
            steps_per_epoch=self.feed.steps_per_epoch,
        )
        try:
            self._steps(log, progress=progress)
        finally:
            log.close()
        self._finish()
        speed = self.step * s.batch_size / self.seconds if self.seconds > 0 else 0.0
        return LoopResult(self.step, self.seconds, speed, self.best, self.best_step if self.best is not None else None)

    def _steps(self, log: MetricsLog, *, progress: bool) -> None:
        """Every step from the present one to the last."""
        s = self.settings
        evaluate_every, save_every = (n or self.feed.steps_per_epoch for n in (s.evaluate_every, s.save_every))
        if self.step == 0:
            self._measure(log)
        batches = self.feed.run(self.step, self.total)
        bar = track(batches, total=self.total - self.step, description="train", unit="steps", enabled=progress)
        clock = time.perf_counter()
        for batch in bar:
            output, norm, factor = self._update(batch.to(self.device))
            self.step += 1
            self.seconds += time.perf_counter() - clock
            last = self.step == self.total
            log.train(self.step, self.seconds, output, norm=norm, factor=factor)
            if self.step % evaluate_every == 0 or last:
                self._measure(log)
            if self.step % save_every == 0 or last:
                log.flush()
                self._save()
            # Evaluation and saving are not training time: the clock starts again behind them.
            clock = time.perf_counter()

    def _update(self, batch: Batch) -> tuple[StepOutput, float, float]:
        s = self.settings
        set_mode(self.parts, freeze_norms=s.freeze_norms)
        factor = rate_factor(self.step, self.total, s)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        seed = self.seed * 1_000_000_007 + self.step
        output = compute_gradients(self.task, batch, micro_batches=s.micro_batches, precision=s.precision, seed=seed)
        average_gradients(self.parts.parameters())
        norm = clip_gradients(self.parts.parameters(), s.clip_norm)
        if not (math.isfinite(float(output.loss.detach())) and math.isfinite(norm)):
            raise ModelError(
                f"the loss or its gradient is not finite at step {self.step} (terms {dict(output.terms)}): "
                "lower the learning rate, lengthen the warm-up, or set clip_norm"
            )
        self.optimizer.step()
        with torch.no_grad():
            scale = self.task.student.logit_scale
            if scale.requires_grad:
                scale.clamp_(max=math.log(s.max_scale))
        if self.average is not None:
            self.average.update(self.parts)
        return output, norm, factor

    def _measure(self, log: MetricsLog) -> None:
        """Evaluate on dev in the averaged weights; keep the best where that is asked."""
        if self.dev is None or rank() != 0:
            return
        with averaged(self.parts, self.average):
            self.parts.eval()
            values = dict(self.dev.measure())
            if self.settings.keep == "best":
                value = values.get(self.dev.figure)
                if value is None:
                    raise ConfigError(f"keep: best needs the dev figure '{self.dev.figure}'; there are {list(values)}")
                if self.best is None or value > self.best:
                    self.best, self.best_step = value, self.step
                    write_atomic(self._best_path, state_bytes(self.parts.state_dict()))
        log.dev(self.step, self.seconds, values)

    @property
    def _best_path(self) -> Path:
        return self.folder / "checkpoints" / "best.safetensors"

    def _save(self) -> None:
        if rank() == 0:
            facts = {
                "identity": self.identity,
                "seconds": self.seconds,
                "best": self.best,
                "best_step": self.best_step,
                "failures": [asdict(failure) for failure in self.feed.failures],
            }
            save_checkpoint(
                self.folder / "checkpoints",
                step=self.step,
                modules=self.parts,
                optimizer=self.optimizer,
                average=self.average,
                facts=facts,
            )
        barrier()

    def _resume(self) -> None:
        path = find_checkpoint(self.folder / "checkpoints")
        if path is None:
            return
        if read_state(path).get("identity") != self.identity:
            raise ConfigError(
                f"{self.folder} holds a run of another recipe, teacher or data: choose another --out, or delete it"
            )
        state = load_checkpoint(path, modules=self.parts, optimizer=self.optimizer, average=self.average)
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.best, self.best_step = state["best"], int(state["best_step"])
        self.feed.recall([Failure(**failure) for failure in state.get("failures", [])])

    def _finish(self) -> None:
        if self.settings.keep == "best" and self._best_path.is_file():
            self.parts.load_state_dict(load_file(self._best_path))
        elif self.average is not None:
            self.parts.load_state_dict(self.average.state)
        self.parts.eval()


def set_mode(parts: nn.Module, *, freeze_norms: bool) -> None:
    """Training mode for what learns; wholly frozen modules, and all norms if asked, stay in evaluation mode."""
    parts.train()
    for module in parts.modules():
        parameters = list(module.parameters())
        frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
        if frozen or (freeze_norms and isinstance(module, NORMS)):
            module.eval()


@contextmanager
def averaged(parts: nn.Module, average: Average | None) -> Iterator[None]:
    """The averaged weights in place of the present ones, for a while."""
    if average is None:
        yield
        return
    present = {name: value.detach().clone() for name, value in parts.state_dict().items()}
    parts.load_state_dict(average.state)
    try:
        yield
    finally:
        parts.load_state_dict(present)
