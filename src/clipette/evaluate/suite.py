"""Every measure a data set allows, for a model and its teacher, each image encoded once."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from clipette.data.corruptions import STRENGTHS
from clipette.data.dataset import Dataset
from clipette.errors import ConfigError, DataError
from clipette.evaluate.agreement import agreement
from clipette.evaluate.encoding import CachedEncoder, Settings
from clipette.evaluate.results import (
    AgreementResult,
    Evaluation,
    RetrievalResult,
    RobustnessResult,
    ShiftResult,
    ZeroShotResult,
)
from clipette.evaluate.retention import retention
from clipette.evaluate.retrieval import retrieval
from clipette.evaluate.robustness import Measure, robustness
from clipette.evaluate.shift import domain_shift
from clipette.evaluate.wording import known_texts
from clipette.evaluate.zero_shot import Templates, labelled, zero_shot
from clipette.metrics.classification import base_count
from clipette.types import Encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SuiteSettings:
    """What ``evaluate`` measures and how.

    ``descriptions``: sentences by class name (CuPL) that join the templates. ``base_novel``: CoOp's protocol where
    both halves of the classes have images. ``corruptions``: names for robustness, () for none (it costs a pass over
    the images for each of corruptions x strengths), on at most ``robustness_limit`` images. ``reference_domain``: the
    domain at home, for data sets that have it.
    """

    templates: Templates = "single"
    descriptions: Mapping[str, Sequence[str]] | None = None
    ks: tuple[int, ...] = (1, 5, 10)
    base_novel: bool = False
    corruptions: tuple[str, ...] = ()
    strengths: tuple[int, ...] = STRENGTHS
    robustness_limit: int = 500
    reference_domain: str | None = None
    run: Settings = field(default_factory=Settings)


def evaluate(
    encoder: Encoder,
    datasets: Dataset | Sequence[Dataset] | Mapping[str, Dataset],
    teacher: Encoder | None = None,
    *,
    text_encoder: Encoder | None = None,
    settings: SuiteSettings = SuiteSettings(),
) -> Evaluation:
    """Zero-shot where a data set has classes, retrieval where it has captions, shift where it has domains.

    With ``teacher``: the same of the teacher, their agreement on each data set, and retention. ``text_encoder``:
    encodes texts for an image-only ``encoder``; by default the teacher, where both live in one space. A data set given
    in a mapping is called by its key, else by its name.
    Raises ``ConfigError`` for two data sets of one name, ``DataError`` where nothing can be measured on one.
    """
    named = name_datasets(datasets)
    own = CachedEncoder(encoder)
    above = CachedEncoder(teacher) if teacher is not None else None
    texts = CachedEncoder(text_encoder) if text_encoder is not None else None
    if texts is None and above is not None and not own.can_encode_text and above.space == own.space:
        texts = above
    result = _measure(own, texts, named, settings)
    if above is None:
        return result
    reference = _measure(above, None, named, settings)
    start = time.perf_counter()
    alike = {name: _agreement(above, own, texts, data, name, settings) for name, data in named.items()}
    return replace(
        result,
        agreement={name: found for name, found in alike.items() if found is not None},
        teacher=reference,
        retention=retention(reference, result, settings.run.bootstrap),
        seconds=result.seconds + time.perf_counter() - start,
    )


def name_datasets(datasets: Dataset | Sequence[Dataset] | Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Data sets by the name tables show. Raises ``ConfigError`` for none or for two of one name."""
    if isinstance(datasets, Mapping):
        named = dict(datasets)
    else:
        each = [datasets] if isinstance(datasets, Dataset) else list(datasets)
        named = {data.name: data for data in each}
        if len(named) < len(each):
            names = [data.name for data in each]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"two data sets are called {twice!r}: give a mapping of names to data sets")
    if not named:
        raise ConfigError("no data set to evaluate on: name one or more")
    return named


