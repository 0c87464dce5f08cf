"""A data source, listed: samples with stable keys, class names, and what was left out and why."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from clipette.data.order import stable_hash
from clipette.data.prompts import spoken
from clipette.errors import DataError
from clipette.types import Failure, Sample

log = logging.getLogger(__name__)

Classes: TypeAlias = Literal["all", "base", "novel"]

# Sources disagree on the name of the split that selects.
SPLIT_NAMES = {"val": "dev", "valid": "dev", "validation": "dev"}


@dataclass
class Listing:
    """What one source found; ``class_names`` where the source states them and their order."""

    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Samples in a fixed order, with unique keys. ``sample.label`` indexes ``class_names``.

    ``failures``: rows left out while listing (duplicate keys, empty captions, ...). Images are not read here: one that
    is missing or damaged is found when it is read.
    """

    reference: str
    samples: tuple[Sample, ...]
    class_names: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def name(self) -> str:
        """The reference without folders, for tables."""
        return re.sub(r"[^\s?&=:]*/(?=[^\s?&])", "", self.reference)

    def __len__(self) -> int:
        return len(self.samples)

    def filter(self, split: str | None = None, domain: str | None = None, classes: Classes = "all") -> Dataset:
        """The samples of a split, of a domain (several: comma-separated), of base or novel classes.

        ``val``, ``valid``, ``validation`` and ``dev`` are one split. Base classes are the first ceil(C/2), novel the
        rest, each numbered from 0, as in CoOp's base-to-novel protocol. Raises ``DataError`` if nothing remains.
        """
        kept = self
        if split is not None:
            wanted = {split_name(name) for name in split.split(",")}
            kept = kept._keep(lambda s: s.split is not None and split_name(s.split) in wanted, f"split '{split}'")
        if domain is not None:
            domains = {name.strip() for name in domain.split(",")}
            kept = kept._keep(lambda s: s.domain in domains, f"domain '{domain}'")
        return kept if classes == "all" else kept._half_of_classes(classes)

    def few_shot(self, shots: int, seed: int) -> Dataset:
        """``shots`` samples a class (all, where a class has fewer), chosen by a hash of (seed, key)."""
        if not self.class_names:
            raise DataError(f"{self.reference}: few-shot needs class names, and the source has none")
        if shots < 1:
            raise DataError(f"{self.reference}: shots {shots} must be >= 1")
        by_class: dict[int, list[Sample]] = {}
        for sample in self.samples:
            if sample.label is not None:
                by_class.setdefault(sample.label, []).append(sample)
        chosen = {s.key for members in by_class.values() for s in _lowest(members, shots, "shots", seed)}
        return replace(self, samples=tuple(s for s in self.samples if s.key in chosen))

    def limit(self, count: int, seed: int = 0) -> Dataset:
        """At most ``count`` samples, chosen by a hash of (seed, key) and not from the top: tops are sorted by class."""
        chosen = {sample.key for sample in _lowest(self.samples, count, "limit", seed)}
        return replace(self, samples=tuple(s for s in self.samples if s.key in chosen))

    def draw_splits(self, shares: dict[str, float], seed: int) -> Dataset:
        """Move a share of the training samples (those stated ``train`` or nothing) to each named split.

        By a hash of (seed, key): a sample keeps its split when others are added or removed.
        """
        if not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
            raise DataError(f"{self.reference}: drawn shares {shares} must be in (0, 1) and leave something to train")
        stated = {split_name(s.split) for s in self.samples if s.split}
        for name in shares:
            if split_name(name) in stated:
                raise DataError(f"{self.reference}: split '{name}' is stated by the source; draw one of another name")

        def drawn(sample: Sample) -> Sample:
            if sample.split not in (None, "train"):
                return sample
            uniform = stable_hash("draw", seed, sample.key) / 2**64
            for name, share in shares.items():
                if uniform < share:
                    return replace(sample, split=name)
                uniform -= share
            return replace(sample, split="train")

        return replace(self, samples=tuple(drawn(sample) for sample in self.samples))

    def subset(self, keys: Iterable[str]) -> Dataset:
        """The samples of these keys, in this order. Raises ``DataError`` naming the first missing key."""
        by_key = {sample.key: sample for sample in self.samples}
        try:
            return replace(self, samples=tuple(by_key[key] for key in keys))
        except KeyError as error:
            raise DataError(f"{self.reference}: no sample has the key {error}") from None

    def fingerprint(self) -> str:
        """32 hex digits of all that was listed: keys, captions, classes, domains, splits, in order; not of pixels."""
        state = hashlib.blake2b(json.dumps(self.class_names).encode(), digest_size=16)
        for s in self.samples:
            state.update(json.dumps((s.key, s.captions, s.class_name, s.label, s.domain, s.split)).encode())
        return state.hexdigest()

    def _keep(self, test: Callable[[Sample], bool], what: str) -> Dataset:
        samples = tuple(sample for sample in self.samples if test(sample))
        if not samples:
            splits = sorted({str(s.split) for s in self.samples})
            domains = sorted({str(s.domain) for s in self.samples})
            raise DataError(
                f"{self.reference}: no sample has {what}; splits here: {', '.join(splits)}; "
                f"domains: {', '.join(domains)}"
            )
        return replace(self, samples=samples)

    def _half_of_classes(self, half: Classes) -> Dataset:
        if len(self.class_names) < 2:
            raise DataError(f"{self.reference}: base and novel need at least 2 classes, here {len(self.class_names)}")
        middle = (len(self.class_names) + 1) // 2
        first, end = (0, middle) if half == "base" else (middle, len(self.class_names))
        samples = tuple(
            replace(s, label=s.label - first) for s in self.samples if s.label is not None and first <= s.label < end
        )
        kept = replace(self, samples=samples, class_names=self.class_names[first:end])
        return kept._keep(lambda sample: True, f"{half} classes")


