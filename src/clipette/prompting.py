"""The verb that studies prompts: references and paths in; figures, tables and a report out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from clipette.data.prompts import read_descriptions
from clipette.data.sources import load_data
from clipette.errors import ConfigError
from clipette.evaluate.encoding import Settings
from clipette.evaluate.prompt_wordings import BEST, GREEDY, WEIGHTED, wordings
from clipette.evaluate.prompts import PromptStudy, StudySettings, study_prompts
from clipette.evaluate.prompts_page import confusions_csv, print_prompts, prompts_csv, prompts_page
from clipette.evaluate.results import plain
from clipette.evaluate.wording import learned_wording
from clipette.io import write_atomic, write_json
from clipette.resolve import resolve

log = logging.getLogger(__name__)


def prompts(
    model: str,
    data: str,
    *,
    out: str | Path,
    dev: str | None = None,
    templates: Sequence[str] = (),
    descriptions: Sequence[str | Path] = (),
    baseline: str | None = None,
    texts: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    max_failures: float = 0.1,
    device: str | None = None,
) -> dict[str, object]:
    """Compare templates, LLM descriptions and ensembles on labelled images.

    ``templates``: names or templates (default: every set that we ship); ``descriptions``: files in CuPL's format;
    ``dev``: images to choose on (default: half of each class of ``data``); ``texts``: a model of the same space that
    encodes texts. Writes ``results.json``, ``results.csv``, ``confusions.csv``, ``report.html`` and ``summary.json``
    into ``out``; returns the summary.
    """
    files = {Path(path).stem: path for path in descriptions}
    if len(files) < len(descriptions):
        raise ConfigError("two files of descriptions have one name: tables tell them apart by it, so rename one")
    # What is quick to be wrong comes before the model is loaded.
    told = {name: read_descriptions(path) for name, path in files.items()}
    images, others = load_data(data), None if dev is None else load_data(dev)
    wordings(templates, told, images.class_names)
    encoder = resolve(model, device=device)
    if (learned := learned_wording(encoder)) is not None:
        log.warning(
            "%s has learned what '%s' says: it is its learned wording, all others are its base's",
            model,
            learned,
        )
    study = study_prompts(
        encoder,
        images,
        templates,
        descriptions=told,
        dev=others,
        baseline=baseline,
        text_encoder=None if texts is None else resolve(texts, device=device),
        how=StudySettings(seed=seed),
        settings=Settings(batch_size=batch_size, max_failures=max_failures, progress=True),
    )
    folder = Path(out)
    summary = _summary(study) | {"report": str(folder / "report.html")}
    write_json(folder / "results.json", study.to_json())
    write_atomic(folder / "results.csv", prompts_csv(study).encode())
    write_atomic(folder / "confusions.csv", confusions_csv(study).encode())
    write_atomic(folder / "report.html", prompts_page(study).encode())
    write_json(folder / "summary.json", summary)
    print_prompts(study)
    return summary


def _summary(study: PromptStudy) -> dict[str, object]:
    """The baseline, descriptions and what was chosen: accuracy, and (gain, low, high)."""
    shown: dict[str, object] = {}
    for each in study.wordings:
        if each.kind == "descriptions" or each.name in (BEST, GREEDY, WEIGHTED):
            own: dict[str, object] = {
                "top1": each.test.value,
                "gain": plain([each.gain.value, each.gain.low, each.gain.high]),
            }
            if each.name in (BEST, GREEDY):
                own["wordings"] = list(each.weights)
            shown[each.name] = own
    return {
        "model": study.model,
        "baseline": {"wording": study.baseline, "top1": study.wording(study.baseline).test.value},
        "images": {"dev": study.dev_images, "test": study.test_images},
        "wordings": shown,
    }
