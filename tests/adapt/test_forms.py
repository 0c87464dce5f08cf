"""What was learned at work again: over its base, through files, as an encoder or as a classifier."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.adapt import tiny
from tests.adapt.test_learners import METHODS, learner
from torch import Tensor

from clipette.adapt import settings
from clipette.adapt.adapter import Adapter, check_base, load_adapter, save_adapter
from clipette.adapt.features import ClassTexts, Shots
from clipette.adapt.fits import fit_method
from clipette.adapt.forms import CLASSIFIERS, apply_adapter, wording_of
from clipette.adapt.learner import Frozen
from clipette.adapt.learners import build_learner
from clipette.adapt.packed import RADIUS, PackedClassifier, pack
from clipette.adapt.test_time import cut_views
from clipette.errors import ConfigError, ModelError, UnsupportedError
from clipette.evaluate.zero_shot import class_vectors
from clipette.models.core import DualEncoder, weights_digest
from clipette.models.inference import TorchEncoder
from clipette.models.saved import load_model, save_model

ON_FEATURES: dict[str, settings.OnFeatures] = {
    "clip-adapter": settings.ClipAdapter(fit=settings.Fit(epochs=2)),
    "tip-adapter": settings.TipAdapter(),
    "taskres": settings.TaskRes(fit=settings.Fit(epochs=2)),
    "linear-probe": settings.LinearProbe(),
}


def fitted(name: str, frozen: Frozen, **changes: Any) -> Adapter:
    texts = ClassTexts(frozen.class_vectors(tiny.CLASSES, "single"), float(frozen.model.scale))
    shots = Shots(tiny.vectors(8), torch.arange(8) % 4)
    method = ON_FEATURES[name].model_copy(update=changes)
    return fit_method(method, texts, shots, None, classes=tiny.CLASSES, templates="single", seed=0)


def logits(model: DualEncoder, wording: str, pixels: Tensor, names: tuple[str, ...] = tiny.CLASSES) -> Tensor:
    """As evaluation has them: cosines of encoded images and texts, times the scale, plus the bias."""
    encoder = TorchEncoder(model, name="adapted", device="cpu")
    images = torch.from_numpy(encoder.encode_pixels(pixels.numpy()))
    texts = torch.from_numpy(class_vectors(encoder, names, wording))
    return encoder.logit_scale * images @ texts.T + encoder.logit_bias


def centred(values: Tensor) -> Tensor:
    return values - values.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "wise-ft"])
def test_an_adapter_says_what_its_learner_says(name: str) -> None:
    frozen, pixels = tiny.frozen(), tiny.pixels(3)
    made = learner(name, frozen)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # away from the start, where the context could be the phrase
        for parameter in made.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        given = pixels if made.reads == "pixels" else frozen.model.encode_image(pixels)
        features = made.features(given)
    labels = torch.tensor([0, 1, 2])
    targets = {"labels": labels, "frozen_image": frozen.model.encode_image(pixels)}
    expected = float(made.terms(features, targets)["cross_entropy"].detach())
    (adapter,) = made.adapters()
    before = weights_digest(frozen.model)
    found = logits(apply_adapter(frozen, adapter), wording_of(adapter), pixels)
    assert float(torch.nn.functional.cross_entropy(found, labels)) == pytest.approx(expected, abs=2e-3)
    plain = frozen.logits(frozen.model.encode_image(pixels), frozen.class_vectors(tiny.CLASSES, "single"))
    assert not torch.allclose(centred(found), centred(plain), atol=1e-2), "the adapter changes nothing"
    assert weights_digest(frozen.model) == before


def test_fine_tuning_at_no_share_is_the_base() -> None:
    frozen, pixels = tiny.frozen(), tiny.pixels(3)
    made = learner("wise-ft", frozen)
    made.shares = (0.0, 1.0)  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(0.05)
    none, whole = made.adapters()
    base = logits(apply_adapter(frozen, Adapter("zero-shot", tiny.CLASSES, "single")), "single", pixels)
    assert torch.equal(logits(apply_adapter(frozen, none), "single", pixels), base)
    assert not torch.allclose(logits(apply_adapter(frozen, whole), "single", pixels), base, atol=1e-3)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_what_is_fitted_works_over_images(name: str) -> None:
    frozen, pixels = tiny.frozen(), tiny.pixels(3)
    adapter = fitted(name, frozen)
    model = apply_adapter(frozen, adapter)
    found = logits(model, wording_of(adapter), pixels)
    images = frozen.model.encode_image(pixels)
    texts = ClassTexts(frozen.class_vectors(tiny.CLASSES, "single"), float(frozen.model.scale))
    kept = adapter.tensors
    if name == "clip-adapter":
        new = torch.relu(torch.relu(images @ kept["down"].T) @ kept["up"].T)
        mixed = torch.nn.functional.normalize(0.2 * new + 0.8 * images, dim=-1)
        expected = texts.logits(mixed)
    elif name == "tip-adapter":
        votes = torch.exp(-5.5 * (1 - images @ kept["keys"].T)) @ torch.eye(4)[kept["labels"]]
        expected = texts.logits(images) + votes
    elif name == "taskres":
        expected = float(frozen.model.scale) * images @ kept["vectors"].T
    else:
        expected = images @ kept["weight"].T + kept["bias"]
    torch.testing.assert_close(centred(found), centred(expected), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("clip-adapter", {"ratios": (0.0,)}),
        ("taskres", {"scales": (0.0,)}),
        ("tip-adapter", {"alpha": 0.0}),
        ("linear-probe", {"c": 0.0, "text_start": True}),
    ],
)
def test_no_effect_is_the_base(name: str, changes: dict[str, Any]) -> None:
    """To the last bit where vectors stay vectors; packed logits keep seven digits of the radius."""
    frozen, pixels = tiny.frozen(), tiny.pixels(3)
    adapter = fitted(name, frozen, **changes)
    found = logits(apply_adapter(frozen, adapter), wording_of(adapter), pixels)
    base = logits(apply_adapter(frozen, Adapter("zero-shot", tiny.CLASSES, "single")), "single", pixels)
    if name == "clip-adapter":
        assert torch.equal(found, base)
    else:
        torch.testing.assert_close(centred(found), centred(base), atol=2e-3, rtol=1e-4)


def test_no_tokens_and_the_phrase_itself_are_the_base_to_the_last_bit() -> None:
    frozen, pixels = tiny.frozen(), tiny.pixels(3)
    base = logits(apply_adapter(frozen, Adapter("zero-shot", tiny.CLASSES, "single")), "single", pixels)
    for method in (settings.CoOp(tokens=4, start="a photo of a"), settings.KgCoOp()):
        (adapter,) = build_learner(method, frozen, tiny.CLASSES, templates="single", seed=0).adapters()
        assert torch.equal(logits(apply_adapter(frozen, adapter), "single", pixels), base), method.kind
    empty = Adapter("prompts", tiny.CLASSES, "single", {}, {"visual": torch.zeros(2, 0, 16)})
    assert torch.equal(logits(apply_adapter(frozen, empty), "single", pixels), base)


def test_context_reads_other_classes_and_leaves_other_texts_alone() -> None:
    frozen = tiny.frozen()
    made = learner("coop", frozen)
    (adapter,) = made.adapters()
    encoder = TorchEncoder(apply_adapter(frozen, adapter), name="a", device="cpu")
    plain = TorchEncoder(frozen.model, name="b", device="cpu")
    texts = ["a photo of a dog.", "a dog", "a photo of a red.", "red"]
    found, base = encoder.encode_texts(texts), plain.encode_texts(texts)
    np.testing.assert_allclose(found[[1, 3]], base[[1, 3]], atol=1e-6)
    assert np.abs(found[[0, 2]] - base[[0, 2]]).max() > 1e-2
    expected = made.vectors().detach().numpy()  # type: ignore[attr-defined]
    np.testing.assert_allclose(found[2], expected[tiny.CLASSES.index("red")], atol=1e-5)


def test_class_vectors_are_for_the_classes_learned_alone() -> None:
    frozen = tiny.frozen()
    (adapter,) = learner("coop of each class", frozen).adapters()
    encoder = TorchEncoder(apply_adapter(frozen, adapter), name="a", device="cpu")
    plain = TorchEncoder(frozen.model, name="b", device="cpu")
    texts = ["a photo of a dog.", "a photo of a red."]
    found, base = encoder.encode_texts(texts), plain.encode_texts(texts)
    np.testing.assert_allclose(found[0], base[0], atol=1e-6)
    np.testing.assert_allclose(found[1], adapter.tensors["vectors"][0].numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["coop", "coop of each class", "promptsrc"])
def test_a_learned_text_tower_is_saved_with_a_student(name: str, tmp_path: Path) -> None:
    """A student that shares its teacher's texts copies them: prompts and all."""
    frozen = tiny.frozen()
    model = apply_adapter(frozen, learner(name, frozen).adapters()[0])
    save_model(DualEncoder(None, model.text), tmp_path / "m", name="texts")
    again = TorchEncoder(load_model(tmp_path / "m").model, name="again", device="cpu")
    texts = ["a photo of a red.", "a dog"]
    expected = TorchEncoder(model, name="a", device="cpu").encode_texts(texts)
    np.testing.assert_allclose(again.encode_texts(texts), expected, atol=1e-6)


