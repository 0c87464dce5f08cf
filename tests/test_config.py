from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, field_validator

from clipette import config
from clipette.config import StrictModel, apply_override, dump_yaml, find_recipe, load_yaml
from clipette.errors import ConfigError
from clipette.plain_yaml import Dumper, parse_yaml


class Optimiser(StrictModel):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float | None = None


class Kl(StrictModel):
    kind: Literal["kl"] = "kl"
    temperature: float = 1.0


class Cosine(StrictModel):
    kind: Literal["cosine"] = "cosine"
    weight: float = 1.0


class Recipe(StrictModel):
    name: str
    steps: int = 10
    resume: bool = False
    folder: Path | None = None
    optimiser: Optimiser = Optimiser()
    losses: tuple[Annotated[Kl | Cosine, Field(discriminator="kind")], ...] = ()
    weights: dict[str, float] = Field(default_factory=dict)
    size: int | tuple[Annotated[int, Field(ge=1)], int] | None = None
    epochs: dict[int, float] = Field(default_factory=dict)

    @field_validator("steps")
    @classmethod
    def _some_steps(cls, steps: int) -> int:
        if steps < 1:
            raise ValueError("at least one step is needed")
        return steps


FULL = """\
name: tiny
steps: 20
optimiser:
  lr: 3e-4
losses:
  - kind: kl
    temperature: 2
  - {kind: cosine, weight: 0.5}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_reads_a_file_and_text_alike(recipe_file: Callable[[str], Path]) -> None:
    from_file = load_yaml(Recipe, recipe_file(FULL))
    assert from_file == load_yaml(Recipe, FULL)
    assert from_file.optimiser.lr == 3e-4  # YAML 1.1 would read a word
    assert from_file.losses == (Kl(temperature=2.0), Cosine(weight=0.5))


def test_overrides_set_nested_list_and_absent_keys() -> None:
    recipe = load_yaml(
        Recipe,
        FULL,
        ["optimiser.lr=1e-5", "losses.0.temperature=4", "weights.kl=2", "optimiser.betas=[0.8, 0.9]", "folder=a/b"],
    )
    assert recipe.optimiser == Optimiser(lr=1e-5, betas=(0.8, 0.9))
    assert recipe.losses[0] == Kl(temperature=4.0)
    assert recipe.weights == {"kl": 2.0}
    assert recipe.folder == Path("a/b")


def test_later_overrides_win_and_words_stay_words() -> None:
    recipe = load_yaml(Recipe, "name: x", ["name=no", "steps=2", "steps=3"])
    assert (recipe.name, recipe.steps) == ("no", 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\nstpes: 3", ":2: unknown key 'stpes'; did you mean 'steps'?"),
        ("name: x\noptimiser:\n  lrr: 3", ":3: unknown key 'optimiser.lrr'; did you mean 'lr'?"),
        ("name: x\nlr: 3", ":2: unknown key 'lr'; it belongs at 'optimiser.lr'"),
        (
            "name: x\nlosses:\n- kind: kl\n  temprature: 2",
            ":4: unknown key 'losses.0.temprature'; did you mean 'temperature'?",
        ),
        (
            "name: x\nlosses:\n- kind: cosine\n  zzz: 2",
            ":4: unknown key 'losses.0.zzz'; known keys here: kind, weight",
        ),
        ("steps: 3", ": key 'name' is missing; add it"),
        ("name: x\nsteps: many", ":2: steps: expected a whole number, found the text 'many'"),
        ("name: x\nsteps: '3'", ":2: steps: expected a whole number, found the text '3'"),
        ("name: x\nsteps: 0", ":2: steps: at least one step is needed"),
        ("name: x\nresume: 1", ":2: resume: expected a valid boolean, found the value 1"),
        ("name: 5", ":1: name: expected a valid string, found the value 5"),
        ("name: x\noptimiser:\n  lr: .nan", ":3: optimiser.lr: expected a finite number"),
        ("name: x\nname: y", ":2: key 'name' is given twice (first on line 1); keep one"),
        ("name: [x\nsteps: 2", "not valid YAML"),
        ("name: x\n\tsteps: 2", ":2: not valid YAML"),
        ("- name", "expected keys and values at the top, found a list"),
        ("name: x\nsteps: !!python/object:os.system 3", ":2: not valid YAML"),
        ("name: x\nsteps: !!bool 3", "a value is not what it says it is"),
        ('name: "\\UFFFFFFFF"', "a value is not what it says it is"),
        ("name: x\nfolder: &f a\n", ":2: &f: anchors and aliases are not read; write the value out"),
        ("name: x\nfolder: *f\n", ":2: *f: anchors and aliases are not read"),
        ("name: &a [*a]", ":1: &a: anchors and aliases are not read"),
        ("a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghij")), ":1: &a: anchors"),
        ("name: x\nfolder: " + "[" * 3000 + "]" * 3000, ":2: more than 50 lists or keys inside one another"),
        ("\n".join(" " * depth + "a:" for depth in range(60)), ":51: more than 50 lists or keys inside one another"),
        ("name: x\nfolder: \0", ":2: not valid YAML: the character U+0000 is no text; remove it"),
    ],
)
def test_wrong_files_are_explained(recipe_file: Callable[[str], Path], text: str, expected: str) -> None:
    path = recipe_file(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(Recipe, path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_key_of_several_sections_is_named_once_each() -> None:
    class Plain(StrictModel):
        lr: float = 0.1

    class Tower(StrictModel):
        part: Optimiser | Plain = Optimiser()

    class Pair(StrictModel):
        image: Tower = Tower()
        text: Tower | Optimiser = Tower()

    with pytest.raises(ConfigError) as caught:
        load_yaml(Pair, "lr: 3")
    places = ["image.part.lr", "text.part.lr", "text.lr"]
    assert str(caught.value) == f"YAML:1: unknown key 'lr'; it belongs at {' or '.join(map(repr, places))}"


def test_shipped_recipes_hold_no_alias_and_none_is_written() -> None:
    shared = [1, 2]
    written = yaml.dump({"a": shared, "b": shared}, Dumper=Dumper)
    assert parse_yaml(written)[0] == {"a": shared, "b": shared}
    assert len(config.describe_recipes()) == len(config.shipped_recipes()) > 30


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("big", "YAML:2: size: expected a whole number or a list, found the text 'big'"),
        ("[1, x]", "YAML:2: size.1: expected a whole number, found the text 'x'"),
        ("[0, 1]", "YAML:2: size.0: expected greater than or equal to 1, found the value 0"),
    ],
)
def test_members_of_a_union_complain_in_one_line(value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(Recipe, f"name: x\nsize: {value}")
    assert str(caught.value) == expected


def test_a_key_that_is_a_number_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"^YAML:4: epochs\.6: expected a number, found the text 'x'$"):
        load_yaml(Recipe, "name: x\nepochs:\n  0: 1\n  6: x")


def test_every_error_has_its_own_line() -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(Recipe, "steps: many\noptimser: {}\n")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any("did you mean 'optimiser'?" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimiser.lrr=1", "--set optimiser.lrr: unknown key 'optimiser.lrr'; did you mean 'lr'?"),
        ("steps=many", "--set steps: steps: expected a whole number"),
        ("steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("name.first=3", "name is the text 'tiny', which has no keys"),
        ("losses.7.weight=3", "losses is a list of 2; '7' is no place in it"),
        ("steps=[1", "--set steps:1: not valid YAML"),
        ("steps=&a [*a]", "--set steps:1: &a: anchors and aliases are not read"),
        (".".join("a" * 3000) + "=1", "3000 keys inside one another; 50 is the most"),
    ],
)
def test_wrong_overrides_are_explained(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(Recipe, FULL, [override])
    assert expected in str(caught.value)


def test_a_missing_file_names_its_neighbour(recipe_file: Callable[[str], Path], tmp_path: Path) -> None:
    recipe_file(FULL)
    with pytest.raises(ConfigError, match=r"recpe\.yaml: no such file; did you mean .*recipe\.yaml"):
        load_yaml(Recipe, tmp_path / "recpe.yaml")


def test_a_folder_and_binary_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(Recipe, tmp_path)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_yaml(Recipe, binary)


def test_models_are_frozen_and_forbid_in_python_too() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Kl().temperature = 3.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="Extra inputs"):
        Kl.model_validate({"heat": 1})


@given(
    name=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])),
    lr=st.floats(allow_nan=False, allow_infinity=False),
    steps=st.integers(1, 10**9),
)
def test_what_is_dumped_reads_back_equal(name: str, lr: float, steps: int) -> None:
    recipe = Recipe(name=name, steps=steps, optimiser=Optimiser(lr=lr), losses=(Kl(),), weights={"no": 1.0})
    assert load_yaml(Recipe, dump_yaml(recipe) + "\n") == recipe


@pytest.mark.parametrize("name", ["no", "1e-3", "2020-01-01", "true", "null", "007", "12:30", "", "a: b", "1_000"])
def test_words_that_look_like_values_read_back_as_words(name: str) -> None:
    assert load_yaml(Recipe, dump_yaml(Recipe(name=name))).name == name


def test_apply_override_reports_the_path_it_set() -> None:
    data: dict[str, object] = {"a": [{"b": 1}]}
    assert apply_override(data, "a.-1.b=2") == ("a", 0, "b")
    assert data == {"a": [{"b": 2}]}


def test_recipes_are_found_by_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "promptkd.yaml").write_text(FULL)
    monkeypatch.setattr(config, "RECIPES", tmp_path)
    assert find_recipe("distill/promptkd") == tmp_path / "distill" / "promptkd.yaml"
    assert find_recipe(tmp_path / "distill" / "promptkd.yaml").is_file()
    with pytest.raises(ConfigError, match="did you mean 'distill/promptkd'"):
        find_recipe("distill/promtkd")
