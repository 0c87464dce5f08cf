"""Pour once: a teacher's outputs for images, augmented views and texts, into a store."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from clipette.config import StrictModel
from clipette.data.dataset import Dataset
from clipette.data.images import DecodeSettings
from clipette.data.loading import FailureLimit, map_ordered
from clipette.data.prompts import class_prompts, find_templates
from clipette.data.views import ViewPolicy
from clipette.errors import BadImageError, DataError, UnsupportedError
from clipette.io import digest, digest_json
from clipette.models.core import Blueprint, ImageTower, TextTower, weights_digest
from clipette.models.inference import TorchEncoder
from clipette.progress import track
from clipette.store import Plan, StoredFailure, StoreWriter, store_path
from clipette.tasks.pour_ranks import Group, group
from clipette.tasks.pour_work import IMAGES, TEXTS, VIEWS, Loader, ViewLaw, Worker
from clipette.types import Failure, Sample

Wanted = list[tuple[tuple[str, ...], list[str]]]
# Of the rows that a source leaves out, this many are named in the store; all are counted.
LEFT_OUT_KEPT = 1000


class PourPlan(StrictModel):
    """What is poured and how.

    ``images``: the whole image, by the teacher's own preprocessing. ``views``: K augmented views an image, drawn from
    ``policy``. ``captions``: every caption. ``templates``: class texts, by the name of a set of templates or as
    templates with ``{}``; None pours none. ``descriptions``: sentences of a language model for each class, poured
    with the class texts. ``precision``: ``auto`` is bf16 on CUDA and fp32 elsewhere. ``shard_size``: samples a shard,
    the most that a kill can lose on one rank. ``max_failures``: the share of samples that
    may fail before the pour does.
    """

    images: bool = True
    views: int = Field(default=0, ge=0)
    policy: ViewPolicy = ViewPolicy()
    captions: bool = True
    templates: str | tuple[str, ...] | None = None
    descriptions: dict[str, list[str]] | None = None
    batch_size: int = Field(default=64, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    shard_size: int = Field(default=1024, ge=1)
    decode: DecodeSettings = DecodeSettings()
    threads: int = Field(default=2, ge=0)
    max_failures: float = Field(default=0.1, ge=0, le=1)


@dataclass(frozen=True)
class PourReport:
    """What one call did; ``images`` and ``texts`` count what was poured now; ``failures``: all that are recorded."""

    path: Path
    images: int
    texts: int
    failures: tuple[Failure, ...]
    seconds: float

    @property
    def changed(self) -> bool:
        """Whether the model ran at all."""
        return self.images + self.texts > 0


def pour(
    encoder: TorchEncoder,
    data: Dataset | Sequence[Dataset],
    out: str | Path,
    plan: PourPlan | None = None,
    *,
    seed: int = 0,
    texts: Sequence[str] = (),
    cache: bool = False,
    progress: bool = True,
) -> PourReport:
    """Pour ``encoder``'s outputs for ``data`` into the store at ``out``; only what is missing or changed.

    Killed at any moment and called again, it ends with the very files of a call that was never killed. Under
    ``torchrun`` the ranks pour disjoint shards.

    Args:
        encoder: the teacher.
        data: one data set or several; samples without an image bring captions only.
        out: the store's folder; with ``cache`` the folder of stores, each under its own key.
        plan: what and how.
        seed: of the views.
        texts: further texts.
        cache: name the store's folder by its identity.
        progress: show a bar, where a person watches.

    Raises:
        StoreError: another teacher's store, another writer, a full disk.
        DataError: more failures than ``plan.max_failures``; one key for two images.
        UnsupportedError: asked for images or texts of a teacher that has no such tower.
    """
    begun = time.monotonic()
    plan = plan or PourPlan()
    sets = [data] if isinstance(data, Dataset) else list(data)
    before = encoder.precision
    encoder.precision = _precision(plan, encoder)
    try:
        request = _Request.of(encoder, sets, plan, seed, texts)
        path = store_path(out, request.identity) if cache else Path(out)
        with group() as ranks:
            images, texts_poured, failures = _pour(encoder, request, path, ranks, progress=progress)
    finally:
        encoder.precision = before
    return PourReport(path, images, texts_poured, failures, time.monotonic() - begun)


def identity_of(encoder: TorchEncoder, plan: PourPlan, *, seed: int = 0) -> dict[str, Any]:
    """Everything that changes the vectors: weights, architecture, preprocessing, decoding, precision, views."""
    model, precision = encoder.model, _precision(plan, encoder)
    image = None if model.image is None else _tower(model.image, precision)
    if image is not None and model.image is not None:
        image["preprocess"] = model.image.preprocess.to_dict()
        image["decode"] = plan.decode.to_dict()
    text = None if model.text is None else _tower(model.text, precision)
    if text is not None and model.text is not None:
        text["context_length"] = model.text.tokenizer.context_length
    views = {"count": plan.views, "policy": plan.policy.to_dict(), "seed": seed} if plan.views else None
    return {"encoder": {"space": encoder.space, "dim": encoder.dim}, IMAGES: image, VIEWS: views, TEXTS: text}


def poured_by(encoder: TorchEncoder, identity: Mapping[str, Any]) -> bool:
    """Whether the store of this identity holds the vectors of ``encoder``'s own weights.

    A student in its teacher's space answers to the same texts, and yet its vectors are not its teacher's.
    """
    if identity["encoder"]["space"] != encoder.space:
        return False
    towers = {IMAGES: encoder.model.image, TEXTS: encoder.model.text}
    stored = {side: (identity.get(side) or {}).get("weights") for side in towers}
    return all(
        tower is None or stored[side] is None or stored[side] == weights_digest(tower) for side, tower in towers.items()
    )


def _tower(tower: ImageTower | TextTower, precision: str) -> dict[str, Any]:
    return {"weights": weights_digest(tower), "architecture": _architecture(tower.blueprint), "precision": precision}


def _architecture(blueprint: Blueprint) -> str:
    """Equal weights in another architecture (another activation, another tokenizer) give other vectors."""
    assets = {name: digest(data) for name, data in sorted(blueprint.assets.items())}
    return digest_json([blueprint.kind, dict(blueprint.arguments), assets])


def _precision(plan: PourPlan, encoder: TorchEncoder) -> str:
    if plan.precision != "auto":
        return plan.precision
    return "bf16" if encoder.device.type == "cuda" else "fp32"


@dataclass(frozen=True)
class _Request:
    """All that one call asks for, resolved."""

    plan: PourPlan
    identity: Mapping[str, Any]
    samples: Mapping[str, Sample]
    texts: tuple[str, ...]
    tables: tuple[str, ...]
    law: ViewLaw | None
    info: Mapping[str, Any]

    @staticmethod
    def of(encoder: TorchEncoder, sets: Sequence[Dataset], plan: PourPlan, seed: int, texts: Sequence[str]) -> _Request:
        tables = ((IMAGES,) if plan.images else ()) + ((VIEWS,) if plan.views else ())
        samples = _samples(sets) if tables else {}
        class_names = tuple(dict.fromkeys(name for each in sets for name in each.class_names))
        every = _texts(sets, plan, class_names, texts)
        if samples and not encoder.can_encode_images:
            raise UnsupportedError(f"{encoder.name} has no image tower: pour texts alone (`--data text:lines.txt`)")
        if every and not encoder.can_encode_text:
            raise UnsupportedError(
                f"{encoder.name} has no text tower, and texts are asked of it: `clipette pour` with "
                "--no-captions --no-classes, or train with losses over images alone (the recipe unlabelled, or none)"
            )
        left_out = [failure for each in sets for failure in each.failures]
        info = {
            "name": encoder.name,
            "logit_scale": encoder.logit_scale,
            "logit_bias": encoder.logit_bias,
            **({"class_names": list(class_names)} if class_names else {}),
            **({"templates": list(find_templates(plan.templates))} if plan.templates is not None else {}),
            # Rows that never became a sample: there is no key to try again, only something to tell.
            "left_out": [{"location": each.location, "reason": each.reason} for each in left_out[:LEFT_OUT_KEPT]],
            "left_out_count": len(left_out),
        }
        law = ViewLaw(plan.views, plan.policy, seed) if plan.views else None
        return _Request(plan, identity_of(encoder, plan, seed=seed), samples, every, tables, law, info)

    def digest(self) -> str:
        """What a plan is resumed for: the same keys and texts in the same order, in shards of the same size."""
        state = hashlib.blake2b(digest_size=16)
        for part in (self.tables, (str(self.plan.shard_size),), self.samples, self.texts):
            state.update(f"{len(part)}|".encode())
            for word in part:
                state.update(f"{word}\0".encode("utf-8", "surrogatepass"))
        return state.hexdigest()


def _samples(sets: Sequence[Dataset]) -> dict[str, Sample]:
    found: dict[str, Sample] = {}
    for each in sets:
        for sample in each.samples:
            if sample.image is None:
                continue
            first = found.setdefault(sample.key, sample)
            if first.image is not None and first.image.location != sample.image.location:
                raise DataError(
                    f"{each.reference}: the key {sample.key!r} is both {first.image.location} and "
                    f"{sample.image.location}; pour these data sets into two stores"
                )
    return found


def _texts(sets: Sequence[Dataset], plan: PourPlan, class_names: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    """Every distinct text, in order of first appearance."""
    found: dict[str, None] = {}
    if plan.templates is not None:
        prompts = class_prompts(list(class_names), find_templates(plan.templates), plan.descriptions)
        found.update(dict.fromkeys(text for each in prompts for text in each))
    found.update(dict.fromkeys(more))
    if plan.captions:
        found.update(dict.fromkeys(text for each in sets for sample in each.samples for text in sample.captions))
    return tuple(found)


def _pour(
    encoder: TorchEncoder, request: _Request, path: Path, ranks: Group, *, progress: bool
) -> tuple[int, int, tuple[Failure, ...]]:
    """Plan and work until nothing is missing; (images, texts) poured now by all ranks, and all failures."""
    images = texts = 0
    writers: list[StoreWriter] = []

    def opened() -> None:
        if not writers:
            writer = StoreWriter(path, request.identity, encoder.dim, info=request.info, rank=ranks.rank)
            writers.append(stack.enter_context(writer))

    with ExitStack() as stack:
        # Rank 0 first: it creates the store and sweeps what a killed pour left, before others write.
        ranks.first(opened)
        ranks.all(opened)
        resumed = True
        while resumed:
            plan, resumed = ranks.first(lambda: _next_plan(writers[0], request, progress=progress))
            work = partial(_work, encoder, request, writers[0], plan, ranks, progress=progress)
            counts = ranks.all(work)
            images += sum(done for done, _ in counts)
            texts += sum(done for _, done in counts)
        failures = ranks.first(lambda: _finish(writers[0], request))
    return images, texts, failures


def _next_plan(writer: StoreWriter, request: _Request, *, progress: bool) -> tuple[Plan, bool]:
    """What is to do, and whether that was planned by a pour that was cut off (then a look for changes follows)."""
    writer.refresh()
    key = request.digest()
    plan = writer.resume(key)
    if plan is not None and _is_open(writer, plan, request):
        return plan, True
    writer.drop_plan()
    wanted = _missing(writer, request, progress=progress)
    again = {name for _, keys in wanted for name in keys}
    _check_failures([each for each in writer.failures() if each.key not in again], request)
    return writer.plan(key, wanted, shard_size=request.plan.shard_size), False


def _is_open(writer: StoreWriter, plan: Plan, request: _Request) -> bool:
    """Whether to go on with a plan. Not where it was stopped by its failures: their images may be mended by now."""
    numbers = {chunk.number for chunk in plan.chunks}
    failures = sum(len(commit.failures) for commit in writer.commits if commit.number in numbers)
    stopped = failures > request.plan.max_failures * len(request.samples)
    return not stopped and any(not writer.is_committed(chunk) for chunk in plan.chunks)


def _check_failures(failures: Sequence[StoredFailure], request: _Request) -> None:
    """Raises ``DataError`` where more of the samples asked for have failed than may."""
    asked = [Failure(each.key, each.location, each.reason) for each in failures if each.key in request.samples]
    FailureLimit(request.plan.max_failures).check(asked, len(request.samples), what="samples to pour")


def _missing(writer: StoreWriter, request: _Request, *, progress: bool) -> Wanted:
    """Keys by the tables they are missing from. An image whose bytes have changed is missing."""
    known = {table: writer.known(table) for table in request.tables}
    stored = [sample for key, sample in request.samples.items() if any(key in known[table] for table in request.tables)]
    contents = map_ordered(_content, stored, threads=request.plan.threads)
    checked = track(contents, total=len(stored), description="look for changes", enabled=progress)
    now = {sample.key: content for sample, content in zip(stored, checked, strict=True)}
    needs: dict[tuple[str, ...], list[str]] = {}
    for key in request.samples:
        need = tuple(table for table in request.tables if key not in known[table] or known[table][key] != now[key])
        if need:
            needs.setdefault(need, []).append(key)
    wanted: Wanted = sorted(needs.items())
    if request.texts:
        poured = writer.known(TEXTS)
        wanted.append(((TEXTS,), [text for text in request.texts if text not in poured]))
    return wanted


def _content(sample: Sample) -> str:
    if sample.image is None:
        return ""
    try:
        return digest(sample.image.read())
    except BadImageError:
        return ""


def _work(
    encoder: TorchEncoder, request: _Request, writer: StoreWriter, plan: Plan, ranks: Group, *, progress: bool
) -> tuple[int, int]:
    """This rank's open chunks; (images, texts) poured."""
    chunks = [chunk for chunk in plan.share(ranks.rank, ranks.size) if not writer.is_committed(chunk)]
    settings = request.plan
    worker = Worker(
        writer,
        encoder,
        batch_size=settings.batch_size,
        threads=settings.threads,
        limit=FailureLimit(settings.max_failures),
        numbers=frozenset(chunk.number for chunk in plan.chunks),
        total=len(request.samples),
        progress=progress,
    )
    pictures = [chunk for chunk in chunks if TEXTS not in chunk.tables]
    images = 0
    if pictures:
        loader = Loader(request.samples, encoder.model.image_tower().preprocess, settings.decode, request.law)
        images = worker.images(pictures, loader)
    return images, worker.texts([chunk for chunk in chunks if TEXTS in chunk.tables])


def _finish(writer: StoreWriter, request: _Request) -> tuple[Failure, ...]:
    """Write the manifest, unless too many of the samples asked for have failed."""
    writer.refresh()
    failures = writer.failures()
    _check_failures(failures, request)
    writer.finish()
    return tuple(Failure(each.key, each.location, each.reason) for each in failures)