# ---------------------------------------------------------------- classifiers


def test_packed_logits_are_unpacked_by_cosines() -> None:
    values = 50 * torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    vectors = pack(values)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(RADIUS * vectors[:, :7], centred(values), atol=2e-3, rtol=1e-5)
    # Half precision, as stores have it, moves a logit by a thousandth of itself.
    torch.testing.assert_close(RADIUS * vectors.half().float()[:, :7], centred(values), atol=2e-3, rtol=1e-3)
    with pytest.raises(ModelError, match="more than 10000"):
        pack(torch.tensor([[0.0, 1e5]]))


@pytest.mark.parametrize("name", ["cocoop", "tip-adapter", "linear-probe"])
def test_a_classifier_is_asked_for_other_classes(name: str) -> None:
    frozen, pixels = tiny.frozen(), tiny.pixels(3)
    adapter = learner(name, frozen).adapters()[0] if name == "cocoop" else fitted(name, frozen)
    whole = logits(apply_adapter(frozen, adapter), "none", pixels)
    fewer = ("blue", "red")
    some = logits(apply_adapter(frozen, adapter, fewer), "none", pixels, fewer)
    columns = whole[:, [tiny.CLASSES.index(each) for each in fewer]]
    torch.testing.assert_close(centred(some), centred(columns), atol=4e-3, rtol=1e-3)
    if name == "linear-probe":
        with pytest.raises(ConfigError, match="has not learned class 'dog'"):
            apply_adapter(frozen, adapter, ("red", "dog"))
        added = fitted(name, frozen, text_start=True)
        both = logits(apply_adapter(frozen, added, ("dog", "red")), "none", pixels, ("dog", "red"))
        images = frozen.model.encode_image(pixels)
        base = frozen.logits(images, frozen.class_vectors(("dog", "red"), "single"))
        place = added.classes.index("red")
        base[:, 1] += images @ added.tensors["weight"][place] + added.tensors["bias"][place]
        torch.testing.assert_close(centred(both), centred(base), atol=4e-3, rtol=1e-3)
    else:
        assert logits(apply_adapter(frozen, adapter, ("red", "dog")), "none", pixels, ("red", "dog")).shape == (3, 2)


