"""Image-text retrieval in both directions, several captions an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipette.data.dataset import Dataset
from clipette.errors import DataError
from clipette.evaluate.encoding import ReadSamples, Settings, encode_dataset, text_side
from clipette.evaluate.figures import figure_of, figures_of
from clipette.evaluate.results import Doubles, Figure, Items, RetrievalExample, RetrievalResult
from clipette.metrics import diversity
from clipette.metrics.bootstrap import Bootstrap, percentile
from clipette.metrics.retrieval import measure, rank_relevant, relevance
from clipette.metrics.similarity import top_k
from clipette.types import Encoder, Floats, Ints

MEAN_RECALL_KS = (1, 5, 10)
SHOWN = 5
DIVERSITY_DEPTH = 10


@dataclass(frozen=True, slots=True)
class _Pairs:
    """``captions[t]`` belongs to image ``image_of[t]``."""

    read: ReadSamples
    captions: tuple[str, ...]
    texts: Floats
    image_of: Ints


def retrieval(
    encoder: Encoder,
    dataset: Dataset,
    ks: Sequence[int] = (1, 5, 10),
    *,
    text_encoder: Encoder | None = None,
    examples: int = 8,
    settings: Settings = Settings(),
) -> RetrievalResult:
    """Search captions by image (``i2t``) and images by caption (``t2i``), by cosine, over the whole data set.

    ``hit@k`` is what image-text papers call R@k; ``recall@k`` is true recall (k of five captions found).
    ``mean_recall`` is the mean of hit@1, hit@5, hit@10 in both directions ("mean recall", "mR" in the literature),
    whatever ``ks`` is. Exact ties count by their expected value, so identical captions cost nobody. Intervals resample
    images, an image's captions with it; the gallery stays. Images without captions take no part and are counted.
    ``text_encoder``: for a student that has no text side, a model of the same space.
    Raises ``DataError`` without captions and past ``settings.max_failures``.
    """
    texts = text_side(encoder, text_encoder)
    captioned = [sample for sample in dataset.samples if sample.captions]
    if not captioned:
        raise DataError(f"{dataset.reference}: no sample has captions; measure zero-shot accuracy instead")
    read = encode_dataset(encoder, dataset, captioned, settings)
    captions = tuple(caption for sample in read.samples for caption in sample.captions)
    image_of = np.repeat(np.arange(len(read.samples)), [len(sample.captions) for sample in read.samples])
    pairs = _Pairs(read, captions, texts.encode_texts(captions, batch_size=settings.text_batch_size), image_of)

    wanted = sorted({*ks, *MEAN_RECALL_KS})
    items = _items(pairs, wanted)
    figures, replicates = figures_of(items, settings.bootstrap)
    hits = [f"{direction}/hit@{k}" for direction in ("i2t", "t2i") for k in MEAN_RECALL_KS]
    drawn = np.mean([replicates[name] for name in hits], axis=0)
    mean = float(np.mean([figures[name].value for name in hits]))
    found = _result_lists(pairs)
    by_direction = {
        direction: _asked(direction, figures, ks) | _diversity(found[direction], gallery)
        for direction, gallery in (("i2t", len(captions)), ("t2i", len(read.samples)))
    }
    return RetrievalResult(
        model=encoder.name,
        dataset=dataset.name,
        images=len(read.samples),
        texts=len(captions),
        i2t=by_direction["i2t"],
        t2i=by_direction["t2i"],
        mean_recall=figure_of(percentile(drawn, mean, settings.bootstrap), len(read.samples)),
        examples=_examples(pairs, found, examples, settings.bootstrap),
        without_captions=len(dataset.samples) - len(captioned),
        failures=read.failures,
        items=items,
    )


def _items(pairs: _Pairs, ks: Sequence[int]) -> Items:
    count = len(pairs.read.samples)
    forward = relevance(pairs.image_of, np.arange(len(pairs.captions)), queries=count, items=len(pairs.captions))
    per_image = measure(rank_relevant(pairs.read.vectors, pairs.texts, forward), ks)
    per_text = measure(rank_relevant(pairs.texts, pairs.read.vectors, forward.transposed()), ks)
    captions = np.bincount(pairs.image_of, minlength=count).astype(np.float64)
    sums: dict[str, Doubles] = {}
    counts: dict[str, Doubles] = {}
    for name, values in per_image.items():
        sums[f"i2t/{name}"], counts[f"i2t/{name}"] = values, np.ones(count)
    for name, values in per_text.items():
        sums[f"t2i/{name}"] = np.bincount(pairs.image_of, weights=values, minlength=count).astype(np.float64)
        counts[f"t2i/{name}"] = captions
    return Items(tuple(sample.key for sample in pairs.read.samples), sums, counts)


def _asked(direction: str, figures: dict[str, Figure], ks: Sequence[int]) -> dict[str, Figure]:
    names = [f"{kind}@{k}" for kind in ("hit", "recall", "precision", "ndcg") for k in sorted(set(ks))]
    return {name: figures[f"{direction}/{name}"] for name in [*names, "mrr", "map"]}


def _result_lists(pairs: _Pairs) -> dict[str, Ints]:
    return {
        "i2t": top_k(pairs.read.vectors, pairs.texts, DIVERSITY_DEPTH),
        "t2i": top_k(pairs.texts, pairs.read.vectors, DIVERSITY_DEPTH),
    }


def _diversity(results: Ints, gallery: int) -> dict[str, Figure]:
    return {
        "result_entropy": Figure(diversity.result_entropy(results, gallery), count=len(results)),
        "coverage": Figure(diversity.coverage(results, gallery), count=len(results)),
    }


def _examples(pairs: _Pairs, found: dict[str, Ints], count: int, how: Bootstrap) -> tuple[RetrievalExample, ...]:
    """``count`` queries of each direction, drawn by seed and not picked."""
    generator = np.random.default_rng(how.seed)
    keys = [sample.key for sample in pairs.read.samples]
    shown = []
    for image in sorted(generator.permutation(len(keys))[:count].tolist()):
        results = found["i2t"][image][:SHOWN].tolist()
        texts = tuple(pairs.captions[t] for t in results)
        right = tuple(bool(pairs.image_of[t] == image) for t in results)
        shown.append(RetrievalExample("i2t", keys[image], texts, right))
    for text in sorted(generator.permutation(len(pairs.captions))[:count].tolist()):
        results = found["t2i"][text][:SHOWN].tolist()
        right = tuple(bool(pairs.image_of[text] == image) for image in results)
        images = tuple(keys[image] for image in results)
        shown.append(RetrievalExample("t2i", pairs.captions[text], images, right))
    return tuple(shown)
