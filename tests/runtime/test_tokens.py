"""Tokenizers that need no PyTorch against training's own, on strings nobody would choose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.trained import BERT, CORPUS, T5, families, hugging_face, sentence_piece, siglip, word_piece

from clipette.errors import ModelError, UnsupportedError
from clipette.export.fuzz import differing, fuzzed
from clipette.export.tokens import bundled_tokenizer
from clipette.models.tokenizers import HFTokenizer, OpenClipTokenizer
from clipette.runtime.tokens import TableTokenizer, build_tokenizer, until_end
from clipette.runtime.words import WordTokenizer
from clipette.types import Tokenizer


def bundled(tokenizer: Tokenizer) -> Tokenizer:
    settings, files = bundled_tokenizer(tokenizer)
    # As the manifest brings them back: keys sorted.
    return build_tokenizer(json.loads(json.dumps(settings, sort_keys=True)), files)


def assert_equal(ours: Tokenizer, theirs: Tokenizer, texts: Sequence[str]) -> None:
    wrong = differing(ours, theirs, texts)
    assert wrong == []
    assert all(array.dtype == np.int64 for array in ours(texts[:3]).values())


KINDS = ("CLIP's byte pairs", "word pieces", "sentence pieces", "SigLIP's sentence pieces")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return families(tmp_path_factory.mktemp("tokenizers"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_strings(kind: str, kinds: dict[str, Any]) -> None:
    """`make bench-export` tries ten thousand."""
    assert set(kinds) == set(KINDS)
    assert_equal(bundled(kinds[kind]), kinds[kind], ["", *fuzzed(1000, seed=7)])


def test_a_difference_is_found() -> None:
    one, other = (WordTokenizer.train(CORPUS, size=size, context_length=14) for size in (300, 262))
    texts = ["犬", "a photo of two dogs"]
    assert differing(one, one, texts) == []
    assert differing(one, other, texts) == ["a photo of two dogs"]
    assert differing(one, WordTokenizer.train(CORPUS, size=300, context_length=15), texts) == texts


@pytest.mark.parametrize(
    "options", [{}, {"byte_fallback": True, "vocab_size": 340}, {"normalization_rule_name": "identity"}]
)
def test_siglips_own_tokenizer(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = HFTokenizer(siglip(tmp_path, **options), context_length=12, padding="max_length", mask=False)
    awkward = [
        "",
        " ",
        "▁",
        "▁▁ a",
        "a▁b",
        "\u200b dog",
        "dog \u200b",
        "ﬁne ½ Ⅷ",
        "\x00a",
        "a\u3000b",
        "e\u0301 é",
        "!!!",
        "A.b",
    ]
    assert_equal(bundled(theirs), theirs, [*awkward, *fuzzed(200, 5)])


def test_siglip_with_tokens_of_its_own_is_refused(tmp_path: Path) -> None:
    inner = siglip(tmp_path)
    inner.add_tokens(["<mask>"])
    with pytest.raises(UnsupportedError, match="tokens of its own"):
        bundled(HFTokenizer(inner, context_length=12, padding="max_length", mask=False))


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_clips_byte_pairs(clean: str) -> None:
    theirs = OpenClipTokenizer.clip(context_length=32, clean=clean)
    assert_equal(bundled(theirs), theirs, ["", *fuzzed(300)])


def test_clips_byte_pairs_with_words_of_its_own() -> None:
    theirs = OpenClipTokenizer.clip(context_length=20, additional_special_tokens=["<mask>", "a+b"])
    texts = ["a <mask> dog", "x a+b c", "aab", "<mask><mask>", *fuzzed(100, 3)]  # open_clip reads them as patterns
    assert_equal(bundled(theirs), theirs, texts)


@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize("kind", ["word pieces", "sentence pieces"])
@pytest.mark.parametrize("mask", [True, False])
def test_hugging_face_tokenizers(kind: str, padding: Any, mask: bool) -> None:
    inner = hugging_face(word_piece(), BERT) if kind == "word pieces" else hugging_face(sentence_piece(), T5)
    theirs = HFTokenizer(inner, context_length=16, padding=padding, mask=mask, lower=kind != "word pieces")
    ours = bundled(theirs)
    assert_equal(ours, theirs, ["", *fuzzed(400)])
    assert ours.context_length == 16
    assert {name: array.shape for name, array in ours([]).items()} == {n: a.shape for n, a in theirs([]).items()}


def test_hugging_face_under_open_clips_cleaning(tmp_path: Path) -> None:
    hugging_face(word_piece(), BERT).save_pretrained(tmp_path)
    for options in ({"clean": "canonicalize"}, {"strip_sep_token": True}):
        theirs = OpenClipTokenizer.from_hf(tmp_path, context_length=12, **options)
        assert_equal(bundled(theirs), theirs, ["", *fuzzed(200)])


def test_columns_that_only_pad_are_left_out() -> None:
    words = WordTokenizer.train(CORPUS, size=300, context_length=14)
    tokens = words(["", "a dog"])
    longest = int(tokens["attention_mask"].sum(axis=1).max())
    cut = until_end(tokens)
    assert {array.shape for array in cut.values()} == {(2, longest)}
    assert 2 < longest < 14
    for name, array in tokens.items():
        np.testing.assert_array_equal(cut[name], array[:, :longest])
    assert not tokens["input_ids"][:, longest:].any()
    # An id 0 ("!" of CLIP's) inside a text is none of the padding.
    inside = {"input_ids": np.array([[5, 0, 0, 9, 0, 0]])}
    assert until_end(inside)["input_ids"].tolist() == [[5, 0, 0, 9]]


def test_words_and_stored_texts() -> None:
    words = WordTokenizer.train(CORPUS, size=300, context_length=14)
    assert_equal(bundled(words), words, fuzzed(200))
    table = TableTokenizer(["a dog", "ein Hund 🐕"])
    assert_equal(bundled(table), table, ["ein Hund 🐕", "a dog"])
    with pytest.raises(UnsupportedError, match="stored texts; 'a cat' is not among"):
        bundled(table)(["a cat"])


def test_what_this_version_does_not_know_is_refused_in_words() -> None:
    with pytest.raises(ModelError, match="tokenizer is a 'morse'"):
        build_tokenizer({"kind": "morse"}, {})
    settings, files = bundled_tokenizer(OpenClipTokenizer.clip(context_length=16))
    with pytest.raises(ModelError, match="cleaned by 'soap'"):
        build_tokenizer({**settings, "cleaning": "soap"}, files)
    with pytest.raises(ModelError, match="not whole"):
        build_tokenizer(settings, {})
    with pytest.raises(UnsupportedError, match="no form that runs without PyTorch"):
        bundled_tokenizer(object())  # type: ignore[arg-type]