def test_a_class_without_shots_has_its_text_alone() -> None:
    frozen, pixels = tiny.frozen(), tiny.pixels(3)
    adapter = fitted("tip-adapter", frozen)
    names = ("red", "dog")
    found = logits(apply_adapter(frozen, adapter, names), "none", pixels, names)
    images = frozen.model.encode_image(pixels)
    base = frozen.logits(images, frozen.class_vectors(names, "single"))
    reds = torch.exp(-5.5 * (1 - images @ adapter.tensors["keys"][adapter.tensors["labels"] == 0].T)).sum(dim=1)
    torch.testing.assert_close(found[:, 0] - found[:, 1], base[:, 0] + reds - base[:, 1], atol=4e-3, rtol=1e-3)


def test_packed_classifier_is_a_classifier() -> None:
    frozen = tiny.frozen()
    adapter = fitted("linear-probe", frozen)
    encoder = TorchEncoder(apply_adapter(frozen, adapter), name="probe", device="cpu")
    classifier = PackedClassifier(encoder, tiny.CLASSES)
    samples = tiny.data(6).samples
    found = classifier.classify_samples(samples)
    images = torch.from_numpy(TorchEncoder(frozen.model, name="b", device="cpu").encode_samples(samples).vectors)
    expected = centred(images @ adapter.tensors["weight"].T + adapter.tensors["bias"])
    assert (classifier.name, classifier.class_names) == ("probe", tiny.CLASSES)
    np.testing.assert_allclose(found.vectors, expected.numpy(), atol=2e-3)
    with pytest.raises(UnsupportedError, match="no classifier of 2 classes"):
        PackedClassifier(encoder, ("a", "b"))


# ---------------------------------------------------------------- test time


def tuned(frozen: Frozen, **changes: Any) -> Adapter:
    from dataclasses import asdict

    from clipette.adapt.context import ClassContext, start_of
    from clipette.adapt.tpt import TPTSettings

    start = start_of(frozen.model.text_tower(), 4, "a photo of a", seed=0)
    facts = ClassContext.of(frozen, tiny.CLASSES, 4).facts()
    how = TPTSettings(**{"views": 6, "share": 0.5, **changes})
    return Adapter("tuned", tiny.CLASSES, "single", {**facts, "settings": asdict(how)}, {"context": start.value})


