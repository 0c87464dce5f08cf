"""A study of prompts: which wording of the class names serves a model best, and what to conclude from a small sample.

Every image is encoded once and every text once. What is chosen (the best template, ensembles, weights) is chosen on a
development part of the images; every figure that is compared is of the other part, with a bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from clipette.data.dataset import Dataset, where
from clipette.data.order import stable_hash
from clipette.errors import ConfigError, DataError
from clipette.evaluate.encoding import ReadSamples, Settings, encode_dataset, text_side
from clipette.evaluate.figures import figure_of, figures_of
from clipette.evaluate.prompt_ensembles import Labelled, Selection, even, greedy, mixed, weighted
from clipette.evaluate.prompt_wordings import (
    BEST,
    EVERYTHING,
    GREEDY,
    WEIGHTED,
    Asked,
    Kind,
    class_vectors_of,
    find_baseline,
    known_only,
    wordings,
)
from clipette.evaluate.results import Doubles, Figure, Items, plain
from clipette.evaluate.zero_shot import labelled
from clipette.metrics.bootstrap import percentile
from clipette.metrics.similarity import cosines
from clipette.types import Encoder, Failure, Floats, Ints, Sample


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to word the classes. ``texts``: mean number of texts a class.

    ``dev``, ``test``: top-1 accuracy on the part that choices are made on, and on the other. ``gain``: ``test`` minus
    the baseline's on the same images (paired). ``weights``: of an ensemble, its members' shares, the largest first.
    """

    name: str
    kind: Kind
    texts: float
    dev: Figure
    test: Figure
    gain: Figure
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Two classes and how often test images of either are taken for the other.

    ``images``: of both. ``mean``: the share over all templates. ``shares``: by wording.
    """

    first: str
    second: str
    images: int
    mean: float
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PathPoint:
    """The greedy ensemble after one more wording: development and test accuracy; ``kept``: it is in the ensemble."""

    added: str
    dev: float
    test: float
    kept: bool


@dataclass(frozen=True, slots=True)
class PromptStudy:
    """What was found. ``wordings``: templates and descriptions in the order given, means, then the chosen ones."""

    model: str
    dataset: str
    baseline: str
    class_names: tuple[str, ...]
    dev_images: int
    test_images: int
    wordings: tuple[Wording, ...]
    pairs: tuple[ConfusedPair, ...]
    path: tuple[PathPoint, ...]
    left_out: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()

    def wording(self, name: str) -> Wording:
        """The wording of this name. Raises ``KeyError`` where it was not studied."""
        for each in self.wordings:
            if each.name == name:
                return each
        raise KeyError(f"no wording '{name}' was studied")

    def transfer(self) -> float:
        """Rank correlation (Spearman's) of development and test accuracy over single templates; NaN for fewer than 3.

        Near 1: the development images order wordings as the test images do; near 0: what they choose is luck.
        """
        own = [each for each in self.wordings if each.kind == "template"]
        ranks = [_ranks([each.dev.value for each in own]), _ranks([each.test.value for each in own])]
        if len(own) < 3 or any(np.ptp(each) == 0 for each in ranks):
            return float("nan")
        dev, test = (each - each.mean() for each in ranks)
        return float(dev @ test / np.sqrt((dev @ dev) * (test @ test)))

    def ranked(self) -> list[Wording]:
        """Best on test first; ties by name."""
        return sorted(self.wordings, key=lambda each: (-each.test.value, each.name))

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        own = {each.name: plain(getattr(self, each.name)) for each in fields(self)}
        return own | {"transfer": plain(self.transfer())}


@dataclass(frozen=True)
class StudySettings:
    """``dev_share`` of each class's images is for choosing where no other data is; ``most`` wordings in the greedy
    ensemble; ``pairs`` of classes that are shown; ``seed`` of the division."""

    dev_share: float = 0.5
    most: int = 12
    pairs: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.dev_share < 1 or self.most < 1 or self.pairs < 0:
            raise ConfigError(
                f"dev share {self.dev_share}, most {self.most}, pairs {self.pairs}: need inside (0, 1), >= 1, >= 0"
            )


def study_prompts(
    encoder: Encoder,
    dataset: Dataset,
    templates: Sequence[str] = (),
    *,
    descriptions: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    dev: Dataset | None = None,
    baseline: str | None = None,
    text_encoder: Encoder | None = None,
    how: StudySettings = StudySettings(),
    settings: Settings = Settings(),
) -> PromptStudy:
    """Compare templates, LLM descriptions and ensembles on labelled images.

    ``templates``: names of sets and templates with {} in them; default: every set we ship. Of a set each template
    counts alone, and their mean as one. ``descriptions``: sentences per class by a name (CuPL). ``dev``: images to
    choose on, of the same classes; without it ``dev_share`` of each class's images are set apart by a hash of their
    keys. ``baseline``: what gains are measured against (default "a photo of a {}.", else the first template).
    ``text_encoder``: as in ``zero_shot``. Templates whose texts a stored encoder lacks are left out and named.

    Raises:
        DataError: no class names or labelled images, a class without description, too few images to divide.
        ConfigError: an unknown template or baseline, or nothing to compare.
        UnsupportedError, ModelError: as ``text_side``.
    """
    names = dataset.class_names
    samples, _ = labelled(dataset.samples, names)
    if len(names) < 2 or not samples:
        raise DataError(f"{dataset.reference}: a study of prompts needs labelled images of two classes or more")
    texts = text_side(encoder, text_encoder)
    asked, left_out = known_only(wordings(templates, descriptions or {}, names), texts)
    first = find_baseline(asked, baseline)
    vectors = class_vectors_of(texts, asked, settings.text_batch_size, progress=settings.progress)
    parts, failures = _parts(encoder, dataset, dev, samples, how, settings)
    return _Study(encoder, dataset, names, asked, vectors, first, parts, how, settings).run(left_out, failures)


@dataclass(frozen=True)
class _Part:
    read: ReadSamples
    images: Labelled


def _parts(
    encoder: Encoder,
    dataset: Dataset,
    dev: Dataset | None,
    samples: Sequence[Sample],
    how: StudySettings,
    settings: Settings,
) -> tuple[tuple[_Part, _Part], tuple[Failure, ...]]:
    names = dataset.class_names
    if dev is None:
        read = encode_dataset(encoder, dataset, samples, settings)
        reads = _divided(read, names, how, dataset.reference)
        failures = read.failures
    else:
        chosen, _ = labelled(dev.samples, names)
        if not chosen:
            raise DataError(f"{dev.reference}: no image of a class of {dataset.reference} to choose prompts on")
        shared = {where(sample) for sample in chosen} & {where(sample) for sample in samples}
        if shared:
            raise DataError(
                f"{len(shared)} images are both in {dev.reference} and in {dataset.reference} ({min(shared)}, ...): "
                "what is chosen on images looks better on them; give other development images, or none"
            )
        reads = encode_dataset(encoder, dev, chosen, settings), encode_dataset(encoder, dataset, samples, settings)
        failures = reads[0].failures + reads[1].failures
    scale = encoder.logit_scale
    parts = [_Part(each, Labelled(each.vectors, labelled(each.samples, names)[1], scale)) for each in reads]
    return (parts[0], parts[1]), failures


def _divided(
    read: ReadSamples, names: Sequence[str], how: StudySettings, reference: str
) -> tuple[ReadSamples, ReadSamples]:
    """(dev, test): a share of each class by a hash of (seed, key); a class's only image goes to test."""
    by_class: dict[str, list[int]] = {name: [] for name in names}
    for row, sample in enumerate(read.samples):
        by_class[sample.class_name or ""].append(row)
    apart: set[int] = set()
    for rows in by_class.values():
        rows.sort(key=lambda row: (stable_hash("prompts", how.seed, read.samples[row].key), row))
        apart.update(rows[: min(len(rows) - 1, max(1, round(how.dev_share * len(rows))))] if rows else ())
    if not apart:
        raise DataError(f"{reference}: no class has two images, so none can be set apart to choose on: name dev data")

    def part(rows: Sequence[int]) -> ReadSamples:
        return ReadSamples(tuple(read.samples[row] for row in rows), read.vectors[list(rows)], read.failures)

    everyone = range(len(read.samples))
    return part([row for row in everyone if row in apart]), part([row for row in everyone if row not in apart])


@dataclass(frozen=True)
class _Study:
    """All that is needed to measure; built once its inputs are sound."""

    encoder: Encoder
    dataset: Dataset
    names: tuple[str, ...]
    asked: Sequence[Asked]
    vectors: dict[str, Floats]
    baseline: str
    parts: tuple[_Part, _Part]
    how: StudySettings
    settings: Settings

    def run(self, left_out: tuple[str, ...], failures: tuple[Failure, ...]) -> PromptStudy:
        weights = {each.name: dict.fromkeys(each.members, 1 / max(1, len(each.members))) for each in self.asked}
        texts = {
            each.name: float(np.mean([len(own) for own in each.prompts])) for each in self.asked if not each.members
        }
        kinds: dict[str, Kind] = {each.name: each.kind for each in self.asked}
        chosen, selection = self._chosen()
        for name, shares in chosen.items():
            kinds[name] = "mean" if name == EVERYTHING else "chosen"
            weights[name] = shares
        stacked = {name: self.vectors[name] for name in self.vectors} | {
            name: self._mixed(shares) for name, shares in chosen.items()
        }
        for name, shares in weights.items():
            texts.setdefault(name, sum(texts[member] for member in shares))
        test = self._figures(stacked, 1)
        dev = self._figures(stacked, 0)
        measured = tuple(
            Wording(name, kinds[name], texts[name], dev[name][0], *test[name], _largest_first(weights[name]))
            for name in stacked
        )
        return PromptStudy(
            model=self.encoder.name,
            dataset=self.dataset.name,
            baseline=self.baseline,
            class_names=self.names,
            dev_images=len(self.parts[0].read.samples),
            test_images=len(self.parts[1].read.samples),
            wordings=measured,
            pairs=self._pairs(stacked, [name for name, kind in kinds.items() if kind == "template"]),
            path=self._path(selection),
            left_out=left_out,
            failures=failures,
        )

    def _single(self) -> list[str]:
        """What ensembles are made of: templates and descriptions, not sets of them."""
        return [each.name for each in self.asked if not each.members]

    def _chosen(self) -> tuple[dict[str, dict[str, float]], Selection]:
        single = self._single()
        stack, dev = np.stack([self.vectors[name] for name in single]), self.parts[0].images
        selection = greedy(stack, dev, self.how.most, progress=self.settings.progress)
        # The first that is taken is the best alone.
        out = {BEST: {single[selection.order[0]]: 1.0}}
        if len(single) > 1:
            out[GREEDY] = {single[row]: 1 / selection.kept for row in selection.rows}
            shares = weighted(stack, dev)
            out[WEIGHTED] = {name: float(share) for name, share in zip(single, shares, strict=True)}
            out[EVERYTHING] = dict.fromkeys(single, 1 / len(single))
        return out, selection

    def _mixed(self, shares: Mapping[str, float]) -> Floats:
        return mixed(np.stack([self.vectors[name] for name in shares]), list(shares.values()))

    def _figures(self, stacked: Mapping[str, Floats], part: int) -> dict[str, tuple[Figure, Figure]]:
        """By wording: (accuracy, its gain over the baseline), all on the same resampled images."""
        read, images = self.parts[part].read, self.parts[part].images
        sums = {name: images.correct(classes) for name, classes in stacked.items()}
        ones = np.ones(len(read.samples))
        items = Items(tuple(s.key for s in read.samples), sums, dict.fromkeys(sums, ones))
        figures, replicates = figures_of(items, self.settings.bootstrap)
        own = self.baseline
        return {
            name: (
                figure,
                figure_of(
                    percentile(
                        replicates[name] - replicates[own], figure.value - figures[own].value, self.settings.bootstrap
                    ),
                    figure.count,
                ),
            )
            for name, figure in figures.items()
        }

    def _path(self, selection: Selection) -> tuple[PathPoint, ...]:
        single = self._single()
        stack, test = np.stack([self.vectors[name] for name in single]), self.parts[1].images
        points = []
        for place, row in enumerate(selection.order):
            classes = mixed(stack, even(selection.order[: place + 1], len(single)))
            accuracy = float(test.correct(classes).mean())
            points.append(PathPoint(single[row], selection.scores[place][0], accuracy, place < selection.kept))
        return tuple(points)

    def _pairs(self, stacked: Mapping[str, Floats], templates: Sequence[str]) -> tuple[ConfusedPair, ...]:
        """The classes that templates confuse most, on average over all of them (or over all wordings without any)."""
        images = self.parts[1].images
        said = {name: cosines(images.vectors, classes).argmax(axis=1) for name, classes in stacked.items()}
        count = len(self.names)
        total = np.zeros((count, count))
        for name in templates or list(stacked):
            np.add.at(total, (images.labels, said[name]), 1.0 / len(templates or stacked))
        np.fill_diagonal(total, 0)
        both = np.triu(total + total.T)
        own = np.bincount(images.labels, minlength=count)
        sizes = own[:, None] + own[None, :]
        rates: Doubles = np.divide(both, sizes, out=np.zeros_like(both), where=sizes > 0)
        # By how many images, not by the rate: a pair of two images would lead every list.
        order = np.argsort(-both, axis=None, kind="stable")[: self.how.pairs]
        pairs = [divmod(int(place), count) for place in order if both.flat[place] > 0]
        return tuple(
            ConfusedPair(
                self.names[a],
                self.names[b],
                int(sizes[a, b]),
                float(rates[a, b]),
                {name: _share(images.labels, predicted, a, b) for name, predicted in said.items()},
            )
            for a, b in pairs
        )


def _ranks(values: Sequence[float]) -> Doubles:
    """Ranks from 0; equal values share the mean of theirs."""
    array = np.asarray(values)
    return np.asarray([(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array], dtype=np.float64)


def _share(labels: Ints, predicted: Ints, a: int, b: int) -> float:
    taken = ((labels == a) & (predicted == b)) | ((labels == b) & (predicted == a))
    return float(taken.sum() / max(1, ((labels == a) | (labels == b)).sum()))


def _largest_first(weights: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(weights.items(), key=lambda item: -item[1]))
