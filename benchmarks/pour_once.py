"""Pour once, train many: images/s of training from the store, against the same step with the teacher in the loop.

Teacher: open_clip's ViT-L-14 (random weights: timing only). Student: ViT-Ti/16 and a text tower of 4 layers x 256, the
same in all arms, as are photographs, captions, batch size, loss (InfoNCE + distillation over the batch), clipping,
precision and process. Four arms, in turn, several rounds; each figure is the median over rounds:

- ``store``: our training loop from the store, every image read, decoded and cut anew (no cache of decoded images);
- ``student_only``: the same steps on the same batches, but ready in memory: the limit of what any store can give;
- ``open_clip_online``: open_clip_train's ``train_one_epoch`` with ``DistillClipLoss``, the teacher's forward included;
- ``online``: our loop with the teacher in it (``--teacher-online``).

The store is filled with random unit vectors: what they say does not change what reading them costs.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from clipette.data.dataset import Dataset
from clipette.data.sources import load_data
from clipette.data.world import WorldSpec
from clipette.data.world_write import write_world
from clipette.io import write_json
from clipette.memory import keep_freed_memory
from clipette.models.core import DualEncoder
from clipette.models.inference import TorchEncoder
from clipette.models.open_clip_models import load_open_clip
from clipette.models.stored import StoredEncoder
from clipette.store import Store, open_store
from clipette.tasks.batch import Batch
from clipette.tasks.feed import Feed, FeedPlan
from clipette.tasks.objective import Objective, TeacherFacts
from clipette.tasks.outputs import StoredOutputs
from clipette.tasks.terms import read_terms
from clipette.train.job import Job
from clipette.train.loop import set_mode
from clipette.train.optim import build_optimizer, clip_gradients, rate_factor
from clipette.train.recipe import Recipe
from clipette.train.run import run_job
from clipette.train.step import compute_gradients
from clipette.train.student import build_student
from common import arguments, finish, machine, random_store, say, shared_folder

LOSS = {"clip": 1.0, "distill_clip": 1.0}
VIEWS = 2
ARMS = ("store", "student_only", "open_clip_online", "online")
TEXT = {"context_length": 77, "vocab_size": 49408}

STUDENT = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 192, "patch_size": 16},
    "text_cfg": {**TEXT, "width": 256, "heads": 4, "layers": 4},
}
SMOKE_STUDENT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {**TEXT, "width": 32, "heads": 2, "layers": 1},
}
SMOKE_TEACHER = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8},
    "text_cfg": {**TEXT, "width": 64, "heads": 2, "layers": 2},
}


@dataclass(frozen=True)
class Bench:
    """What all arms share."""

    options: Namespace
    work: Path
    data: Dataset
    store: Store
    teacher: TorchEncoder
    student_config: Path

    def recipe(self, steps: int) -> Recipe:
        """The recipe of arms ``store`` and ``online``."""
        part = {"kind": "open_clip", "name": str(self.student_config)}
        values = {
            "name": "pour-once",
            "student": {"image": part, "text": part},
            "loss": LOSS,
            "views": {"count": VIEWS},
            "train": {
                "steps": steps,
                "batch_size": self.options.batch,
                "precision": self.options.precision,
                "optimizer": {"lr": 5e-4, "weight_decay": 0.2},
                "loader_threads": self.options.loaders,
                "cache_mb": 0,
                "save_every": steps,
            },
        }
        return Recipe.model_validate_json(json.dumps(values))

    def job(self, name: str, steps: int, *, online: bool = False) -> Job:
        """A run in a folder of its own."""
        return Job(
            recipe=self.recipe(steps),
            data=self.data,
            out=self.work / name,
            teacher=self.teacher if online else StoredEncoder.of_store(self.store),
            store=None if online else self.store,
            online=online,
            device=self.options.device,
            progress=False,
        )


# ---------------------------------------------------------------- the arms: each returns images/s of one round


def ours(bench: Bench, name: str, steps: int, *, online: bool) -> float:
    """A whole run of our loop: its own clock, which stops while the checkpoint is written."""
    return run_job(bench.job(name, steps, online=online)).images_per_second


class StudentOnly:
    """Forward, loss, backward, clipping and optimiser on batches that lie ready in memory: the step and nothing else.

    The batches of arm ``store``, from the same initial weights at the same rates: both compute the very same numbers,
    so that what differs is the feed (and the loop around the step).
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.device = torch.device(bench.options.device)
        job = bench.job("student-only", bench.options.steps)
        self.settings = job.recipe.train
        self.batches = [batch.to(self.device) for batch in ready_batches(bench, build_student(job))]

    def round(self, steps: int) -> float:
        settings = self.settings
        student = build_student(self.bench.job("student-only", settings.steps or 1)).to(self.device)
        student.image_tower().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        facts = TeacherFacts(self.bench.store.dim, self.bench.teacher.logit_scale)
        task = Objective(student, read_terms(LOSS), teacher=facts)
        parts = task.parts.to(self.device)
        optimizer = build_optimizer(parts, settings.optimizer)
        rates = [group["lr"] for group in optimizer.param_groups]
        set_mode(parts, freeze_norms=settings.freeze_norms)
        synchronize(self.device)
        begun = time.perf_counter()
        for step in range(steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * rate_factor(step, steps, settings)
            optimizer.zero_grad(set_to_none=True)
            compute_gradients(task, self.batches[step], micro_batches=1, precision=settings.precision, seed=step)
            clip_gradients(parts.parameters(), settings.clip_norm)
            optimizer.step()
            with torch.no_grad():
                student.logit_scale.clamp_(max=math.log(settings.max_scale))
        synchronize(self.device)
        return steps * settings.batch_size / (time.perf_counter() - begun)


def ready_batches(bench: Bench, student: DualEncoder) -> list[Batch]:
    """Every batch of arm ``store``, decoded, cut and tokenized beforehand."""
    plan = FeedPlan(
        batch_size=bench.options.batch,
        seed=0,
        preprocess=student.image_tower().preprocess,
        teacher_texts=True,
        teacher_images=True,
        tokenizer=student.text_tower().tokenizer,
    )
    samples = bench.data.samples
    captions = [caption for sample in samples for caption in sample.captions]
    feed = Feed(samples, plan, StoredOutputs(bench.store, samples, captions, seed=0))
    batches = [feed.batch(step) for step in range(bench.options.steps)]
    feed.close()
    return batches


class OpenClipImages:
    """open_clip_train's ``CsvDataset`` (its transform, its tokenizer), over our samples instead of a CSV of files."""

    def __init__(
        self, data: Dataset, count: int, transform: Callable[[Any], Any], tokenizer: Callable[..., Any]
    ) -> None:
        self.samples = data.samples[:count]
        self.transform = transform
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import io

        from PIL import Image

        sample = self.samples[index]
        assert sample.image is not None
        return self.transform(Image.open(io.BytesIO(sample.image.read()))), self.tokenizer([sample.captions[0]])[0]


class OpenClipOnline:
    """open_clip's released training epoch with a teacher, its optimiser groups and its defaults for ViTs."""

    def __init__(self, bench: Bench) -> None:
        import open_clip

        logging.getLogger().setLevel(logging.WARNING)
        options = bench.options
        self.bench = bench
        self.device = torch.device(options.device)
        open_clip.add_model_config(bench.student_config)
        if options.smoke:
            open_clip.add_model_config(bench.work / "clipette-teacher.json")
        common = {"device": self.device, "output_dict": True, "force_custom_text": True}
        self.student, self.transform, _ = open_clip.create_model_and_transforms(bench.student_config.stem, **common)
        self.teacher = open_clip.create_model("clipette-teacher" if options.smoke else "ViT-L-14", **common)
        # The very weights of our teacher, in the same memory.
        ours = bench.teacher.model
        self.teacher.visual.load_state_dict(ours.image_tower().trunk.state_dict(), assign=True)
        self.teacher.text.load_state_dict(ours.text_tower().trunk.model.state_dict(), assign=True)
        self.teacher.eval()
        self.tokenizer = open_clip.get_tokenizer(bench.student_config.stem)
        self.args = Namespace(
            **vars(options),
            model=bench.student_config.stem,
            batch_size=options.batch,
            distill=True,
            local_loss=False,
            gather_with_grad=False,
            horovod=False,
            rank=0,
            world_size=1,
            accum_freq=1,
            skip_scheduler=True,
            grad_clip_norm=1.0,
            log_every_n_steps=1_000_000,
            wandb=False,
        )
        self.args.precision = "amp_bf16" if options.precision == "bf16" else "fp32"
        self.loss = open_clip.create_loss(self.args)
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        """As open_clip_train/main.py groups the parameters; lr 5e-4, betas .9 .98, eps 1e-6, weight decay .2."""
        groups: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
        for name, parameter in self.student.named_parameters():
            plain = parameter.ndim < 2 or any(word in name for word in ("bn", "ln", "bias", "logit_scale"))
            groups[plain].append(parameter)
        return torch.optim.AdamW(
            [{"params": groups[True], "weight_decay": 0.0}, {"params": groups[False], "weight_decay": 0.2}],
            lr=5e-4,
            betas=(0.9, 0.98),
            eps=1e-6,
        )

    def round(self, steps: int) -> float:
        from open_clip_train.train import train_one_epoch

        count = steps * self.args.batch_size
        images = OpenClipImages(self.bench.data, count, self.transform, self.tokenizer)
        loader: Any = DataLoader(
            images,  # type: ignore[arg-type]
            batch_size=self.args.batch_size,
            shuffle=True,
            num_workers=self.args.loaders,
            pin_memory=self.device.type == "cuda",
            drop_last=True,
        )
        loader.num_samples, loader.num_batches = count, steps
        data = {"train": Namespace(dataloader=loader, set_epoch=lambda epoch: None)}
        synchronize(self.device)
        begun = time.perf_counter()
        train_one_epoch(self.student, data, self.loss, 0, self.optimizer, None, None, self.teacher, self.args)
        synchronize(self.device)
        return count / (time.perf_counter() - begun)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---------------------------------------------------------------- putting them together


def photographs(count: int, work: Path) -> Dataset:
    """Real photographs with captions where they are at hand, else the rendered world, as JPEGs too."""
    shared = shared_folder()
    if shared is not None and (shared / "data" / "flickr8k-train-000.tar").is_file():
        tars = sorted((shared / "data").glob("flickr8k-train-*.tar"))
        data = load_data(" + ".join(f"wds:{tar}" for tar in tars[: -(-count // 1000)]))
    else:
        # Rendered beforehand: drawing a picture takes ten times as long as decoding one.
        tars = write_world(work / "world", WorldSpec("pretrain", count, size=224))
        data = load_data(" + ".join(f"wds:{tar}" for tar in tars))
    return replace(data, samples=data.samples[:count])


def prepare(options: Namespace, work: Path) -> Bench:
    keep_freed_memory()
    if options.device == "cuda":
        # As open_clip_train/main.py sets it: one setting for all arms.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    # Enough for an epoch: in a round no image comes twice.
    data = photographs(options.batch * max(options.steps, options.online_steps), work)
    student = work / "clipette-student.json"
    write_json(student, SMOKE_STUDENT if options.smoke else STUDENT)
    write_json(work / "clipette-teacher.json", SMOKE_TEACHER)
    reference = str(work / "clipette-teacher.json") if options.smoke else "ViT-L-14"
    torch.manual_seed(0)
    teacher = TorchEncoder(load_open_clip(reference), name="teacher", device=options.device)
    store = open_store(random_store(work / "store", data, dim=teacher.dim, views=VIEWS))
    return Bench(options, work, data, store, teacher, student)


def measure(bench: Bench) -> dict[str, list[float]]:
    """images/s of every arm in every round; a first, short round of each is thrown away."""
    options = bench.options
    student_only, open_clip = StudentOnly(bench), OpenClipOnline(bench)
    students = (build_student(bench.job("sizes", 1)), open_clip.student)
    sizes = [sum(p.numel() for p in student.parameters()) for student in students]
    if sizes[0] != sizes[1]:
        raise SystemExit(f"the students differ: ours has {sizes[0]} parameters, open_clip's {sizes[1]}")
    arms: dict[str, tuple[int, Callable[[int, int], float]]] = {
        "store": (options.steps, lambda n, r: ours(bench, f"store-{r}", n, online=False)),
        "student_only": (options.steps, lambda n, r: student_only.round(n)),
        "open_clip_online": (options.online_steps, lambda n, r: open_clip.round(n)),
        "online": (options.online_steps, lambda n, r: ours(bench, f"online-{r}", n, online=True)),
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-1, options.rounds):
        # Every second round backwards: a machine that grows slower slows no arm more than another.
        for name in arms if number % 2 else reversed(arms):
            steps, arm = arms[name]
            speed = arm(steps if number >= 0 else 1, number)
            if number >= 0:
                found[name].append(round(speed, 3))
                say(f"round {number} {name}: {speed:.2f} images/s")
    return found


def options_of(parser: ArgumentParser, given: list[str] | None) -> Namespace:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12, help="a round of store and student_only")
    parser.add_argument("--online-steps", type=int, default=2, help="a round with the teacher in the loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loaders", type=int, default=2, help="our loader threads; open_clip's loader processes")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0: its own choice")
    options = parser.parse_args(given)
    if options.smoke:
        options.batch, options.steps, options.online_steps, options.rounds, options.loaders = 4, 3, 1, 1, 0
    return options


def main(given: list[str] | None = None) -> None:
    options = options_of(arguments(__doc__, "bench-pour"), given)
    if options.threads:
        torch.set_num_threads(options.threads)
    where = machine(options.device)
    with tempfile.TemporaryDirectory(prefix="clipette-pour-once-") as folder:
        bench = prepare(options, Path(folder))
        rounds = measure(bench)
    speeds = {name: statistics.median(rounds[name]) for name in ARMS}
    pairs = {name: np.divide(rounds["store"], rounds[name]).tolist() for name in ARMS[1:]}
    summary = {
        **speeds,
        "unit": "images/s",
        "ratios": {f"store/{name}": round(statistics.median(pairs[name]), 4) for name in ARMS[1:]},
        "targets": {"store/student_only": 0.95, "store/open_clip_online": 15},
        "rounds": rounds,
        "data": bench.data.name,
        "settings": {
            name: getattr(options, name)
            for name in ("device", "precision", "batch", "steps", "online_steps", "rounds", "loaders", "smoke")
        },
        "torch_threads": torch.get_num_threads(),
        "machine": where,
    }
    finish(summary, options.out)


if __name__ == "__main__":
    main()