def test_tpt_takes_no_step_and_is_the_base_or_one_and_is_not() -> None:
    frozen, pixels = tiny.frozen(), tiny.pixels(3)
    base = frozen.logits(frozen.model.encode_image(pixels), frozen.class_vectors(tiny.CLASSES, "single"))
    still = logits(apply_adapter(frozen, tuned(frozen, steps=0)), "none", pixels)
    torch.testing.assert_close(centred(still), centred(base), atol=4e-3, rtol=1e-3)
    moved = logits(apply_adapter(frozen, tuned(frozen, steps=1, lr=0.1)), "none", pixels)
    assert not torch.allclose(centred(moved), centred(base), atol=0.05)
    # Each image begins anew: alone or after others it is the same.
    alone = logits(apply_adapter(frozen, tuned(frozen, steps=1, lr=0.1)), "none", pixels[2:])
    torch.testing.assert_close(centred(alone), centred(moved[2:]), atol=4e-3, rtol=1e-3)


def test_views_begin_with_the_image_itself() -> None:
    image = tiny.pixels(1)[0]
    views = cut_views(image, 5)
    assert views.shape == (5, 3, 16, 16)
    assert torch.equal(views[0], image)
    assert not torch.allclose(views[1], views[2])
    assert torch.equal(cut_views(image, 5), views)


# ---------------------------------------------------------------- files


def test_an_adapter_is_a_few_kilobytes_and_names_its_base(tmp_path: Path) -> None:
    frozen = tiny.frozen()
    (adapter,) = learner("promptsrc", frozen).adapters()
    weights = weights_digest(frozen.model)
    for folder in (tmp_path / "a", tmp_path / "b"):
        save_adapter(adapter, folder, name="p", reference="runs/base", weights=weights, card={"paper": "x"})
    saved = load_adapter(tmp_path / "a")
    assert (saved.name, saved.reference, saved.weights, saved.card) == ("p", "runs/base", weights, {"paper": "x"})
    assert saved.adapter.facts == adapter.facts
    assert (saved.adapter.form, saved.adapter.classes) == ("prompts", tiny.CLASSES)
    assert all(torch.equal(saved.adapter.tensors[name], value) for name, value in adapter.tensors.items())
    assert (tmp_path / "a" / "adapter.safetensors").stat().st_size < 4096
    for name in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    check_base(saved, weights, tmp_path)
    with pytest.raises(ModelError, match=r"adapts another model: .*found then as 'runs/base'.*name the right one"):
        check_base(saved, weights_digest(tiny.model(seed=1)), tmp_path)


def test_damaged_adapters_are_refused(tmp_path: Path) -> None:
    frozen = tiny.frozen()
    with pytest.raises(ModelError, match="holds no adapter"):
        load_adapter(tmp_path)
    (adapter,) = learner("coop", frozen).adapters()
    save_adapter(adapter, tmp_path, name="p", reference="x", weights="y", card={})
    path = tmp_path / "adapter.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "format": 9}))
    with pytest.raises(ModelError, match="format 9"):
        load_adapter(tmp_path)
    path.write_text(json.dumps({**said, "classes": None}))
    with pytest.raises(ModelError, match="damaged"):
        load_adapter(tmp_path)
    path.write_text(json.dumps(said))
    tensors = tmp_path / "adapter.safetensors"
    written = tensors.read_bytes()
    tensors.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"is not what was written with adapter\.json"):
        load_adapter(tmp_path)
    del said["tensors"]
    path.write_text(json.dumps(said))
    assert load_adapter(tmp_path).name == "p", "one of before tensors had a digest"
    tensors.write_bytes(b"no")
    with pytest.raises(ModelError, match="damaged"):
        load_adapter(tmp_path)
    cache = Adapter("cache", tiny.CLASSES, "single", {"alpha": 1.0, "beta": 1.0})
    found = {"keys": torch.zeros(1, 12), "labels": torch.tensor([-1])}
    with pytest.raises(ModelError, match="a label below 0"):
        apply_adapter(frozen, replace(cache, tensors=found))
    with pytest.raises(ModelError, match="does not know"):
        apply_adapter(frozen, Adapter("new", (), "single"))
    narrow = Adapter(adapter.form, adapter.classes, "single", adapter.facts, {"context": torch.zeros(3, 5)})
    with pytest.raises(ConfigError, match=r"the context is \[3, 5\], this text tower takes \[3, 16\]"):
        apply_adapter(frozen, narrow)
    assert frozenset({"conditional", "cache", "linear", "tuned"}) == CLASSIFIERS
    assert math.isfinite(float(frozen.model.scale))
