"""The sample world: deterministic, balanced, truthful captions, held-out compositions that stay held out."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipette.data.world import (
    WORLD_CLASSES,
    WORLD_NOVEL_CLASSES,
    WORLD_SPLITS,
    WorldImage,
    WorldSpec,
    load_world,
    world_sample,
    world_samples,
)
from clipette.data.world_captions import SYNONYMS, WITH_TEXTURE
from clipette.data.world_render import SHAPE_DISTANCES, TEXTURE_DISTANCES
from clipette.data.world_scene import (
    BACKGROUNDS,
    COLOURS,
    EVERY,
    NOVEL,
    PLACES,
    RADII,
    RELATIONS,
    SEEN,
    SHAPES,
    SPLITS,
    TEXTURES,
    draw_scene,
)
from clipette.data.world_sheet import GAP, LABEL_HEIGHT, LABEL_WIDTH, contact_sheet
from clipette.data.world_write import write_world, write_worlds
from clipette.errors import ConfigError, DataError

SOURCE = Path(__file__).resolve().parents[2] / "src"


def digest_of(spec: WorldSpec) -> str:
    state = hashlib.sha256()
    for sample in world_samples(spec):
        state.update(repr((sample.key, sample.captions, sample.class_name, sample.label, sample.domain)).encode())
        if sample.image is not None:
            state.update(sample.image.read())
    return state.hexdigest()


# --- classes --------------------------------------------------------------------------------------------------


def test_seen_and_novel_share_no_colour_and_shape_pair() -> None:
    pairs = [{(each.colour, each.shape) for each in classes} for classes in (SEEN, NOVEL)]
    assert not pairs[0] & pairs[1]
    assert len(set(SEEN)) == len(SEEN) == 48
    assert len(set(NOVEL)) == len(NOVEL) == 24
    assert set(SEEN) | set(NOVEL) < set(EVERY)
    assert len(set(EVERY)) == 108


@pytest.mark.parametrize("classes", [SEEN, NOVEL])
def test_every_word_occurs_equally_often(classes: tuple[object, ...]) -> None:
    """So that no class is found from the frequency of one of its words."""
    for words in (SHAPES, TEXTURES, tuple(COLOURS)):
        counts = Counter(word for each in classes for word in each.name.split() if word in words)  # type: ignore[attr-defined]
        assert set(counts) == set(words)
        assert len(set(counts.values())) == 1


def test_texture_is_needed_to_tell_classes_apart() -> None:
    for classes in (SEEN, NOVEL):
        assert set(Counter((each.colour, each.shape) for each in classes).values()) == {2}


def test_every_word_can_be_drawn() -> None:
    assert set(SHAPE_DISTANCES) == set(SHAPES)
    assert set(TEXTURE_DISTANCES) == set(TEXTURES)


# --- determinism ----------------------------------------------------------------------------------------------


def digests() -> str:
    return " ".join(digest_of(WorldSpec(split, n=6, size=40, seed=3)) for split in WORLD_SPLITS)


def test_equal_bytes_in_another_process() -> None:
    code = "import sys; sys.path[:0] = sys.argv[1:]; from test_world import digests; print(digests())"
    command = [sys.executable, "-c", code, str(SOURCE), str(Path(__file__).parent)]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert there.stdout.strip() == digests()


def test_seeds_and_splits_give_other_pictures() -> None:
    images = [WorldImage(split, seed, 0, 32).read() for split in ("train", "test", "dev") for seed in (0, 1)]
    assert len(set(images)) == 6


def test_a_prefix_does_not_depend_on_n_and_captions_not_on_size() -> None:
    few, many = world_samples(WorldSpec("pretrain", n=5)), world_samples(WorldSpec("pretrain", n=9))
    assert few == many[:5]
    large = world_samples(WorldSpec("pretrain", n=5, size=128))
    assert [s.captions for s in large] == [s.captions for s in few]
    assert [s.key for s in large] == [s.key for s in few]


def test_the_world_has_not_changed() -> None:
    """Silent changes would make results incomparable: raise ``WORLD_VERSION`` on purpose, then correct these."""
    assert world_sample(WorldSpec("pretrain"), 123).captions[:2] == PINNED_CAPTIONS
    means = [float(WorldImage(split, 0, 7, 32).pixels().mean()) for split in WORLD_SPLITS]
    assert means == pytest.approx(PINNED_MEANS, abs=0.05)


PINNED_CAPTIONS = ("an image of a small pink solid circle", "an image of a solid pink circle against cream")
PINNED_MEANS = [201.892, 221.886, 221.42, 209.65, 183.821, 213.937, 204.07, 42.048, 209.682]


# --- samples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", WORLD_SPLITS)
def test_samples_are_complete_balanced_and_keyed(split: str) -> None:
    samples = world_samples(WorldSpec(split, n=2 * len(SPLITS[split].classes)))
    names = SPLITS[split].class_names
    assert len({sample.key for sample in samples}) == len(samples)
    assert set(Counter(sample.label for sample in samples).values()) == {2}
    for sample in samples:
        assert sample.label is not None
        assert sample.class_name == names[sample.label]
        assert sample.split == split
        assert len(set(sample.captions)) == len(sample.captions) == 5
        assert all(caption == caption.strip() and "  " not in caption for caption in sample.captions)


def test_keys_differ_between_splits_and_seeds() -> None:
    keys = [world_sample(WorldSpec(split, seed=seed), 0).key for split in WORLD_SPLITS for seed in (0, 1)]
    assert len(set(keys)) == len(keys)


def test_domains_are_the_styles() -> None:
    assert {sample.domain for sample in world_samples(WorldSpec("train", n=50))} == {"plain"}
    assert {sample.domain for sample in world_samples(WorldSpec("shift-noise", n=50))} == {"noise"}
    broad = Counter(sample.domain for sample in world_samples(WorldSpec("pretrain", n=400)))
    assert set(broad) == {"plain", "outline", "noise", "inverted", "blurred"}
    assert min(broad.values()) > 30


def test_training_pictures_show_no_novel_composition_anywhere() -> None:
    novel = set(NOVEL)
    for split in ("train", "dev", "test", "shift-outline"):
        scenes = [draw_scene(split, 0, index) for index in range(300)]
        shown = {thing.composition for scene in scenes for thing in scene.things}
        assert shown <= set(SEEN)
        assert not shown & novel
    assert {draw_scene("novel", 0, index).things[0].composition for index in range(24)} == novel


def test_shifted_splits_redraw_the_scenes_of_test() -> None:
    for index in range(20):
        plain, noisy = draw_scene("test", 0, index), draw_scene("shift-noise", 0, index)
        assert (plain.things, plain.background) == (noisy.things, noisy.background)
        assert (plain.style, noisy.style) == ("plain", "noise")


def test_things_lie_inside_and_apart() -> None:
    for index in range(400):
        scene = draw_scene("pretrain", 1, index)
        for thing in scene.things:
            assert thing.radius * 0.9 < min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
        if scene.relation is not None:
            main, other = scene.things
            assert np.hypot(main.x - other.x, main.y - other.y) > main.radius + other.radius
            assert main.radius > 1.4 * other.radius
            across, down = RELATIONS[scene.relation]
            assert (main.x - other.x) * across + (main.y - other.y) * down > 0.4


# --- captions -------------------------------------------------------------------------------------------------

MEANING = {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms} | {
    form: texture for texture, forms in WITH_TEXTURE.items() for form in forms
}


def said(caption: str, words: tuple[str, ...]) -> set[str]:
    """Which of the words a caption says, in any synonym. A background is cut off first: its colours are its own."""
    caption = re.sub(r" (on a [a-z ]+ background|against [a-z ]+)$", "", caption)
    forms = {word: {word, *SYNONYMS.get(word, ()), *WITH_TEXTURE.get(word, ())} for word in words}
    return {word for word in words if any(re.search(rf"\b{form}\b", caption) for form in forms[word])}


@pytest.mark.parametrize("split", ["pretrain", "novel"])
def test_captions_say_nothing_that_is_not_there(split: str) -> None:
    for index in range(300):
        scene = draw_scene(split, 0, index)
        sample = world_sample(WorldSpec(split), index)
        shown = [thing.composition for thing in scene.things]
        for caption in sample.captions:
            assert said(caption, SHAPES) <= {each.shape for each in shown}, caption
            assert said(caption, tuple(COLOURS)) <= {each.colour for each in shown}, caption
            assert said(caption, TEXTURES) <= {each.texture for each in shown}, caption
            assert said(caption, tuple(RADII)) <= {thing.size for thing in scene.things}, caption
            ground = re.search(r"(?:on a (.+) background|against (.+))$", caption)
            if ground:
                assert (ground[1] or ground[2]) == scene.background_name, caption


def test_the_first_caption_names_the_class_in_full() -> None:
    for index in range(200):
        sample = world_sample(WorldSpec("train"), index)
        texture, colour, shape = str(sample.class_name).split()
        assert texture in said(sample.captions[0], TEXTURES)
        assert colour in said(sample.captions[0], tuple(COLOURS))
        assert shape in said(sample.captions[0], SHAPES)


def test_relations_are_true_from_either_side() -> None:
    found = 0
    for index in range(300):
        scene = draw_scene("train", 0, index)
        if scene.relation is None or scene.things[0].composition.shape == scene.things[1].composition.shape:
            continue
        main, other = scene.things
        for caption in world_sample(WorldSpec("train"), index).captions:
            parts = re.split(r" (?:to the )?(left of|right of|above|over|below|under) ", caption)
            if len(parts) != 3:
                continue
            first, second = (main, other) if said(parts[0], (main.composition.shape,)) else (other, main)
            across, down = RELATIONS[MEANING.get(parts[1], parts[1])]
            assert (first.x - second.x) * across + (first.y - second.y) * down > 0.2, caption
            found += 1
    assert found > 100


def test_captions_vary_and_some_leave_attributes_out() -> None:
    captions = [caption for sample in world_samples(WorldSpec("train", n=200)) for caption in sample.captions]
    lengths = Counter(len(caption.split()) for caption in captions)
    assert len(set(captions)) > 700
    assert max(lengths) <= 30
    assert 0.1 < np.mean([not said(caption, TEXTURES) for caption in captions]) < 0.4
    assert 0.02 < np.mean([not said(caption, tuple(COLOURS)) for caption in captions]) < 0.2
    assert all(said(caption, SHAPES) for caption in captions)
    assert not any(re.search(r"\ba [aeio]", caption) for caption in captions)
    assert len(BACKGROUNDS) == 6
    assert len(PLACES) == 9


# --- pictures -------------------------------------------------------------------------------------------------


def test_the_picture_shows_the_colour_that_the_class_names() -> None:
    for index in range(0, 108, 3):  # every third composition of ``pretrain`` is solid
        image = WorldImage("pretrain", 0, index, 64)
        scene = image.scene()
        thing = scene.things[0]
        if scene.style not in ("plain", "blurred") or thing.composition.shape == "ring":
            continue
        middle = image.pixels()[int(thing.y * 64), int(thing.x * 64)].astype(float)
        distances = {name: np.abs(middle - rgb).sum() for name, rgb in COLOURS.items()}
        assert min(distances, key=lambda name: distances[name]) == thing.composition.colour


@pytest.mark.parametrize("style", ["outline", "noise", "inverted", "blurred"])
def test_each_style_changes_the_picture(style: str) -> None:
    for index in range(5):
        plain = WorldImage("test", 0, index, 64).pixels().astype(float)
        shifted = WorldImage(f"shift-{style}", 0, index, 64).pixels().astype(float)
        assert np.sqrt(np.mean((plain - shifted) ** 2)) > 4


def test_inverted_turns_lightness_and_keeps_hue() -> None:
    plain = WorldImage("test", 0, 3, 64).pixels().astype(int)
    turned = WorldImage("shift-inverted", 0, 3, 64).pixels().astype(int)
    assert np.array_equal(turned.max(axis=2), 255 - plain.min(axis=2))
    assert np.array_equal(turned.argmax(axis=2), plain.argmax(axis=2))


def test_one_scene_looks_the_same_at_any_size() -> None:
    large = Image.fromarray(WorldImage("test", 0, 4, 256).pixels()).resize((64, 64), Image.Resampling.BOX)
    small = WorldImage("test", 0, 4, 64).pixels()
    assert np.abs(np.asarray(large, float) - small).mean() < 2.0


def test_encoded_pictures_are_png_of_the_pixels() -> None:
    image = WorldImage("shift-noise", 0, 1, 48)
    decoded = Image.open(io.BytesIO(image.read()))
    assert decoded.format == "PNG"
    assert np.array_equal(np.asarray(decoded), image.pixels())


def test_drawing_is_fast() -> None:
    """10,000 pictures in 30 s on 2 cores are 6 ms of one core each; the process's own time, as machines are busy."""
    samples = world_samples(WorldSpec("pretrain", n=200))
    begun = time.process_time()
    for sample in samples:
        if sample.image is not None:
            sample.image.read()
    assert (time.process_time() - begun) / len(samples) < 0.006


