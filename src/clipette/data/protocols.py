"""The protocols that adaptations are compared by: what is trained on, what chooses, what is tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from clipette.data.dataset import Dataset, split_name
from clipette.errors import ConfigError, DataError

# Few-shot validation, as CoOp has it: as many shots as training, but at most so many a class.
DEV_SHOTS = 4


@dataclass(frozen=True)
class Round:
    """One training of a protocol: ``train`` before shots are drawn, the ``tests`` by name, and images to choose by."""

    name: str
    train: Dataset
    tests: Mapping[str, Dataset]
    dev: Dataset | None = None


def few_shot(data: Dataset, tests: Sequence[Dataset]) -> list[Round]:
    """Train on the training split, test on the test split (or the ``tests``): every class on both sides."""
    train, dev, own = _splits(data, tests)
    for name, test in own.items():
        if not set(train.class_names) & set(test.class_names):
            raise DataError(
                f"{name}: no class of it is learned from {data.reference}: few-shot tests what is learned, other "
                "classes are for --protocol cross-dataset"
            )
    return [Round("all", train, own, dev)]


def base_to_novel(data: Dataset, tests: Sequence[Dataset]) -> list[Round]:
    """Train on the first half of the classes, rounded up; test on these and on the others, each among its own kind.

    Paper: Zhou et al. (CoCoOp), CVPR 2022, section 4.1.
    """
    train, dev, own = _splits(data, tests)
    if len(own) != 1:
        raise ConfigError(f"base-to-novel tests on one data set, got {len(own)}: name one --test, or none")
    (test,) = own.values()
    halves = {"base": _of(test, train.filter(classes="base").class_names)}
    halves["novel"] = _of(test, train.class_names[len(halves["base"].class_names) :])
    return [Round("base", train.filter(classes="base"), halves, None if dev is None else dev.filter(classes="base"))]


def cross_dataset(data: Dataset, tests: Sequence[Dataset]) -> list[Round]:
    """Train on one data set; test on others, whose classes it has not seen (Zhou et al. (CoCoOp), section 4.2)."""
    if not tests:
        raise ConfigError("cross-dataset tests on other data sets: name them with --test")
    train, dev, own = _splits(data, tests)
    return [Round("source", train, own, dev)]


def domain_generalisation(data: Dataset, tests: Sequence[Dataset]) -> list[Round]:
    """Train on all domains but one, test on that one, for each; with ``tests``, train on the data and test on these.

    The domain left out is tested on its test split, or whole where no split is stated. The second is CoOp's: one
    source, and other data sets of the same classes (section 4.3 of CoCoOp).
    """
    if tests:
        train, dev, own = _splits(data, tests)
        return [Round("source", train, own, dev)]
    domains = list(dict.fromkeys(sample.domain for sample in data.samples if sample.domain is not None))
    if len(domains) < 2:
        raise ConfigError(f"{data.reference}: domain generalisation needs two domains or more, or --test data sets")
    out = []
    for domain in domains:
        others = data.filter(domain=",".join(each for each in domains if each != domain))
        held = data.filter(domain=domain)
        if any(sample.split for sample in held.samples):
            held = _splits(held, [])[2]["test"]
        train, dev, _ = _splits(others, [held])
        out.append(Round(domain, train, {domain: held}, dev))
    return out


PROTOCOLS = {
    "few-shot": few_shot,
    "base-to-novel": base_to_novel,
    "cross-dataset": cross_dataset,
    "domain-generalisation": domain_generalisation,
}


def drawn(part: Round, shots: int | None, seed: int) -> Round:
    """The round with ``shots`` images a class to train on, and at most four others a class to choose by.

    Those to choose by come from the data's own dev split, else from the training images that were not drawn; where none
    are left there are none. Never from a test split.
    """
    if shots is None:
        return part
    train = part.train.few_shot(shots, seed)
    taken = {sample.key for sample in train.samples}
    left = tuple(sample for sample in part.train.samples if sample.key not in taken and sample.label is not None)
    rest = part.dev if part.dev is not None else replace(part.train, samples=left) if left else None
    return replace(part, train=train, dev=None if rest is None else rest.few_shot(min(shots, DEV_SHOTS), seed))


def _splits(data: Dataset, tests: Sequence[Dataset]) -> tuple[Dataset, Dataset | None, dict[str, Dataset]]:
    """(training split, dev split if stated, tests by name). An image without a stated split is for training; so are
    splits of other names (``world:shift-outline``) where none is called train."""
    stated = {split_name(sample.split) for sample in data.samples if sample.split}
    own = tuple(sample for sample in data.samples if not sample.split or split_name(sample.split) == "train")
    if not own:
        own = tuple(sample for sample in data.samples if split_name(sample.split or "") not in ("dev", "test"))
    if not own:
        raise DataError(f"{data.reference}: no image is of split 'train': the splits here are {', '.join(stated)}")
    train = replace(data, samples=own)
    dev = data.filter(split="dev") if "dev" in stated else None
    named = {each.name: each for each in tests}
    if len(named) < len(tests):
        raise ConfigError(f"two test sets are called alike: {[each.name for each in tests]}")
    if not tests:
        if "test" not in stated:
            raise DataError(f"{data.reference}: no test split is stated: name test data with --test")
        named = {"test": data.filter(split="test")}
    return train, dev, named


def _of(data: Dataset, names: tuple[str, ...]) -> Dataset:
    """The images of the classes that are called so, numbered as they are here: another data set may number its own."""
    places = {name: place for place, name in enumerate(names)}
    samples = tuple(
        replace(sample, label=places[sample.class_name]) for sample in data.samples if sample.class_name in places
    )
    if not samples:
        raise DataError(
            f"{data.reference}: no image is of the classes {', '.join(names[:3])}, ... of the training data"
        )
    return replace(data, samples=samples, class_names=names)
