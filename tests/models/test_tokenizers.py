from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest

from clipette.errors import ConfigError, ModelError
from clipette.models.tokenizers import HFTokenizer, OpenClipTokenizer, build_tokenizer
from clipette.runtime.token_files import DESCRIPTION
from clipette.runtime.words import WordTokenizer

TEXTS = ["A photo of a DOG,  running!", "", "naïve café ☕ " * 40, "&amp; <b>x</b>"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny word-piece tokenizer, trained here and saved as Hugging Face does."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    inner = BertWordPieceTokenizer(lowercase=True)
    inner.train_from_iterator(["a photo of a dog running in the park"] * 3, vocab_size=120, show_progress=False)
    folder = tmp_path_factory.mktemp("bert")
    BertTokenizerFast(tokenizer_object=inner._tokenizer, model_max_length=48).save_pretrained(folder)
    return folder


def test_clip_equals_open_clips_own() -> None:
    ours = OpenClipTokenizer.clip(context_length=77)(TEXTS)
    theirs = open_clip.get_tokenizer("ViT-B-32")(TEXTS).numpy()
    assert set(ours) == {"input_ids"}
    assert ours["input_ids"].dtype == np.int64
    np.testing.assert_array_equal(ours["input_ids"], theirs)


def test_clip_cuts_but_keeps_the_end() -> None:
    tokenizer = OpenClipTokenizer.clip(context_length=8)
    ids = tokenizer(["one two three four five six seven eight nine ten"])["input_ids"]
    assert ids.shape == (1, 8)
    assert ids[0, 0] == 49406
    assert ids[0, -1] == tokenizer.eos_id == 49407


def test_clip_refuses_random_dropping() -> None:
    with pytest.raises(ConfigError, match="reduction_mask"):
        OpenClipTokenizer.clip(reduction_mask="random")


def test_open_clip_hf_equals_open_clips_own(bert: Path) -> None:
    ours = OpenClipTokenizer.from_hf(bert, context_length=16, clean="canonicalize", strip_sep_token=True)
    theirs = open_clip.tokenizer.HFTokenizer(str(bert), context_length=16, clean="canonicalize", strip_sep_token=True)
    np.testing.assert_array_equal(ours(TEXTS)["input_ids"], theirs(TEXTS).numpy())


def test_hf_equals_transformers(bert: Path) -> None:
    from transformers import AutoTokenizer

    texts = ["a photo of a dog", "dog", "a photo of a dog running in the park " * 9]
    inner = AutoTokenizer.from_pretrained(bert)
    ours = HFTokenizer.from_pretrained(bert, context_length=32)(texts)
    theirs = inner(texts, padding=True, truncation=True, max_length=32, return_tensors="np")
    np.testing.assert_array_equal(ours["input_ids"], theirs["input_ids"])
    np.testing.assert_array_equal(ours["attention_mask"], theirs["attention_mask"])
    assert ours["input_ids"].shape[1] == 32
    assert HFTokenizer.from_pretrained(bert, context_length=32)(["dog"])["input_ids"].shape[1] < 8


def test_hf_length_is_never_more_than_the_tokenizers_own(bert: Path) -> None:
    assert HFTokenizer.from_pretrained(bert, context_length=512).context_length == 48
    assert HFTokenizer.from_pretrained(bert).context_length == 48


def test_hf_fixed_length_without_mask(bert: Path) -> None:
    tokenizer = HFTokenizer.from_pretrained(bert, context_length=24, padding="max_length", mask=False)
    out = tokenizer(["dog", "a dog"])
    assert set(out) == {"input_ids"}
    assert out["input_ids"].shape == (2, 24)
    assert out["input_ids"][0, -1] == tokenizer.pad_id


def test_a_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="give a folder"):
        HFTokenizer.from_pretrained(tmp_path, context_length=8)


def test_words_are_learned_by_frequency_and_cut_to_size() -> None:
    tokenizer = WordTokenizer.train(["red circle", "red square", "blue circle red"], size=261, context_length=8)
    assert tokenizer.words == ("red", "circle")
    assert tokenizer.vocabulary_size == 261
    ids = tokenizer(["Red circle"])
    assert ids["input_ids"].tolist() == [[1, 259, 260, 2, 0, 0, 0, 0]]
    assert ids["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]


def test_unknown_words_are_spelled_and_nothing_is_confused() -> None:
    tokenizer = WordTokenizer.train(["red"], context_length=64)
    rows = tokenizer(["ab c", "a bc", "abc", "red é ☕"])["input_ids"]
    assert len({tuple(row) for row in rows.tolist()}) == 4
    assert tokenizer.decode(rows[3].tolist()) == "red é ☕"
    assert rows.max() < tokenizer.vocabulary_size


def test_words_keep_the_end_when_cut() -> None:
    ids = WordTokenizer.train(["a b c d e f"], context_length=5)(["a b c d e f", ""])["input_ids"]
    assert ids[0, -1] == 2
    assert (ids == 2).sum(axis=1).tolist() == [1, 1]


def test_words_refuse_what_cannot_work() -> None:
    with pytest.raises(ConfigError, match="bytes alone take 259"):
        WordTokenizer.train(["a"], size=100)
    with pytest.raises(ConfigError, match="context_length 2"):
        WordTokenizer([], context_length=2)
    with pytest.raises(ModelError, match="no saved word tokenizer"):
        WordTokenizer.from_json("[]")


@pytest.mark.parametrize("kind", ["clip", "open_clip_hf", "hf", "words"])
def test_assets_rebuild_an_equal_tokenizer_without_the_origin(kind: str, bert: Path) -> None:
    tokenizers = {
        "clip": lambda: OpenClipTokenizer.clip(context_length=20, clean="whitespace"),
        "open_clip_hf": lambda: OpenClipTokenizer.from_hf(bert, context_length=20, strip_sep_token=True),
        "hf": lambda: HFTokenizer.from_pretrained(bert, context_length=20, padding="max_length", lower=True),
        "words": lambda: WordTokenizer.train(["a photo of a dog"], context_length=20),
    }
    first = tokenizers[kind]()
    second = build_tokenizer({**first.assets(), "config.json": b"{}"} if kind == "words" else first.assets())
    one, two = first(TEXTS), second(TEXTS)
    assert set(one) == set(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert second.context_length == 20
    assert second.assets() == first.assets()


def test_damaged_assets_are_refused(bert: Path) -> None:
    assets = HFTokenizer.from_pretrained(bert, context_length=20).assets()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        build_tokenizer({DESCRIPTION: assets[DESCRIPTION]})
    with pytest.raises(ModelError, match=DESCRIPTION):
        build_tokenizer({})
    with pytest.raises(ModelError, match="no tokenizer 'magic'"):
        build_tokenizer({DESCRIPTION: json.dumps({"kind": "magic"}).encode()})


@pytest.mark.parametrize("kind", ["clip", "hf", "words"])
def test_no_texts_give_no_rows(kind: str, bert: Path) -> None:
    tokenizer = {
        "clip": OpenClipTokenizer.clip(context_length=9),
        "hf": HFTokenizer.from_pretrained(bert, context_length=9),
        "words": WordTokenizer.train([], context_length=9),
    }[kind]
    assert all(len(array) == 0 for array in tokenizer([]).values())
