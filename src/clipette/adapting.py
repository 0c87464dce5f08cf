"""The verb ``adapt``: one method on one base, or several methods by a protocol, in one table."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from clipette.adapt.settings import LOOP, LinearProbe
from clipette.config import find_recipe, load_yaml, shipped_recipes
from clipette.data.dataset import Dataset, split_name
from clipette.data.protocols import PROTOCOLS, Round, drawn
from clipette.data.sources import load_data
from clipette.errors import ConfigError, UserError
from clipette.io import digest_json, write_atomic, write_json
from clipette.models.inference import TorchEncoder
from clipette.resolve import resolve
from clipette.train.adapt import AdaptJob, run_adapt
from clipette.train.adapt_data import tell_of_shots
from clipette.train.adapt_measure import measure_run
from clipette.train.adapt_recipe import AdaptRecipe
from clipette.train.anew import begin_anew
from clipette.train.lock import only_one
from clipette.train.recipe import AdaptFirst

log = logging.getLogger(__name__)

COLUMNS = ("method", "round", "shots", "figure", "mean", "sd", "seeds", "protocol", "parameters", "bytes", "seconds")


def adapt(
    recipe: str | Path,
    *,
    base: str | None = None,
    data: str | None = None,
    dev: str | None = None,
    out: str | Path,
    store: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = True,
    device: str | None = None,
) -> Path:
    """Adapt a frozen base to a data set by one recipe. Returns the run directory, which ``load`` reads.

    ``base`` and ``data``: references, in place of the recipe's. ``dev``: images that hyperparameters are chosen by,
    where there is something to choose; test images never are. ``store``: the base's vectors, poured beforehand.
    """
    read = read_adapt_recipe(recipe, overrides)
    read = read.model_copy(update={"base": base or read.base, "data": data or read.data, "dev": dev or read.dev})
    if read.base is None or read.data is None:
        missing = "base" if read.base is None else "data"
        raise ConfigError(f"no {missing} to adapt: name it with --{missing}, or in the recipe")
    listed = load_data(read.data)
    tests = sum(split_name(sample.split or "") == "test" for sample in listed.samples)
    if 0 < tests < len(listed):
        log.warning("%s: %d of these images are of its test split: ?split=train leaves them out", read.data, tests)
    job = AdaptJob(
        recipe=read,
        base=_base(read.base, device),
        reference=lasting(read.base),
        data=listed,
        out=Path(out),
        dev=None if read.dev is None else load_data(read.dev),
        store=None if store is None else Path(store),
    )
    if not resume:
        begin_anew(job.out)
    run_adapt(job)
    return Path(out)


def first_stage(
    how: AdaptFirst, *, base: str | None, data: str | None, out: Path, seed: int, resume: bool, device: str | None
) -> Path:
    """What a distillation's teacher learns before it is poured (PromptKD's first stage). Returns its run directory.

    Raises ``UserError`` as ``adapt``, saying how to leave the stage out.
    """
    if base is None:
        raise ConfigError("adapt: there is no teacher to adapt: name one with --teacher, or set adapt to null")
    shots = [] if how.shots is None else [f"shots={how.shots}"]
    overrides = [f"classes={how.classes}", *shots, f"seed={seed}", *how.set]
    try:
        return adapt(
            how.recipe, base=base, data=how.data or data, out=out, overrides=overrides, resume=resume, device=device
        )
    except UserError as error:
        raise type(error)(
            f"the teacher's own stage (adapt): {error}; to distil from it as it is, --set adapt=null; another recipe, "
            "--set adapt.recipe=upl (needs no labels) or coop (any image tower)"
        ) from None


def read_adapt_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> AdaptRecipe:
    """A recipe of ``clipette adapt`` by shipped name or path. Raises ``ConfigError`` where it is another verb's."""
    path = find_recipe(recipe)
    text = path.read_text(encoding="utf-8")
    if not any(line.startswith("method:") for line in text.splitlines()):
        kinds = ", ".join(name for name, each in shipped_recipes().items() if "\nmethod:" in each.read_text())
        raise ConfigError(f"{path}: no recipe of `clipette adapt` (it has no method); shipped ones: {kinds}")
    return load_yaml(AdaptRecipe, path, overrides)


def read_each(recipes: Sequence[str], overrides: Sequence[str]) -> list[AdaptRecipe]:
    """The recipes of a study. What is set of a method, or of the loop's training, is for those recipes that have it.

    Raises ``ConfigError`` for a key that none of them has.
    """
    if len(recipes) == 1:
        # Of a key that it has not, it says itself what it has.
        return [read_adapt_recipe(recipes[0], overrides)]
    plain = [read_adapt_recipe(recipe) for recipe in recipes]
    taken = [[line for line in overrides if _has(each, line)] for each in plain]
    lost = next((line for line in overrides if not any(line in lines for lines in taken)), None)
    if lost is not None:
        raise ConfigError(f"--set {lost}: none of {', '.join(each.name for each in plain)} has this key")
    return [read_adapt_recipe(recipe, lines) for recipe, lines in zip(recipes, taken, strict=True)]


