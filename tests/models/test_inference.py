"""A model at work: however an image comes, the same vector; failures recorded; texts in the order they were given."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tasks.tiny import tiny_model, tiny_teacher
from tests.train import tiny

from clipette.errors import BadImageError, ConfigError, UnsupportedError
from clipette.models.core import weights_digest
from clipette.models.inference import TorchEncoder, default_device


def png(seed: int = 0, size: tuple[int, int] = (24, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_is_the_same_from_a_path_bytes_or_pillow(tmp_path: Path) -> None:
    encoder, data = tiny_teacher(), png()
    path = tmp_path / "a.png"
    path.write_bytes(data)
    found = encoder.encode_images([path, str(path), data, Image.open(path)])
    assert found.shape == (4, 8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    for row in found[1:]:
        np.testing.assert_allclose(row, found[0], atol=1e-6)
    with torch.no_grad():
        pixels = torch.from_numpy(encoder.model.image_tower().preprocess(Image.open(path)))[None]
        np.testing.assert_allclose(found[0], encoder.model.encode_image(pixels)[0].numpy(), atol=1e-6)


def test_a_photograph_lying_on_its_side_is_turned_in_every_form(tmp_path: Path) -> None:
    image = Image.open(io.BytesIO(png()))
    exif = image.getexif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    encoder = tiny_teacher()
    by_path, by_pillow = encoder.encode_images([path, Image.open(path)])
    upright = encoder.encode_images([image.transpose(Image.Transpose.ROTATE_270)])[0]
    np.testing.assert_allclose(by_path, upright, atol=1e-6)
    np.testing.assert_allclose(by_pillow, upright, atol=1e-6)


def test_transparent_pixels_are_white_in_every_form(tmp_path: Path) -> None:
    pixels = np.zeros((24, 24, 4), np.uint8)
    pixels[:12, :, 3] = 255
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    by_path, by_pillow = tiny_teacher().encode_images([path, Image.open(path)])
    np.testing.assert_allclose(by_path, by_pillow, atol=1e-6)


def test_batches_do_not_change_vectors() -> None:
    encoder = tiny_teacher()
    images = [png(seed) for seed in range(7)]
    whole = encoder.encode_images(images)
    np.testing.assert_allclose(encoder.encode_images(images, batch_size=3), whole, atol=1e-6)
    texts = [f"text {'x' * n}" for n in range(7)]
    np.testing.assert_allclose(
        encoder.encode_texts(texts, batch_size=2), encoder.encode_texts(texts, batch_size=7), atol=1e-6
    )


def test_nothing_in_is_nothing_out() -> None:
    encoder = tiny_teacher()
    assert encoder.encode_images([]).shape == (0, 8)
    assert encoder.encode_texts([]).shape == (0, 8)
    assert encoder.encode_samples([]).vectors.shape == (0, 8)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    encoder = tiny_teacher()
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(BadImageError, match=r"absent\.jpg: cannot be read"):
        encoder.encode_images([tmp_path / "absent.jpg"])
    with pytest.raises(BadImageError, match=r"text\.jpg"):
        encoder.encode_images([png(), tmp_path / "text.jpg"])
    with pytest.raises(BadImageError, match="<bytes>"):
        encoder.encode_images([b""])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_samples_that_cannot_be_read_become_failures(batch_size: int) -> None:
    encoder = tiny_teacher()
    samples = tiny.dataset(8, bad=[0, 5]).samples
    encoded = encoder.encode_samples(samples, batch_size=batch_size)
    assert encoded.keys == tuple(f"s{i:03d}" for i in (1, 2, 3, 4, 6, 7))
    assert [failure.key for failure in encoded.failures] == ["s000", "s005"]
    assert all(failure.reason and failure.location for failure in encoded.failures)
    good = [samples[i].image.read() for i in (1, 2, 3, 4, 6, 7)]  # type: ignore[union-attr]
    np.testing.assert_allclose(encoded.vectors, encoder.encode_images(good), atol=1e-6)


def test_texts_are_encoded_by_length_and_returned_in_order() -> None:
    model = tiny.student().eval()
    encoder = TorchEncoder(model, name="x", device="cpu")
    texts = ["a long caption about a red picture", "x", "a picture", "", "some more words here", "x"]
    seen: list[int] = []
    tokenizer = model.text_tower().tokenizer

    class Watching:
        context_length = tokenizer.context_length

        def __call__(self, given: list[str]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
            seen.extend(len(text) for text in given)
            return tokenizer(given)

    model.text_tower().tokenizer = Watching()  # type: ignore[assignment]
    found = encoder.encode_texts(texts, batch_size=2)
    assert seen == sorted(seen)
    alone = np.concatenate([encoder.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(found, alone, atol=1e-5)
    np.testing.assert_allclose(found[1], found[5], atol=1e-6)


def test_encoding_leaves_the_mode_as_it_was_and_ignores_it() -> None:
    """Called in the middle of training (dev figures): batch norms neither read nor record the batch."""
    model = tiny.student()
    encoder = TorchEncoder(model, name="x", device="cpu")
    image = tiny.picture(1, 1)
    calm = encoder.encode_images([image])
    before = weights_digest(model)
    model.train()
    again = encoder.encode_images([image])
    assert model.training
    assert weights_digest(model) == before
    np.testing.assert_array_equal(calm, again)
    assert next(model.parameters()).requires_grad


def test_a_frozen_part_stays_in_evaluation_mode_after_encoding() -> None:
    model = tiny.student()
    encoder = TorchEncoder(model, name="x", device="cpu")
    model.train()
    model.image_tower().eval()
    encoder.encode_images([tiny.picture(1, 1)])
    assert not any(module.training for module in model.image_tower().modules())
    assert model.text_tower().training


def test_facts_of_the_model() -> None:
    encoder = tiny_teacher()
    assert (encoder.dim, encoder.name, encoder.logit_bias) == (8, "tiny", 0.0)
    assert encoder.logit_scale == pytest.approx(50.0)
    assert encoder.space == weights_digest(encoder.model)
    assert encoder.space != tiny_teacher(seed=1).space
    assert TorchEncoder(encoder.model, name="x", space="given", device="cpu").space == "given"
    half = TorchEncoder(tiny_model(text=False), name="x", device="cpu")
    assert (half.can_encode_images, half.can_encode_text) == (True, False)
    with pytest.raises(UnsupportedError, match="has no text tower"):
        half.encode_texts(["a"])
    with pytest.raises(UnsupportedError, match="has no image tower"):
        TorchEncoder(tiny_model(image=False), name="x", device="cpu").encode_images([png()])


def test_half_precision_is_close_and_comes_back_as_float32() -> None:
    model = tiny_model()
    whole = TorchEncoder(model, name="x", device="cpu").encode_images([png()])
    half = TorchEncoder(model, name="x", device="cpu", precision="bf16").encode_images([png()])
    assert half.dtype == np.float32
    assert not np.array_equal(whole, half)
    np.testing.assert_allclose(whole, half, atol=0.03)


def test_the_device_is_the_asked_one() -> None:
    assert default_device("cpu") == torch.device("cpu")
    assert default_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}': .*clipette doctor"):
        default_device(name)
