"""What methods learn: their formulas by plain loops, no effect where nothing is learned, gradients in their place."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.adapt import tiny
from tests.models.prompt_towers import IMAGES, bert_text, clip_text, open_clip_text
from torch import Tensor
from torch.nn import functional as F

from clipette.adapt import settings
from clipette.adapt.cocoop import CoCoOp, conditional_logits, shift
from clipette.adapt.context import start_of
from clipette.adapt.coop import CoOp
from clipette.adapt.kgcoop import KgCoOp, distance_to_frozen
from clipette.adapt.learner import Frozen, Learner
from clipette.adapt.learners import LEARNERS, build_learner
from clipette.adapt.maple import Coupled, MaPLe
from clipette.adapt.promptsrc import PromptSRC, l1_rows
from clipette.errors import ConfigError
from clipette.models.core import DualEncoder, weights_digest
from clipette.models.inference import TorchEncoder
from clipette.models.inject import visual_prompts
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model
from clipette.models.text_prompts import encode_prompts, text_prompt_tokens
from clipette.tasks.adapt import AdaptTask, freeze
from clipette.tasks.batch import Batch

SHORT: dict[str, Any] = {"tokens": 4, "start": "a photo of a"}
METHODS: dict[str, settings.Loop] = {
    "coop": settings.CoOp(tokens=3),
    "coop of each class": settings.CoOp(tokens=3, per_class=True),
    "coop in the middle": settings.CoOp(tokens=3, position="middle"),
    "coop in front": settings.CoOp(tokens=3, position="front"),
    "kgcoop": settings.KgCoOp(**SHORT),
    "cocoop": settings.CoCoOp(**SHORT, reduction=4),
    "vpt": settings.VPT(tokens=2),
    "vpt shallow": settings.VPT(tokens=2, depth=1),
    "maple": settings.MaPLe(tokens=2, start="a photo of a", depth=2),
    "promptsrc": settings.PromptSRC(**SHORT, visual=2, depth=3, templates="single"),
    "wise-ft": settings.WiseFT(),
}


def learner(name: str, frozen: Frozen) -> Learner:
    return build_learner(METHODS[name], frozen, tiny.CLASSES, templates="single", seed=0)


def batch_of(made: Learner, frozen: Frozen) -> Batch:
    pixels = tiny.pixels(4)
    with torch.no_grad():
        said = frozen.model.encode_image(pixels)
    targets = {"labels": torch.tensor([0, 1, 2, 3]), "ids": torch.arange(4), "teacher_image": said}
    return Batch({"pixels": pixels}, targets)


def named(frozen: Frozen) -> Tensor:
    return frozen.class_vectors(tiny.CLASSES, "single")


def test_every_method_of_the_loop_is_here() -> None:
    assert {method.kind for method in METHODS.values()} == set(LEARNERS)
    assert {kind.model_fields["kind"].default for kind in settings.LOOP} == set(LEARNERS)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_what_is_learned_and_nothing_else(name: str) -> None:
    frozen = tiny.frozen()
    before = weights_digest(frozen.model)
    made = learner(name, frozen)
    task = AdaptTask(made, frozen.model)
    batch = batch_of(made, frozen)
    losses = []
    for _ in range(3):
        task.parts.zero_grad()
        output = task.loss(task.encode(batch), batch.targets)
        output.loss.backward()
        losses.append(float(output.loss.detach()))
        # A step of one length, whatever the gradient's: downhill.
        steps = [parameter for parameter in task.parts.parameters() if parameter.grad is not None]
        length = torch.stack([each.grad.norm() for each in steps if each.grad is not None]).norm()
        with torch.no_grad():
            for each in steps:
                each.sub_(1e-4 * each.grad / length)
    # Zero-sized where only one layer has tokens; the last of a text tower's deeper tokens are all read.
    learning = [p for p in task.parts.parameters() if p.numel()]
    assert learning
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in learning)
    assert all(p.grad is None for p in frozen.model.parameters())
    assert weights_digest(frozen.model) == before
    assert losses[-1] < losses[0]
    assert {name.partition(".")[0] for name, _ in task.parts.named_parameters()} == {"learned"}


def test_a_context_that_starts_at_the_phrase_is_the_base() -> None:
    frozen = tiny.frozen()
    made = CoOp(settings.CoOp(tokens=4, start="a photo of a"), frozen, tiny.CLASSES)
    torch.testing.assert_close(made.vectors(), named(frozen), atol=1e-6, rtol=1e-6)
    kept = KgCoOp(settings.KgCoOp(), frozen, tiny.CLASSES)
    terms = kept.terms({"image": tiny.vectors(4)}, {"labels": torch.tensor([0, 1, 2, 3])})
    assert float(terms["knowledge"].detach()) == pytest.approx(0, abs=1e-9)
    expected = frozen.logits(tiny.vectors(4), named(frozen))
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(expected, torch.tensor([0, 1, 2, 3])))


@pytest.mark.parametrize(
    ("position", "texts"),
    [
        ("end", ["X X X red.", "X X X art painting."]),
        ("middle", ["X red X X.", "X art painting X X."]),
        ("front", ["red X X X.", "art painting X X X."]),
    ],
)
def test_positions_of_the_class_name(position: Any, texts: list[str]) -> None:
    """The learned tokens stand where the words X would, whatever the length of the name."""
    tower = tiny.model().text_tower()
    names = ["red", "art painting"]
    found = text_prompt_tokens(tower, names, 3, position=position)
    filler = [text.replace("X", "a") for text in texts]
    plain: Any = tower.tokenizer(filler)
    assert found.arrays["input_ids"].tolist() == plain["input_ids"].tolist()
    held = int(tower.tokenizer(["a"])["input_ids"][0, found.places.min() if position != "front" else 1])
    for row, text in enumerate(texts):
        words = text.rstrip(".").split()
        first = int(found.places[row, 0]) - words.index("X")
        assert found.places[row].tolist() == [first + i for i, word in enumerate(words) if word == "X"]
        assert {int(found.arrays["input_ids"][row, place]) for place in found.places[row]} == {held}
    # The embedding of the filler in its places is the plain text.
    places = found.places
    word = tower.trunk.transformer.token_embedding.weight[held]  # type: ignore[union-attr,index]
    context = word.detach().expand(3, -1)
    torch.testing.assert_close(
        encode_prompts(tower, found, context),
        tower({name: torch.from_numpy(value) for name, value in plain.items()}),
        atol=1e-6,
        rtol=1e-5,
    )
    assert places.shape == (2, 3)


def test_kgcoops_distance_by_loops() -> None:
    learned, frozen = tiny.vectors(5, seed=3), tiny.vectors(5, seed=4)
    total = 0.0
    for row in range(5):
        for place in range(12):
            total += float(learned[row, place] - frozen[row, place]) ** 2
    assert float(distance_to_frozen(learned, frozen)) == pytest.approx(total / 5, rel=1e-5)
    assert float(distance_to_frozen(learned, learned)) == 0


def test_cocoops_prompts_are_each_images_own() -> None:
    frozen = tiny.frozen()
    made = CoCoOp(settings.CoCoOp(**SHORT, reduction=4), frozen, tiny.CLASSES, seed=3)
    images = tiny.vectors(3)
    net = made.module.requires_grad_(False)
    found = made.features(images)["logits"]
    for b in range(3):
        hidden = [max(0.0, float(net.down.weight[h] @ images[b] + net.down.bias[h])) for h in range(3)]
        moved = [
            float(net.up.bias[w] + sum(float(net.up.weight[w, h]) * hidden[h] for h in range(3))) for w in range(16)
        ]
        torch.testing.assert_close(net.moved(images)[b], torch.tensor(moved), atol=1e-5, rtol=1e-4)
        context = torch.stack([net.context[m].detach() + torch.tensor(moved) for m in range(4)])
        for c, vector in enumerate(made.prompts.vectors(context)):
            expected = float(frozen.model.scale) * float(images[b] @ vector)
            assert float(found[b, c]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_cocoop_without_a_network_is_coop() -> None:
    frozen = tiny.frozen()
    made = CoCoOp(settings.CoCoOp(**SHORT), frozen, tiny.CLASSES)
    with torch.no_grad():
        made.module.up.weight.zero_()
        made.module.up.bias.zero_()
    images = tiny.vectors(3)
    plain = CoOp(settings.CoOp(**SHORT), frozen, tiny.CLASSES)
    torch.testing.assert_close(
        made.features(images)["logits"], frozen.logits(images, plain.vectors()), atol=1e-4, rtol=1e-5
    )


def test_cocoop_in_chunks_is_cocoop_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = tiny.frozen()
    made = CoCoOp(settings.CoCoOp(**SHORT), frozen, tiny.CLASSES)
    images, net = tiny.vectors(5), made.module
    moved = shift(images, (net.down.weight, net.down.bias), (net.up.weight, net.up.bias))
    whole = conditional_logits(made.prompts, images, net.context, moved)
    monkeypatch.setattr("clipette.adapt.cocoop.ROWS", 8)
    torch.testing.assert_close(
        conditional_logits(made.prompts, images, net.context, moved), whole, atol=1e-4, rtol=1e-5
    )


def test_maples_visual_tokens_are_made_of_its_text_tokens() -> None:
    coupled = Coupled(torch.randn(2, 5), 3, 7, seed=1).requires_grad_(False)
    tokens = [coupled.context, *coupled.deeper]
    for layer in range(3):
        for token in range(2):
            for wide in range(7):
                weight, bias = coupled.maps[layer].weight[wide], coupled.maps[layer].bias[wide]  # type: ignore[index]
                expected = float(bias) + sum(float(weight[i]) * float(tokens[layer][token, i]) for i in range(5))
                assert float(coupled.visual()[layer, token, wide]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_maple_keeps_the_rest_of_its_phrase_as_words() -> None:
    """Two tokens learn and "of a" stays: at the start the text side is the base's."""
    frozen = tiny.frozen()
    made = MaPLe(settings.MaPLe(tokens=2, depth=1), frozen, tiny.CLASSES)
    assert made.prompts.shape.rest == "of a"
    torch.testing.assert_close(made.prompts.vectors(made.module.context), named(frozen), atol=1e-6, rtol=1e-6)


