"""Templates, class prompts, CuPL's sentences, questions."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from clipette.data.prompts import (
    CONTRASTS,
    TEMPLATES,
    class_prompts,
    fill,
    find_templates,
    question_prompts,
    read_descriptions,
)
from clipette.data.sources import load_data
from clipette.errors import ConfigError, DataError


def test_every_template_can_be_filled() -> None:
    for name, templates in TEMPLATES.items():
        for template in templates:
            text = fill(template, "art_painting", "dog")
            assert "art painting" in text, name
            assert "{" not in text


def test_the_eighty_are_clips_own() -> None:
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    assert [fill(t, "dog") for t in TEMPLATES["openai80"]] == [f("dog") for f in OPENAI_IMAGENET_TEMPLATES]


def test_kinds_people_compare() -> None:
    filled = {name: [fill(t, "cat", "dog") for t in TEMPLATES[name]] for name in TEMPLATES}
    assert filled["plain"] == ["a photo of a cat"]
    assert filled["detail"] == ["a close-up photo of a cat"]
    assert filled["context"] == ["a cat in the wild"]
    assert filled["style"] == ["a painting of a cat"]
    assert filled["wordings"] == ["a cat", "the cat", "photo of a cat"]
    assert filled["domain"] == ["a medical image of a cat"]
    assert filled["task"] == ["is this a cat? yes or no"]
    assert filled["contrastive"] == ["a photo of a cat, not a dog"]
    assert (filled["none"], filled["single"]) == (["cat"], ["a photo of a cat."])


def test_contrasts_are_other_classes_and_bounded() -> None:
    cat, dog = class_prompts(["cat", "dog"], "contrastive")
    assert (cat, dog) == (["a photo of a cat, not a dog"], ["a photo of a dog, not a cat"])
    many = class_prompts([f"c{n}" for n in range(50)], "contrastive")
    assert all(len(set(prompts)) == CONTRASTS for prompts in many)
    assert not any(f"a photo of a c{n}, not a c{n}" in prompts for n, prompts in enumerate(many))
    with pytest.raises(ConfigError, match="at least two classes"):
        class_prompts(["cat"], "contrastive")


def test_braces_in_names_are_only_text() -> None:
    assert fill("a photo of a {}", "{x} {0}") == "a photo of a {x} {0}"


def test_templates_are_found_by_name_or_taken_as_written() -> None:
    assert find_templates("a drawing of a {}") == ("a drawing of a {}",)
    assert find_templates(["x {}", "y {}"]) == ("x {}", "y {}")
    with pytest.raises(ConfigError, match="unknown templates 'openai_80': did you mean 'openai80'"):
        find_templates("openai_80")
    with pytest.raises(ConfigError, match=r"must have one \{\}"):
        fill("a photo", "cat")


def test_descriptions_follow_the_templates(tmp_path: Path) -> None:
    path = tmp_path / "cupl.json"
    path.write_text(json.dumps({"Art_Painting": ["Brushes.", " Brushes. ", "", "Canvas."], "dog": "Barks."}))
    descriptions = read_descriptions(path)
    assert class_prompts(["dog", "art painting"], "plain", descriptions) == [
        ["a photo of a dog", "Barks."],
        ["a photo of a art painting", "Brushes.", "Canvas."],
    ]
    assert class_prompts(["dog"], (), descriptions) == [["Barks."]]
    with pytest.raises(DataError, match=r"1 of 2 classes have no description: 'dogs' \(nearest: 'dog'\)"):
        class_prompts(["dog", "dogs"], "plain", descriptions)
    several = r"7 of 8 classes have no description: 'a'( \(nearest: .*\))?, 'b', 'c', 'e', 'f', \.\.\.; add them"
    with pytest.raises(DataError, match=several):
        class_prompts(["dog", *"abcefgh"], "plain", descriptions)
    with pytest.raises(ConfigError, match="at least one prompt"):
        class_prompts(["dog"], ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected a JSON object"),
        ("{", "not JSON"),
        ('{"cat": []}', "class 'cat' has no sentence"),
        ('{"cat": [1]}', "class 'cat': expected a list of sentences"),
    ],
)
def test_bad_descriptions_name_the_class(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_descriptions(tmp_path / "d.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_descriptions(tmp_path / "absent.json")
    (tmp_path / "twice.json").write_text('{"cat": ["A cat."], "dog": ["A dog."], "cat": ["Another."]}')
    with pytest.raises(DataError, match=r"twice\.json: 'cat' is there twice: join its sentences"):
        read_descriptions(tmp_path / "twice.json")


def test_real_cupl_sentences_match_real_classes(shared: Path, tmp_path: Path) -> None:
    name = "text_assets/cupl_full_prompts_cifar100_prompts_full.json"
    with tarfile.open(shared / "data" / "text_assets.tar.xz") as archive:
        member = archive.extractfile(name)
        assert member is not None
        (tmp_path / "cupl.json").write_bytes(io.BytesIO(member.read()).getvalue())
    descriptions = read_descriptions(tmp_path / "cupl.json")
    names = load_data(f"{shared}/data/cifar100.tar.gz").class_names
    prompts = class_prompts(names, (), descriptions)
    assert len(prompts) == 100
    assert all(len(sentences) >= 5 for sentences in prompts)


@pytest.mark.parametrize(
    ("question", "answer", "statement"),
    [
        ("what is the dog doing?", "running", "the dog is running"),
        ("What are the children doing in the park ?", "playing", "the children are playing in the park"),
        ("What colour is the car?", "red", "the car is red"),
        ("what is the man holding?", "a phone", "the man is holding a phone"),
        ("what is the woman sitting on?", "a chair", "the woman is sitting on a chair"),
        ("what is the girl eating in the garden?", "a pie", "the girl is eating a pie in the garden"),
        ("what is on the table?", "a cup", "a cup is on the table"),
        ("what is this?", "a dog", "this is a dog"),
        ("what animal is this?", "a dog", "the animal is a dog"),
        ("which kind of animal is in the picture?", "a dog", "the animal in the picture is a dog"),
        ("how many dogs are there?", "two", "there are two dogs"),
        ("how many dogs are on the sofa?", "two", "two dogs are on the sofa"),
        ("where is the dog?", "in the park", "the dog is in the park"),
        ("who is riding the horse?", "a man", "a man is riding the horse"),
        ("how old is the man?", "young", "the man is young"),
        ("does it rain?", "a lot", "does it rain? a lot"),
    ],
)
def test_questions_become_statements(question: str, answer: str, statement: str) -> None:
    assert question_prompts(question, [answer, "zz"])[0] == statement


@pytest.mark.parametrize(
    ("question", "yes", "no"),
    [
        ("is the dog running?", "the dog is running", "the dog is not running"),
        ("is the big dog in the snow?", "the big dog is in the snow", "the big dog is not in the snow"),
        ("Is there a cat?", "there is a cat", "there is no cat"),
        ("is this a dog?", "this is a dog", "this is not a dog"),
        ("is the sky blue?", "the sky is blue", "the sky is not blue"),
        ("does it rain?", "does it rain? yes", "does it rain? no"),
    ],
)
def test_yes_and_no(question: str, yes: str, no: str) -> None:
    assert question_prompts(question, ["yes", "no"]) == [yes, no]


def test_bad_questions() -> None:
    with pytest.raises(ConfigError, match="the question is empty"):
        question_prompts(" ? ", ["a", "b"])
    for answers in ([], ["a"], ["a", ""], ["a", "a"]):
        with pytest.raises(ConfigError, match="answers"):
            question_prompts("what is this?", answers)