def _has(recipe: AdaptRecipe, override: str) -> bool:
    section, *inner = override.partition("=")[0].strip().split(".")
    if section == "method" and inner:
        return inner[0] in type(recipe.method).model_fields
    if section == "train" and inner != ["max_failures"]:
        return isinstance(recipe.method, LOOP)
    return True


def lasting(reference: str) -> str:
    """The reference with its path made absolute, so that a run finds its base from any folder."""
    kind, colon, rest = reference.partition(":")
    if Path(reference).expanduser().exists():
        return str(Path(reference).expanduser().resolve())
    if colon and Path(rest).expanduser().exists():
        return f"{kind}:{Path(rest).expanduser().resolve()}"
    return reference


def class_names_of(sets: Sequence[Dataset]) -> tuple[str, ...]:
    """The classes of several data sets, each once."""
    return tuple(dict.fromkeys(name for each in sets for name in each.class_names))


def _base(reference: str, device: str | None) -> TorchEncoder:
    found = resolve(reference, device=device, classifiers=False)
    if not isinstance(found, TorchEncoder):
        raise ConfigError(f"base '{reference}' is no PyTorch model: stored vectors and bundles cannot be adapted")
    return found


# ---------------------------------------------------------------- several methods by a protocol


@dataclass(frozen=True)
class Cell:
    """One run's figures, by test, and what it cost. ``protocol``: transductive or inductive, by test."""

    method: str
    round: str
    shots: int | None
    seed: int
    figures: Mapping[str, float]
    protocol: Mapping[str, str]
    parameters: int
    bytes: int
    seconds: float