def test_promptsrcs_terms_by_hand() -> None:
    frozen = tiny.frozen()
    how = settings.PromptSRC(visual=2, depth=2, templates="wordings")
    made = PromptSRC(how, frozen, tiny.CLASSES)
    pixels, labels = tiny.pixels(3), torch.tensor([0, 1, 2])
    with torch.no_grad():
        said = frozen.model.encode_image(pixels)
    features = made.features(pixels)
    found = made.terms(features, {"labels": labels, "frozen_image": said})
    with visual_prompts(frozen.model.image_tower(), made.module.visual()):
        image = F.normalize(frozen.model.image_tower()(pixels), dim=-1)
    text = made.prompts.vectors(made.module.context, made.module.deeper)
    diverse = frozen.class_vectors(tiny.CLASSES, "wordings")
    scale = float(frozen.model.scale)
    logits, base = scale * image @ text.T, scale * said @ diverse.T
    # The release: L1 as a mean over all elements at 25 and 10, KL as a sum over all, divided by their number.
    release = {
        "cross_entropy": F.cross_entropy(logits, labels),
        "text": 25 * F.l1_loss(text, diverse),
        "image": 10 * F.l1_loss(image, said),
        "logits": F.kl_div(logits.log_softmax(1), base.log_softmax(1), reduction="sum", log_target=True) / 12,
    }
    assert found.keys() == release.keys()
    for name, value in release.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    assert float(l1_rows(said, said)) == 0