def _measure(
    encoder: CachedEncoder, texts: CachedEncoder | None, named: Mapping[str, Dataset], settings: SuiteSettings
) -> Evaluation:
    start = time.perf_counter()
    classified: dict[str, ZeroShotResult] = {}
    searched: dict[str, RetrievalResult] = {}
    shifted: dict[str, ShiftResult] = {}
    robust: dict[str, RobustnessResult] = {}
    for name, data in named.items():
        has_classes = bool(data.class_names) and bool(labelled(data.samples, data.class_names)[0])
        has_captions = any(sample.captions for sample in data.samples)
        if has_classes and has_captions and not _knows_captions((texts or encoder).encoder, data):
            log.warning("%s: no retrieval, %s has stored class texts only and cannot read captions", name, encoder.name)
            has_captions = False
        if not has_classes and not has_captions:
            raise DataError(f"{data.reference}: neither classes nor captions: nothing to measure against")
        if has_classes:
            found = _classify(encoder, texts, data, settings)
            classified[name] = replace(found, dataset=name)
            if len(found.by_domain) > 1:
                home = settings.reference_domain if settings.reference_domain in found.by_domain else None
                shifted[name] = replace(domain_shift(found, home, settings.run.bootstrap), dataset=name)
        if has_captions:
            captions = retrieval(encoder, data, settings.ks, text_encoder=texts, settings=settings.run)
            searched[name] = replace(captions, dataset=name)
        if settings.corruptions:
            robust[name] = replace(_robustness(encoder, texts, data, has_classes, settings), dataset=name)
    return Evaluation(
        model=encoder.name,
        space=encoder.space,
        zero_shot=classified,
        retrieval=searched,
        shift=shifted,
        robustness=robust,
        settings=_described(settings),
        seconds=time.perf_counter() - start,
    )


def _knows_captions(encoder: Encoder, data: Dataset) -> bool:
    """Whether captions can be encoded: a student may carry nothing but its teacher's class texts."""
    known = known_texts(encoder)
    return known is None or all(caption in known for sample in data.samples for caption in sample.captions)


def _classify(encoder: CachedEncoder, texts: Encoder | None, data: Dataset, settings: SuiteSettings) -> ZeroShotResult:
    return zero_shot(
        encoder,
        data,
        settings.templates,
        descriptions=settings.descriptions,
        text_encoder=texts,
        base_novel=settings.base_novel and _has_both_halves(data),
        settings=settings.run,
    )


def _has_both_halves(data: Dataset) -> bool:
    """Whether the first half of the classes (rounded up) has images, and the other half too: a small sample may not."""
    labels = labelled(data.samples, data.class_names)[1]
    middle = base_count(len(data.class_names))
    return bool((labels < middle).any() and (labels >= middle).any())


def _robustness(
    encoder: CachedEncoder, texts: Encoder | None, data: Dataset, has_classes: bool, settings: SuiteSettings
) -> RobustnessResult:
    measure: Measure = "top1" if has_classes else "mean_recall"
    return robustness(
        # Not the cached encoder: corrupted vectors are used once, and would only fill memory.
        encoder.encoder,
        data.limit(settings.robustness_limit),
        settings.corruptions,
        settings.strengths,
        measure=measure,
        templates=settings.templates,
        descriptions=settings.descriptions,
        text_encoder=texts or (encoder if encoder.can_encode_text else None),
        settings=settings.run,
    )


def _agreement(
    teacher: CachedEncoder,
    student: CachedEncoder,
    texts: Encoder | None,
    data: Dataset,
    name: str,
    settings: SuiteSettings,
) -> AgreementResult | None:
    if len(data) < 2:
        return None
    found = agreement(
        teacher,
        student,
        data,
        templates=settings.templates,
        descriptions=settings.descriptions,
        student_text=texts,
        settings=settings.run,
    )
    return replace(found, dataset=name)


def _described(settings: SuiteSettings) -> dict[str, object]:
    """Settings for the record; of the descriptions only how many classes have some."""
    values = asdict(replace(settings, descriptions=None))
    values["descriptions"] = len(settings.descriptions or {})
    return values