def adapt_study(
    recipes: Sequence[str],
    protocol: str,
    *,
    base: str,
    data: str,
    tests: Sequence[str] = (),
    shots: Sequence[int] = (),
    seeds: Sequence[int] = (1, 2, 3),
    out: str | Path,
    overrides: Sequence[str] = (),
    resume: bool = True,
    device: str | None = None,
) -> dict[str, object]:
    """Compare methods on one base by ``few-shot``, ``base-to-novel``, ``cross-dataset`` or ``domain-generalisation``.

    Every method with each of ``shots`` (none: all images) and each seed; finished runs are read back, or (``resume``
    false) made anew. Of ``overrides`` each recipe takes those of keys that it has. Choices are made on validation
    images alone. Writes ``results.json``, ``results.csv`` and ``table.md`` (mean ± standard deviation over seeds) into
    ``out``; returns the table. Base-to-novel has its harmonic mean, several tests their mean.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol '{protocol}' is none of {', '.join(PROTOCOLS)}")
    read = read_each(recipes, overrides)
    if not read or len({each.name for each in read}) < len(read):
        raise ConfigError(f"recipes {list(recipes)}: name one or more, each once")
    closed = [each.name for each in read if isinstance(each.method, LinearProbe) and not each.method.text_start]
    if closed and protocol in ("base-to-novel", "cross-dataset"):
        raise ConfigError(
            f"{closed[0]}: {protocol} tests classes that are not learned, and a linear probe knows no others: "
            "--set method.text_start=true adds it to their texts, or leave it out"
        )
    encoder, reference = _base(base, device), lasting(base)
    listed = load_data(data)
    rounds = PROTOCOLS[protocol](listed, [load_data(test) for test in tests])
    if not resume:
        begin_anew(Path(out))
    if any(each.labels.source == "given" for each in read):
        for part in rounds:
            tell_of_shots(part.train, max(shots, default=None))
    study = _Study(encoder, reference, Path(out), listed.fingerprint())
    with only_one(study.out):
        cells = [
            study.cell(recipe, part, count, seed)
            for recipe in read
            for part in rounds
            for count in (shots or (recipe.shots,))
            for seed in seeds
        ]
    table = summarize(cells, protocol)
    write_json(Path(out) / "results.json", {"protocol": protocol, "base": reference, "data": data, "table": table})
    write_atomic(Path(out) / "results.csv", to_csv(table).encode())
    write_atomic(Path(out) / "table.md", to_markdown(table).encode())
    return {"protocol": protocol, "table": table, "report": str(Path(out) / "table.md")}


@dataclass(frozen=True)
class _Study:
    base: TorchEncoder
    reference: str
    out: Path
    data: str

    def cell(self, recipe: AdaptRecipe, part: Round, shots: int | None, seed: int) -> Cell:
        """One run of one round, trained and tested, or read back."""
        chosen = drawn(part, shots, seed)
        # The round has chosen classes and shots already.
        own = recipe.model_copy(update={"seed": seed, "classes": "all", "shots": None})
        if recipe.labels.source == "pseudo":
            # Of every image, unlabelled, the shots are those that the base is most confident of.
            chosen = replace(chosen, train=part.train, dev=None)
            own = own.model_copy(update={"shots": shots})
        folder = self.out / "runs" / f"{recipe.name}-{part.name}-{shots or 'all'}-{seed}"
        told = [own.model_dump(mode="json"), chosen.train.fingerprint(), self.base.space]
        told.append({name: test.fingerprint() for name, test in chosen.tests.items()})
        mark, kept = digest_json(told), folder / "cell.json"
        known = json.loads(kept.read_text()) if kept.is_file() else {}
        if known.pop("mark", None) != mark and folder.exists():
            shutil.rmtree(folder)
        elif known:
            return Cell(**known)
        # A run that is cut off goes on if it is still the same one.
        write_json(kept, {"mark": mark})
        dev = chosen.dev if own.chooses else None
        run_adapt(AdaptJob(own, self.base, self.reference, chosen.train, folder, dev=dev, pool=self._pool(own)))
        found = measure_run(self.base, folder, chosen.tests)
        cost = (int(found.cost["parameters"]), int(found.cost["bytes"]), found.cost["seconds"])
        cell = Cell(recipe.name, part.name, shots, seed, found.figures, found.protocol, *cost)
        write_json(kept, {"mark": mark, **cell.__dict__})
        return cell

    def _pool(self, recipe: AdaptRecipe) -> Path:
        """One store for all rounds, methods, shots and seeds that see the same views: each image is poured once, and
        none that no run draws."""
        told = [recipe.views.model_dump(mode="json"), self.base.space, self.data]
        return self.out / "stores" / digest_json(told)[:12]


def summarize(cells: Sequence[Cell], protocol: str) -> list[dict[str, object]]:
    """Rows with ``COLUMNS``: mean and standard deviation over seeds of each figure, methods in their order."""
    rows: list[dict[str, object]] = []
    for method, shots in dict.fromkeys((cell.method, cell.shots) for cell in cells):
        own = [cell for cell in cells if (cell.method, cell.shots) == (method, shots)]
        by_seed: dict[int, dict[str, float]] = {}
        said: dict[str, str] = {}
        for cell in own:
            by_seed.setdefault(cell.seed, {}).update(cell.figures)
            said |= {name: text.partition(" ")[0] for name, text in cell.protocol.items()}
        for figures in by_seed.values():
            figures |= _joint(figures, protocol)
        costs = {
            "parameters": max(cell.parameters for cell in own),
            "bytes": max(cell.bytes for cell in own),
            "seconds": round(mean(cell.seconds for cell in own), 2),
        }
        for name in next(iter(by_seed.values())):
            values = [figures[name] for figures in by_seed.values()]
            label = said.get(name) or ("transductive" if "transductive" in said.values() else "inductive")
            rows.append(
                {
                    "method": method,
                    "round": ",".join(dict.fromkeys(cell.round for cell in own)),
                    "shots": shots,
                    "figure": name,
                    "mean": round(mean(values), 4),
                    "sd": round(stdev(values), 4) if len(values) > 1 else 0.0,
                    "seeds": len(values),
                    "protocol": label,
                    **costs,
                }
            )
    return rows


def _joint(figures: Mapping[str, float], protocol: str) -> dict[str, float]:
    """What stands for all tests: the harmonic mean of base and novel, else the mean where there are several."""
    if protocol == "base-to-novel":
        both = figures["base"] + figures["novel"]
        return {"harmonic_mean": 2 * figures["base"] * figures["novel"] / both if both else 0.0}
    return {"mean": mean(figures.values())} if len(figures) > 1 else {}


def to_csv(table: Sequence[Mapping[str, object]]) -> str:
    """The rows as CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue()


def to_markdown(table: Sequence[Mapping[str, object]]) -> str:
    """One row a method and shots, one column a figure: ``mean ± sd`` in percent."""
    figures = list(dict.fromkeys(str(row["figure"]) for row in table))
    head = ["method", "shots", *figures, "protocol", "parameters", "bytes", "seconds"]
    lines = [head, ["---"] * len(head)]
    for method, shots in dict.fromkeys((row["method"], row["shots"]) for row in table):
        own = {str(row["figure"]): row for row in table if (row["method"], row["shots"]) == (method, shots)}
        first = next(iter(own.values()))
        cells = [_percent(own[name]) for name in figures]
        said = ", ".join(dict.fromkeys(str(row["protocol"]) for row in own.values()))
        costs = [str(first[name]) for name in ("parameters", "bytes", "seconds")]
        lines.append([str(method), "all" if shots is None else str(shots), *cells, said, *costs])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _percent(row: Mapping[str, object]) -> str:
    return f"{100 * float(str(row['mean'])):.2f} ± {100 * float(str(row['sd'])):.2f}"