# --- references and errors ------------------------------------------------------------------------------------


def test_a_reference_gives_samples_and_class_names() -> None:
    samples, names = load_world("test", {"n": "7", "size": "32", "seed": "5", "captions": "2"})
    assert names == WORLD_CLASSES
    assert len(samples) == 7
    assert len(samples[0].captions) == 2
    assert samples[0].image == WorldImage("test", 5, 0, 32)
    assert load_world("novel", {"n": "1"})[1] == WORLD_NOVEL_CLASSES
    assert load_world("", {"n": "1"})[0][0].split == "train"


@pytest.mark.parametrize(
    ("rest", "options", "message"),
    [
        ("trian", {}, "did you mean 'train'"),
        ("train", {"sede": "1"}, "did you mean 'seed'"),
        ("train", {"n": "many"}, "n='many' is no whole number"),
        ("train", {"n": "0"}, "n=0 is out of range"),
        ("train", {"size": "2"}, "size=2 is out of range"),
        ("train", {"seed": "-1"}, "seed=-1 is out of range"),
    ],
)
def test_bad_references_are_refused_in_words(rest: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_world(rest, options)


# --- writing --------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_written_tars_are_equal_whatever_the_processes(tmp_path: Path) -> None:
    spec = WorldSpec("novel", n=10, size=24)
    one = write_world(tmp_path / "one", spec, shard_size=4, workers=1)
    write_world(tmp_path / "two", spec, shard_size=4, workers=2)
    assert [path.name for path in one] == ["novel-000000.tar", "novel-000001.tar", "novel-000002.tar"]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_written_tars_hold_what_samples_hold(tmp_path: Path) -> None:
    from clipette.data.sources import load_data

    spec = WorldSpec("novel", n=50, size=24)
    write_world(tmp_path, spec, workers=1)
    written = load_data(f"wds:{tmp_path}")
    drawn = world_samples(spec)
    assert written.class_names == WORLD_NOVEL_CLASSES
    assert not written.failures
    for ours, theirs in zip(drawn, written.samples, strict=True):
        assert (ours.key, ours.captions, ours.class_name, ours.label, ours.domain, ours.split) == (
            theirs.key, theirs.captions, theirs.class_name, theirs.label, theirs.domain, theirs.split
        )  # fmt: skip
        assert ours.image is not None
        assert theirs.image is not None
        assert ours.image.read() == theirs.image.read()


def test_writing_again_does_nothing_and_another_spec_replaces(tmp_path: Path) -> None:
    spec = WorldSpec("dev", n=6, size=16)
    write_world(tmp_path, spec, shard_size=2, workers=1)
    write_world(tmp_path, WorldSpec("test", n=2, size=16), workers=1)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_world(tmp_path, spec, shard_size=2, workers=1)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_world(tmp_path, WorldSpec("dev", n=3, size=16), shard_size=2, workers=1)
    names = ["dev-000000.tar", "dev-000001.tar", "dev.json", "test-000000.tar", "test.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with tarfile.open(tmp_path / "dev-000001.tar") as tar:
        assert len(tar.getnames()) == 2


@pytest.mark.parametrize("harm", ["cut", "gone", "manifest"])
def test_a_damaged_folder_is_written_again(tmp_path: Path, harm: str) -> None:
    spec = WorldSpec("dev", n=4, size=16)
    write_world(tmp_path, spec, shard_size=2, workers=1)
    whole = contents(tmp_path)
    if harm == "cut":
        (tmp_path / "dev-000001.tar").write_bytes(whole["dev-000001.tar"][:100])
    elif harm == "gone":
        (tmp_path / "dev-000000.tar").unlink()
    else:
        (tmp_path / "dev.json").write_text("{")
    write_world(tmp_path, spec, shard_size=2, workers=1)
    assert contents(tmp_path) == whole


def test_a_folder_that_cannot_be_written_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        write_world(tmp_path / "file", WorldSpec("dev", n=1, size=16), workers=1)
    with pytest.raises(ConfigError, match="at least 1"):
        write_world(tmp_path, WorldSpec("dev", n=1), shard_size=0)


def test_the_contact_sheet_holds_the_pictures() -> None:
    sheet = contact_sheet(("test", "shift-blurred"), columns=3, size=32, stride=5)
    assert sheet.size == (LABEL_WIDTH + 3 * (32 + GAP) + GAP, GAP + 2 * (32 + LABEL_HEIGHT + GAP))
    left, top = LABEL_WIDTH + 2 * (32 + GAP), GAP + 32 + LABEL_HEIGHT + GAP
    tile = np.asarray(sheet.crop((left, top, left + 32, top + 32)))
    assert np.array_equal(tile, WorldImage("shift-blurred", 0, 10, 32).pixels())


def test_several_splits_are_written_at_once_as_one_by_one(tmp_path: Path) -> None:
    specs = [WorldSpec("dev", n=3, size=16), WorldSpec("novel", n=5, size=16)]
    together = write_worlds(tmp_path / "both", specs, shard_size=2, workers=2)
    alone = [write_world(tmp_path / "each", spec, shard_size=2, workers=1) for spec in specs]
    assert [[path.read_bytes() for path in tars] for tars in together] == [
        [path.read_bytes() for path in tars] for tars in alone
    ]
    stamps = [path.stat().st_mtime_ns for tars in together for path in tars]
    assert write_worlds(tmp_path / "both", specs, shard_size=2, workers=1) == together
    assert [path.stat().st_mtime_ns for tars in together for path in tars] == stamps
    with pytest.raises(ConfigError, match="named twice"):
        write_worlds(tmp_path, [specs[0], specs[0]])
