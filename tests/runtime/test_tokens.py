"""Tokenizers that need no PyTorch against training's own, on strings nobody would choose."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from clipette.errors import ModelError, UnsupportedError
from clipette.export.tokens import bundled_tokenizer
from clipette.models.tokenizers import HFTokenizer, OpenClipTokenizer
from clipette.runtime.tokens import TableTokenizer, build_tokenizer
from clipette.runtime.words import WordTokenizer
from clipette.types import Tokenizer

CORPUS = [
    "a photo of two dogs running in the park",
    "Ein naïves Café — 12 Hunde!",
    "犬が走る",
    "it's the dog's day",
] * 5
PIECES = [
    *"abcXYZ 019 .,!?'\"-_()<>&;/\\\t\n",
    "dog",
    "photo",
    "it's",
    "I'LL",
    "'Re",
    "&amp;",
    "&amp;amp;lt;",
    "<end_of_text>",
    "<start_of_text>",
    "!<end_of_text>",
    "<End_Of_Text>",
    "é",
    "ﬁ",
    "ſ",
    "'ſ",
    "ß",
    "İ",
    "日本",
    "дом",
    "كلب",
    "🐕‍🦺",
    "👩🏽‍🚀",
    "\u200b",
    "\u00a0",
    "\u0301",
    "Ã©",
    "½",
    "²",
    "Ⅷ",
    "①",
    "\ufeff",
    "\x00",
    "\x85",
    "\u2028",
    "a" * 40,
]


def fuzzed(count: int, seed: int = 0) -> list[str]:
    """Strings of awkward pieces, and of code points drawn from everywhere that Unicode 12 had assigned."""
    drawn = random.Random(seed)
    planes = [
        (0x20, 0x7F),
        (0xA0, 0x24F),
        (0x370, 0x52F),
        (0x590, 0x6FF),
        (0x3040, 0x30FF),
        (0x4E00, 0x9FA5),
        (0x1F300, 0x1F5FF),
    ]
    out = []
    for _ in range(count):
        words = []
        for _ in range(drawn.randint(0, 30)):
            if drawn.random() < 0.7:
                words.append(drawn.choice(PIECES))
            else:
                low, high = drawn.choice(planes)
                words.append(chr(drawn.randint(low, high)))
        out.append("".join(words))
    return out


def bundled(tokenizer: Tokenizer) -> Tokenizer:
    settings, files = bundled_tokenizer(tokenizer)
    # As the manifest brings them back: keys sorted.
    return build_tokenizer(json.loads(json.dumps(settings, sort_keys=True)), files)


def assert_equal(ours: Tokenizer, theirs: Tokenizer, texts: Sequence[str]) -> None:
    for start in range(0, len(texts), 100):
        batch = texts[start : start + 100]
        left, right = ours(batch), theirs(batch)
        assert set(left) == set(right)
        for name in left:
            rows = (
                np.flatnonzero((left[name] != right[name]).any(axis=1))
                if left[name].shape == right[name].shape
                else [0]
            )
            assert not len(rows), f"{name} of {batch[rows[0]]!r}: {left[name][rows[0]]} is not {right[name][rows[0]]}"
            assert left[name].dtype == np.int64


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_clips_byte_pairs(clean: str) -> None:
    theirs = OpenClipTokenizer.clip(context_length=32, clean=clean)
    assert_equal(bundled(theirs), theirs, ["", *fuzzed(1200)])


def test_clips_byte_pairs_with_words_of_its_own() -> None:
    theirs = OpenClipTokenizer.clip(context_length=20, additional_special_tokens=["<mask>", "a+b"])
    texts = ["a <mask> dog", "x a+b c", "aab", "<mask><mask>", *fuzzed(100, 3)]  # open_clip reads them as patterns
    assert_equal(bundled(theirs), theirs, texts)


def word_piece() -> Library:
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    library.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special))
    library.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return library


def sentence_piece() -> Library:
    library = Library(models.Unigram())
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    library.train_from_iterator(CORPUS, trainer)
    library.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return library


def hugging_face(library: Library, names: dict[str, str]) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=library, model_max_length=24, **names)


BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
T5 = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}


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
