"""Inductive, supervised or transductive: did a run see the images or the classes that it is evaluated on?

A run records what it was trained on beside its model; an evaluation compares that with its own images and class names.
PromptKD (CVPR 2024) distils on unlabelled images of the novel classes too: its figures on them are transductive, and
not to be set beside those of methods that saw base classes alone.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from clipette.data.dataset import Dataset
from clipette.data.order import stable_hash
from clipette.data.prompts import class_prompts, spoken
from clipette.data.refs import FileImage
from clipette.data.templates import WORDINGS
from clipette.evaluate.results import Evaluation
from clipette.io import write_json
from clipette.metrics.classification import base_count
from clipette.types import Sample

log = logging.getLogger(__name__)

FILE = "trained_on.json"
# Of more images those of the lowest hashes are kept: any other data set chooses the same ones of what both share.
PLACES = 65_536
_ALL = 2**64


@dataclass(frozen=True)
class TrainedOn:
    """What a run was trained on.

    ``classes``: names of the images' classes and class texts, lower case. ``places``: hashes of where each image is,
    all of them up to ``reach``. ``fingerprints``: of the data sets. ``labelled``: whether it was told which image is of
    which class.
    """

    classes: tuple[str, ...]
    places: tuple[int, ...]
    reach: int
    fingerprints: tuple[str, ...]
    labelled: bool = False

    @staticmethod
    def of(data: Dataset, class_texts: Iterable[str] = (), *, labelled: bool = False, keep: int = PLACES) -> TrainedOn:
        """``data``, and the names or texts that stood for classes in the losses; ``labelled``: labels were read."""
        names = {sample.class_name for sample in data.samples if sample.class_name is not None} | set(class_texts)
        places = sorted(set(_places(data.samples)))
        reach = _ALL if len(places) <= keep else places[keep - 1]
        classes = tuple(sorted({_said(name) for name in names}))
        return TrainedOn(classes, tuple(places[:keep]), reach, (data.fingerprint(),), labelled)

    def joined(self, earlier: TrainedOn | None) -> TrainedOn:
        """With what the weights were trained on before."""
        if earlier is None:
            return self
        reach = min(self.reach, earlier.reach)
        places = sorted({place for place in (*self.places, *earlier.places) if place <= reach})
        return TrainedOn(
            tuple(sorted({*self.classes, *earlier.classes})),
            tuple(places),
            reach,
            tuple(dict.fromkeys((*self.fingerprints, *earlier.fingerprints))),
            all(each.labelled for each in (self, earlier) if each.classes),
        )

    def upon(self, reference: str | Path | None) -> TrainedOn:
        """With the images that the model behind ``reference`` has seen: a base, or a teacher.

        Not with its classes: what a backbone was pre-trained on makes nothing transductive.
        """
        earlier = None if reference is None else read_trained_on(reference)
        return self if earlier is None else self.joined(replace(earlier, classes=()))

    def fewer(self, keep: int) -> TrainedOn:
        """The same, telling images by at most ``keep`` of their hashes, the lowest."""
        if len(self.places) <= keep:
            return self
        return replace(self, places=self.places[:keep], reach=self.places[keep - 1])

    def protocol(self, data: Dataset, class_names: tuple[str, ...]) -> str:
        """``inductive``, ``supervised`` or ``transductive``, with the counts behind it; empty where no class is known.

        Inductive: no image was trained on, and of the classes at most the first half, CoOp's base classes.
        Supervised: no image was trained on, but labelled ones of further classes were: the second half says nothing
        of novel classes. Transductive: anything else. Images are told by where they are, or by the whole data set's
        fingerprint.
        """
        seen = self.images_of(data)
        images = f"{seen} of its {len(data)} images"
        if not self.classes:
            return f"transductive (trained on {images})" if seen else ""
        trained = self.knows(class_names)
        beyond = any(trained[base_count(len(trained)) :]) or all(trained)
        label = "inductive"
        if seen or beyond:
            label = "supervised" if self.labelled and not seen else "transductive"
        return f"{label} (trained on {sum(trained)} of its {len(trained)} classes and {images})"

    def knows(self, class_names: Iterable[str]) -> list[bool]:
        """Which of these classes were trained on, by whatever wording."""
        known = set(self.classes)
        return [not known.isdisjoint(_forms(name)) for name in class_names]

    def images_of(self, data: Dataset) -> int:
        """How many of the images were trained on; from those within reach, where not all are known."""
        if data.fingerprint() in self.fingerprints:
            return len(data)
        known = set(self.places)
        asked = [place for place in _places(data.samples) if place <= self.reach]
        found = sum(place in known for place in asked)
        return found if len(asked) == len(data) or not found else max(1, round(found / len(asked) * len(data)))

    def write(self, folder: Path) -> None:
        """Write ``trained_on.json`` beside a model."""
        write_json(folder / FILE, asdict(self))


def read_trained_on(reference: str | Path) -> TrainedOn | None:
    """What the run or model folder behind a reference was trained on; None where nothing says so."""
    folder = Path(str(reference).removeprefix("run:")).expanduser()
    for path in (folder / "model" / FILE, folder / FILE):
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                return TrainedOn(
                    tuple(map(str, found["classes"])),
                    tuple(map(int, found["places"])),
                    int(found["reach"]),
                    tuple(map(str, found["fingerprints"])),
                    bool(found.get("labelled", False)),
                )
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s cannot be read (%s): no protocol is named", path, error)
    return None


def with_protocols(evaluation: Evaluation, trained: TrainedOn | None, named: Mapping[str, Dataset]) -> Evaluation:
    """The evaluation, its zero-shot results saying which protocol held; as it was where nothing is known."""
    if trained is None:
        return evaluation
    labelled = {
        name: replace(result, protocol=trained.protocol(named[name], result.class_names))
        for name, result in evaluation.zero_shot.items()
    }
    return replace(evaluation, zero_shot=labelled)


def _places(samples: Iterable[Sample]) -> list[int]:
    """A hash of where each image is. Keys alone would not do: every tar has its own 000000."""
    images = [sample.image for sample in samples if sample.image is not None]
    # A table's row names a file that another table may name too.
    places = [image.path if isinstance(image, FileImage) else image.location for image in images]
    return [stable_hash("place", os.path.abspath(place)) for place in places]


def _said(name: str) -> str:
    return spoken(name).lower()


def _forms(name: str) -> set[str]:
    """A class name, and the prompts that a teacher of stored texts may hold in its place."""
    prompts = (prompt for wording in WORDINGS for prompt in class_prompts([name], wording)[0])
    return {_said(name), *(_said(prompt) for prompt in prompts)}