def split_name(name: str) -> str:
    """The usual name of a split: ``val`` and ``validation`` are ``dev``."""
    name = name.strip()
    return SPLIT_NAMES.get(name, name)


def assemble(reference: str, listing: Listing) -> Dataset:
    """Make keys unique and labels consistent. Raises ``DataError`` for an empty source or contradicting labels."""
    failures = list(listing.failures)
    samples = _unique(listing.samples, failures)
    if not samples:
        reasons = "".join(f"\n  {failure.location}: {failure.reason}" for failure in failures[:3])
        raise DataError(f"{reference}: the source has no sample{' that can be used:' + reasons if reasons else ''}")
    samples, class_names = _labelled(reference, samples, listing.class_names)
    _tell_of_classes(reference, samples, class_names)
    return Dataset(reference, tuple(samples), class_names, tuple(failures))


def _tell_of_classes(reference: str, samples: Sequence[Sample], class_names: tuple[str, ...]) -> None:
    """Warn of what makes figures of classification other than people think."""
    bare = sum(sample.label is None for sample in samples)
    if class_names and 0 < bare < len(samples):
        log.warning(
            "%s: %d of its %d samples have no class: classification leaves them out", reference, bare, len(samples)
        )
    read: dict[str, str] = {}
    for name in class_names:
        first = read.setdefault(spoken(name).lower(), name)
        if first != name:
            log.warning("%s: classes '%s' and '%s' read alike: no wording tells them apart", reference, first, name)


def join(reference: str, parts: Sequence[Dataset]) -> Dataset:
    """The parts one after the other; classes are united by name, in order of appearance."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.class_names))
    samples = [replace(s, label=None) for part in parts for s in part.samples]
    failures = [failure for part in parts for failure in part.failures]
    return assemble(reference, Listing(samples, failures, names))


def where(sample: Sample) -> str:
    """The sample's place, for messages."""
    return sample.image.location if sample.image is not None else f"text '{sample.key}'"


def _unique(samples: Iterable[Sample], failures: list[Failure]) -> list[Sample]:
    seen: dict[str, Sample] = {}
    for sample in samples:
        if bad := _unwritable(sample):
            reason = f"its {bad} is not valid Unicode (a file name that is not UTF-8?); rename it"
            failures.append(Failure(_shown(sample.key), _shown(where(sample)), reason))
            continue
        first = seen.setdefault(sample.key, sample)
        if first is not sample:
            reason = f"the key '{sample.key}' is already used by {where(first)}; rename one of them (tars: ?prefix=1)"
            failures.append(Failure(sample.key, where(sample), reason))
    return list(seen.values())


def _unwritable(sample: Sample) -> str:
    """What of a sample no file of ours can hold: Python reads bytes that are not UTF-8 as lone surrogates."""
    texts: dict[str, Iterable[object]] = {
        "key": [sample.key],
        "class": [sample.class_name],
        "domain": [sample.domain],
        "split": [sample.split],
        "captions": sample.captions,
        "metadata": sample.meta.values(),
    }
    for name, values in texts.items():
        if any(isinstance(value, str) and _shown(value) != value for value in values):
            return name
    return ""


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _labelled(reference: str, samples: list[Sample], stated: tuple[str, ...]) -> tuple[list[Sample], tuple[str, ...]]:
    """Give each sample that has a class both its name and its label, an index of the returned class names."""
    names = stated or _class_order(reference, samples)
    if not names:
        return samples, ()
    index = {name: position for position, name in enumerate(names)}
    if len(index) != len(names):
        twice = next(name for position, name in enumerate(names) if index[name] != position)
        raise DataError(f"{reference}: the class name '{twice}' is stated twice; give each class its own name")
    return [_with_class(reference, sample, names, index) for sample in samples], names


def _with_class(reference: str, sample: Sample, names: tuple[str, ...], index: dict[str, int]) -> Sample:
    name, label = sample.class_name, sample.label
    if name is None and label is None:
        return sample
    if name is None and label is not None:
        # Unnamed numbers were named by their digits in _class_order; stated names are indexed.
        name = str(label) if str(label) in index else names[label] if 0 <= label < len(names) else None
    if name is None or name not in index:
        raise DataError(
            f"{reference}: {where(sample)}: class '{sample.class_name or label}' is none of the {len(names)} stated"
        )
    return replace(sample, class_name=name, label=index[name])


def _class_order(reference: str, samples: Sequence[Sample]) -> tuple[str, ...]:
    """Class names by their stated labels, if every class has one; else alphabetically."""
    first: dict[str, Sample] = {}
    for sample in samples:
        name = sample.class_name if sample.class_name is not None else sample.label
        if name is None:
            continue
        known = first.setdefault(str(name), sample)
        if known.label != sample.label:
            raise DataError(
                f"{reference}: class '{name}' has label {known.label} at {where(known)} and {sample.label} at "
                f"{where(sample)}; make them agree"
            )
    labels = {name: sample.label for name, sample in first.items()}
    numbers = [label for label in labels.values() if label is not None]
    if len(numbers) < len(labels):
        return tuple(sorted(labels))
    if len(set(numbers)) < len(numbers):
        raise DataError(f"{reference}: two class names share one label; the classes and labels are {labels}")
    return tuple(sorted(labels, key=lambda name: labels[name] or 0))


def _lowest(samples: Sequence[Sample], count: int, purpose: str, seed: int) -> list[Sample]:
    return sorted(samples, key=lambda sample: (stable_hash(purpose, seed, sample.key), sample.key))[:count]
