"""Learned context against plain twins: each family's own parts run one by one, one unpadded text at a time."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tests.models.prompt_towers import (
    DIM,
    ENCODERS,
    LAYERS,
    TEXTS,
    WIDTH,
    WORDS,
    bert_text,
    clip_text,
    hooks_of,
    open_clip_text,
    text_tower,
    transformer,
    words_tokenizer,
)
from torch import Tensor, nn

from clipette.errors import ConfigError
from clipette.models.anatomy import layers_of, token_width
from clipette.models.core import Blueprint, TextTower, set_trainable
from clipette.models.inject import visual_prompts
from clipette.models.open_clip_models import OpenClipText
from clipette.models.rebuild import table_text_tower
from clipette.models.text import HFTextTrunk, SmallTextTrunk
from clipette.models.text_prompts import PromptTokens, encode_prompts, phrase_embeddings, text_prompt_tokens
from clipette.models.tokenizers import OpenClipTokenizer

NAMES = ["dog", "two cats running", "red dog"]
ALL = {**TEXTS, **ENCODERS}
# transformers' ALIGN takes its softmax in float32 whatever its weights are.
ROUNDED = "transformers align"


def tokens(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain(tower: TextTower, texts: list[str]) -> Tensor:
    out: Tensor = tower({name: torch.from_numpy(array) for name, array in tower.tokenizer(texts).items()})
    return out


def put(x: Tensor, start: int, vectors: Tensor) -> Tensor:
    x = x.clone()
    for i, vector in enumerate(vectors):
        x[:, start + i] = vector
    return x


def through(x: Tensor, layers: Any, start: int, deeper: Tensor | None, **how: Any) -> Tensor:
    for i, layer in enumerate(layers):
        if deeper is not None and 1 <= i <= len(deeper):
            x = put(x, start, deeper[i - 1])
        x = layer(x, **how)
    return x


def causal(length: int) -> Tensor:
    return torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)


def open_clip_twin(model: Any, ids: Tensor, end: int, start: int, context: Tensor, deeper: Tensor | None) -> Tensor:
    x = put(model.token_embedding(ids), start, context)
    if model.cls_emb is not None:
        x = torch.cat([x, model.cls_emb[None, None]], dim=1)
    x = x + model.positional_embedding[: x.shape[1]]
    mask = None if model.attn_mask is None else causal(x.shape[1])
    if model.cls_emb is not None:
        # CoCa's published mask: shifted by one against the tokens it means to hide.
        hidden = torch.tensor([False, *(ids[0] == model.pad_id).tolist()])
        mask = causal(x.shape[1]).masked_fill(hidden, -torch.inf)
    x = through(x, model.transformer.resblocks, start, deeper, attn_mask=mask)
    if model.cls_emb is not None or model.pool_type == "last":
        end = -1
    x = model.ln_final(x)[:, end]
    return x if model.text_projection is None else x @ model.text_projection


def transformers_twin(trunk: Any, ids: Tensor, end: int, start: int, context: Tensor, deeper: Tensor | None) -> Tensor:
    from transformers import CLIPTextModel, SiglipTextModel

    model = trunk.model
    if not isinstance(model, CLIPTextModel | SiglipTextModel):
        x = model.embeddings(inputs_embeds=put(model.embeddings.word_embeddings(ids), start, context))
        return through(x, model.encoder.layer, start, deeper)[:, 0]
    table = model.embeddings
    x = put(table.token_embedding(ids), start, context) + table.position_embedding.weight[: ids.shape[1]]
    is_clip = isinstance(model, CLIPTextModel)
    mask = causal(ids.shape[1])[None, None] if is_clip else None
    x = model.final_layer_norm(through(x, model.encoder.layers, start, deeper, attention_mask=mask))
    return x[:, end] if is_clip else model.head(x[:, -1])


def bert_twin(encoder: Any, ids: Tensor, start: int, context: Tensor) -> Tensor:
    x = encoder.embeddings(inputs_embeds=put(encoder.embeddings.word_embeddings(ids), start, context))
    return through(x, encoder.encoder.layer, start, None)


def twin(trunk: Any, ids: Tensor, end: int, start: int, context: Tensor, deeper: Tensor | None) -> Tensor:
    """Of one text [1, L]. ``end``: the place of its end token."""
    if isinstance(trunk, TextTower):
        return trunk.head(twin(trunk.trunk, ids, end, start, context, deeper))
    if isinstance(trunk, SmallTextTrunk):
        return open_clip_twin(trunk.transformer, ids, end, start, context, deeper)
    if isinstance(trunk, HFTextTrunk):
        x = bert_twin(trunk.encoder, ids[:, : end + 1], start, context)
        return x[:, 0] if trunk.pool == "cls" else x.mean(dim=1)
    if isinstance(trunk, OpenClipText):
        model: Any = trunk.model
        if hasattr(model, "token_embedding"):
            return open_clip_twin(model, ids, end, start, context, deeper)
        return model.proj(bert_twin(model.transformer, ids[:, : end + 1], start, context).mean(dim=1))
    padded = trunk.first_token or not hasattr(trunk.model, "eos_token_id")
    return transformers_twin(trunk, ids if padded else ids[:, : end + 1], end, start, context, deeper)


def by_hand(tower: TextTower, name: str, context: Tensor, deeper: Tensor | None = None) -> Tensor:
    """The vector [D] of one class: "X … X name." tokenized with words that are one token each."""
    tokenizer: Any = tower.tokenizer
    ids = torch.from_numpy(tokenizer([f"{' '.join(['a'] * len(context))} {name}."])["input_ids"])
    empty, word = tokenizer([""])["input_ids"], tokenizer(["a"])["input_ids"]
    start = int(empty[0, 0] == word[0, 0])  # behind the start token, where there is one
    row = ids[0].tolist()
    return twin(tower, ids, row.index(tokenizer.eos_id, start), start, context, deeper)[0]


@pytest.mark.parametrize("name", ALL)
def test_learned_context_equals_its_twin(name: str) -> None:
    tower = ALL[name]()
    assert token_width(tower) == WIDTH
    assert len(layers_of(tower)) == (LAYERS if name in TEXTS else 0)
    where = text_prompt_tokens(tower, NAMES, 3)
    context = tokens(3)
    for depth in (0, 1, LAYERS - 1) if name in TEXTS else (0,):
        deeper = tokens(depth, 3, seed=4) if depth else None
        found = encode_prompts(tower, where, context, deeper=deeper)
        expected = torch.stack([by_hand(tower, text, context, deeper) for text in NAMES])
        close = 1e-6 if name == ROUNDED else 1e-10
        torch.testing.assert_close(found, expected, rtol=close, atol=close)
    assert hooks_of(tower) == 0


@pytest.mark.parametrize("name", ALL)
def test_the_embeddings_of_a_phrase_give_the_plain_encoding(name: str) -> None:
    """CoOp begun at "a photo of a" is CLIP's prompt; no context at all is the bare name."""
    tower = ALL[name]()
    phrase = phrase_embeddings(tower, "a photo of a")
    where = text_prompt_tokens(tower, NAMES, len(phrase))
    expected = plain(tower, [f"a photo of a {name}." for name in NAMES])
    torch.testing.assert_close(encode_prompts(tower, where, phrase), expected, rtol=1e-10, atol=1e-10)
    bare = encode_prompts(tower, text_prompt_tokens(tower, NAMES, 0), tokens(0))
    torch.testing.assert_close(bare, plain(tower, [f"{name}." for name in NAMES]), rtol=1e-10, atol=1e-10)
    custom = encode_prompts(tower, text_prompt_tokens(tower, NAMES, len(phrase), ending=" running."), phrase)
    expected = plain(tower, [f"a photo of a {name} running." for name in NAMES])
    torch.testing.assert_close(custom, expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        phrase.zero_()
    assert phrase_embeddings(tower, "a photo of a").abs().min() > 0


@pytest.mark.parametrize("name", ALL)
def test_contexts_of_each_class_and_of_each_image(name: str) -> None:
    """So many classes of different length that towers sort their rows."""
    tower = ALL[name]()
    names = [" ".join(["dog", "cats", "a running dog"][i % 3 :]) for i in range(70)]
    where, context = text_prompt_tokens(tower, names, 2), tokens(70, 2)
    with torch.no_grad():
        found = encode_prompts(tower, where, context)
        assert found.shape[0] == 70
        for i in (0, 1, 2, 69):
            alone = encode_prompts(tower, text_prompt_tokens(tower, [names[i]], 2), context[i])
            torch.testing.assert_close(found[i], alone[0], rtol=1e-9, atol=1e-9)
        shifted = tokens(3, 2, seed=6)
        each = encode_prompts(tower, where, shifted[:, None])
        assert each.shape == (3, 70, found.shape[1])
        for image in range(3):
            expected = encode_prompts(tower, where, shifted[image])
            torch.testing.assert_close(each[image], expected, rtol=1e-9, atol=1e-9)
        both = encode_prompts(tower, where, shifted[:, None] + context)
        torch.testing.assert_close(both[1], encode_prompts(tower, where, shifted[1] + context), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_finite_differences(name: str) -> None:
    tower = ALL[name]()
    set_trainable(tower, False)
    where = text_prompt_tokens(tower, NAMES, 2)
    small, close = (1e-3, 1e-2) if name == ROUNDED else (1e-6, 1e-5)
    inputs = [tokens(2, 1, 2)] + ([tokens(LAYERS - 1, 2, seed=4)] if name in TEXTS else [])

    def loss(*values: Tensor) -> Tensor:
        deeper = values[1] if len(values) > 1 else None
        return encode_prompts(tower, where, values[0], deeper=deeper).sin().sum()

    learned = [value.clone().requires_grad_() for value in inputs]
    found = torch.autograd.grad(loss(*learned), learned)
    for place, value in enumerate(inputs):
        assert found[place].flatten(1).abs().amax(dim=1).min() > 1e-6
        for entry in (0, value.numel() - 1):
            ends = []
            for step in (small, -small):
                moved = [other.clone() for other in inputs]
                moved[place].view(-1)[entry] += step
                ends.append(loss(*moved))
            expected = (ends[0] - ends[1]) / (2 * small)
            torch.testing.assert_close(found[place].reshape(-1)[entry], expected, rtol=close, atol=close / 100)


@pytest.mark.parametrize("name", ALL)
def test_any_type_and_nothing_left_behind(name: str) -> None:
    tower = ALL[name]().float()
    where = text_prompt_tokens(tower, NAMES, 2)
    before = plain(tower, NAMES)
    context = tokens(2)
    with torch.no_grad():
        full = encode_prompts(tower, where, context)
        assert full.dtype == torch.float32
    learned = context.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encode_prompts(tower, where, learned)
    mixed.float().sum().backward()
    torch.testing.assert_close(mixed.float(), full, rtol=0.2, atol=0.3)
    assert learned.grad is not None
    assert float(learned.grad.abs().max()) > 0
    outside = {key: array + 10**6 for key, array in where.arrays.items()}
    with pytest.raises(IndexError):
        encode_prompts(tower, PromptTokens(outside, where.places, where.longest), context)
    assert hooks_of(tower) == 0
    assert torch.equal(plain(tower, NAMES), before)


def test_the_end_of_a_text_is_its_tokenizers_own() -> None:
    """A tower that looks for the largest id would read this tokenizer's texts at a word."""
    foreign = text_tower(OpenClipText(transformer(len(WORDS))), words_tokenizer())
    with pytest.raises(ConfigError, match=r"does not read these texts at their end \(token 4\)"):
        text_prompt_tokens(foreign, ["dog"], 2)
    with pytest.raises(ConfigError, match="does not read these texts at their end"):
        text_prompt_tokens(clip_text(eos=2), ["dog"], 2)
    with pytest.raises(ConfigError, match="does not end every text with its end token 4"):
        text_prompt_tokens(text_tower(foreign.trunk, words_tokenizer(no_end=True)), ["dog"], 2)


def test_refused_tokens() -> None:
    tower = open_clip_text()
    with pytest.raises(ConfigError, match="at least one class name"):
        text_prompt_tokens(tower, [], 2)
    for count in (-1, 18, 40):
        with pytest.raises(ConfigError, match=f"{count} context tokens leave no room .* reads 20 tokens"):
            text_prompt_tokens(tower, ["dog"], count)
    fitting = text_prompt_tokens(tower, ["dog"], 16)
    assert (fitting.places.tolist(), fitting.count, fitting.longest) == ([list(range(1, 17))], 16, 20)
    with pytest.raises(ConfigError, match="class 'two cats' does not fit beside 16 context tokens"):
        text_prompt_tokens(tower, ["dog", "two cats"], 16)
    with pytest.raises(ConfigError, match=r"class 'dog dog .*' does not fit beside 1 context tokens"):
        text_prompt_tokens(tower, ["dog " * 30], 1)
    left = text_tower(bert_text().trunk, words_tokenizer(padding_side="left"))
    with pytest.raises(ConfigError, match="it must pad on the right"):
        text_prompt_tokens(left, ["dog", "two cats"], 2)
    with pytest.raises(ConfigError, match="the phrase '' has no tokens"):
        phrase_embeddings(tower, "")
    table = table_text_tower(("a dog",), torch.zeros(1, DIM))
    with pytest.raises(ConfigError, match="is a TableTextTrunk, which embeds no words"):
        text_prompt_tokens(table, ["dog"], 2)
    borrowed = TextTower(tower.trunk, nn.Identity(), tokenizer=table.tokenizer, width=DIM, blueprint=Blueprint("", {}))
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        text_prompt_tokens(borrowed, ["dog"], 2)


def test_the_places_are_held_by_a_word_of_one_token() -> None:
    class Spelled(OpenClipTokenizer):
        def __call__(self, texts: Any) -> Any:
            return super().__call__([re.sub(r"\bX\b", "two cats", text) for text in texts])

    trunk = open_clip_text().trunk
    where = text_prompt_tokens(text_tower(trunk, Spelled.clip(context_length=20)), ["dog"], 2)
    assert where.arrays["input_ids"][0, :5].tolist() == [49406, 320, 320, 1929, 269]  # a a dog .
    with pytest.raises(ConfigError, match="no word of one token among X, a, the"):
        text_prompt_tokens(text_tower(trunk, Doubled.clip(context_length=20)), ["dog"], 2)


class Doubled(OpenClipTokenizer):
    """Every word takes two tokens."""

    def __call__(self, texts: Any) -> Any:
        return super().__call__([" ".join(word + " " + word for word in text.split()) for text in texts])


def test_refused_contexts() -> None:
    tower = open_clip_text()
    where = text_prompt_tokens(tower, NAMES, 2)
    shapes: list[tuple[Tensor, Tensor | None, str]] = [
        (tokens(3), None, r"the context is \[..., 2, 16\] for these tokens, got \[3, 16\]"),
        (tokens(2)[:, :8], None, r"got \[2, 8\]"),
        (tokens(1, 1, 1, 2), None, r"the context is"),
        (tokens(4, 2), None, r"contexts \[4, 2, 16\] for 3 classes: .* each image \[B, 1, M, W\]"),
        (tokens(2), tokens(2), r"deeper prompts are \[layers, 2, 16\], got \[2, 16\]"),
        (tokens(2), tokens(3, 2), "deeper prompts for 3 layers behind the first, but the text tower has 3 layers"),
    ]
    for context, deeper, message in shapes:
        with pytest.raises(ConfigError, match=message):
            encode_prompts(tower, where, context, deeper=deeper)
    bert = bert_text()
    with pytest.raises(ConfigError, match="takes learned tokens at its input only"):
        encode_prompts(bert, text_prompt_tokens(bert, NAMES, 2), tokens(2), deeper=tokens(1, 2))
    tower.trunk.model.set_grad_checkpointing(True)  # type: ignore[union-attr,operator]
    assert encode_prompts(tower, where, tokens(2)).shape == (3, DIM)
    with pytest.raises(ConfigError, match="the text tower recomputes its layers in the backward pass"):
        encode_prompts(tower, where, tokens(2), deeper=tokens(1, 2))
    with (
        pytest.raises(ConfigError, match="which has no tokens that we know to prompt"),
        visual_prompts(
            tower,  # type: ignore[arg-type]
            tokens(1, 2),
        ),
    ):
        pass