def test_stored_weights_replace_the_published_ones() -> None:
    frozen = tiny.frozen()
    how = settings.PromptSRC(visual=1, depth=1, templates="single", text=0.5, image=0.0, logits=2.0)
    made = PromptSRC(how, frozen, tiny.CLASSES)
    assert made.weights == {"text": 0.5, "image": 0.0, "logits": 2.0}


PAIRS = {
    "open_clip": (IMAGES["open_clip class token"], open_clip_text),
    "transformers": (IMAGES["transformers clip"], clip_text),
    "a bert-like text side": (IMAGES["open_clip average"], bert_text),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", ["coop", "cocoop", "vpt", "maple", "promptsrc"])
def test_towers_of_other_libraries(pair: str, name: str) -> None:
    """Neither library's code is touched: the tokens come in by the same doors."""
    image, text = PAIRS[pair]
    model = DualEncoder(image().float(), text().float()).eval()
    frozen = freeze(TorchEncoder(model, name="pair", device="cpu"))
    # What takes tokens at its input only learns there.
    shallow = {"depth": 1} if pair.startswith("a bert") and name in ("maple", "promptsrc") else {}
    random = {} if name in ("coop", "vpt") else {"start": None}
    wide = {"reduction": 1} if name == "cocoop" else {}
    method = METHODS[name].model_copy(update={**random, **shallow, **wide})
    made = build_learner(method, frozen, ("dog", "two cats"), templates="single", seed=0)
    task = AdaptTask(made, frozen.model)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = frozen.model.encode_image(pixels)
    targets = {"labels": torch.tensor([0, 1]), "ids": torch.arange(2), "teacher_image": said}
    batch = Batch({"pixels": pixels}, targets)
    task.loss(task.encode(batch), batch.targets).loss.backward()
    learning = [parameter for parameter in task.parts.parameters() if parameter.numel()]
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in learning)
    assert all(p.grad is None for p in frozen.model.parameters())


def test_a_phrase_of_unknown_words_is_a_random_start(caplog: pytest.LogCaptureFixture) -> None:
    spec = ModelSpec.model_validate_json(json.dumps(tiny.SPEC))
    text = build_model(spec, captions=["a red square"]).text_tower()
    assert torch.equal(start_of(text, 2, "a photo of a", seed=3).value, start_of(text, 2, None, seed=3).value)
    assert "has words that this base does not know: the context begins at random" in caplog.text
    with pytest.raises(ConfigError, match="make them equal, or remove start"):
        start_of(text, 2, "a picture of a", seed=3)


def test_refusals() -> None:
    frozen = tiny.frozen()
    with pytest.raises(ConfigError, match=r"is 4 tokens of this text tower, and method.tokens is 6"):
        CoOp(settings.CoOp(tokens=6, start="a photo of a"), frozen, tiny.CLASSES)
    with pytest.raises(ValueError, match="position 'front' has none"):
        settings.CoOp(tokens=4, start="a photo of a", position="front")
    convolutional = tiny.frozen(image={"kind": "timm", "name": "test_resnet", "size": 32, "head": {"kind": "linear"}})
    for kind in ("vpt", "maple", "promptsrc"):
        with pytest.raises(ConfigError, match="tokens of a vision transformer"):
            learner(kind, convolutional)
    assert learner("coop", convolutional).adapters()[0].form == "prompts"
