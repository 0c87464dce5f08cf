"""Domain shift: accuracy per domain, on average, at worst, and what is lost against an unshifted reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from clipette.data.dataset import Dataset
from clipette.errors import DataError
from clipette.evaluate.encoding import Settings
from clipette.evaluate.figures import figure_of
from clipette.evaluate.results import Doubles, Figure, ShiftResult, ZeroShotResult
from clipette.evaluate.zero_shot import Templates, zero_shot
from clipette.metrics.bootstrap import Bootstrap, percentile, replicate_means
from clipette.types import Encoder


def domain_shift(result: ZeroShotResult, reference: str | None = None, how: Bootstrap = Bootstrap()) -> ShiftResult:
    """The per-domain table of a classification whose samples carry domains.

    ``reference``: the domain the model is at home in, compared with the mean of the others. Intervals resample items
    within each domain. Raises ``DataError`` for fewer than two domains, or where ``reference`` is none of them.
    """
    if len(result.by_domain) < 2:
        raise DataError(
            f"{result.dataset}: shift needs two domains or more, here: {', '.join(result.by_domain) or 'none'}"
        )
    if reference is not None and reference not in result.by_domain:
        raise DataError(f"{result.dataset}: no domain {reference!r}; domains here: {', '.join(result.by_domain)}")
    values = {}
    for domain in result.by_domain:
        inside = result.items.counts[f"domain/{domain}"] > 0
        values[domain] = result.items.sums[f"domain/{domain}"][inside]
    return shift_table(result.model, result.dataset, values, reference, how)


def dataset_shift(
    encoder: Encoder,
    reference: Dataset,
    shifted: Mapping[str, Dataset],
    templates: Templates = "single",
    *,
    text_encoder: Encoder | None = None,
    settings: Settings = Settings(),
) -> ShiftResult:
    """``domain_shift`` where the domains are data sets of their own; each is classified among its own class names.

    The reference appears in the table under its data set's name.
    """
    results = {
        name: zero_shot(encoder, data, templates, text_encoder=text_encoder, settings=settings)
        for name, data in {reference.name: reference, **shifted}.items()
    }
    values = {name: result.items.sums["top1"] for name, result in results.items()}
    return shift_table(encoder.name, reference.name, values, reference.name, settings.bootstrap)


def shift_table(
    model: str, dataset: str, correct: Mapping[str, Doubles], reference: str | None, how: Bootstrap = Bootstrap()
) -> ShiftResult:
    """``correct[domain]``: per-item top-1 [n]. Domains are resampled independently. Raises ``DataError`` without
    any.
    """
    shifted = [domain for domain in correct if domain != reference]
    if not shifted:
        raise DataError(f"{dataset}: no domain beside the reference {reference!r}")
    drawn, domains = {}, {}
    for number, (domain, values) in enumerate(correct.items()):
        # Another seed for each domain: equal draws would tie domains of equal size to each other.
        own = replace(how, seed=how.seed + 7919 * number)
        drawn[domain] = replicate_means(values[:, None], np.ones((len(values), 1)), own)[:, 0]
        domains[domain] = figure_of(percentile(drawn[domain], float(values.mean()), how), len(values))
    count = sum(domains[domain].count for domain in shifted)
    mean = float(np.mean([domains[domain].value for domain in shifted]))
    mean_drawn = np.mean([drawn[domain] for domain in shifted], axis=0)
    worst = min(shifted, key=lambda domain: domains[domain].value)
    gap: Figure | None = None
    if reference is not None:
        lost = percentile(drawn[reference] - mean_drawn, domains[reference].value - mean, how)
        gap = figure_of(lost, count + domains[reference].count)
    return ShiftResult(
        model=model,
        dataset=dataset,
        domains=domains,
        mean=figure_of(percentile(mean_drawn, mean, how), count),
        worst=domains[worst],
        worst_domain=worst,
        reference_domain=reference,
        reference=domains[reference] if reference is not None else None,
        gap=gap,
    )
