"""One picture: probabilities, questions, and the chart."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from tests.evaluate.fakes import FakeEncoder, unit
from tests.train.tiny import picture

from clipette.errors import ConfigError
from clipette.evaluate.classify import answer, chart, classify
from clipette.types import Floats


@dataclass
class OnePicture(FakeEncoder):
    """Sees the same vector in every picture."""

    def encode_images(self, images: object, *, batch_size: int = 64) -> Floats:
        return unit(np.array([[3.0, 1.0]]))


def encoder() -> OnePicture:
    texts = {"a cat": unit([1, 0]), "a dog": unit([0, 1]), "a red fox": unit([1, 1])}
    texts |= {"the dog is running": unit([0, 1]), "the dog is sleeping": unit([1, 0])}
    return OnePicture({}, texts, dim=2, logit_scale=4.0, logit_bias=-10.0)


def test_labels_are_ranked_by_softmax_of_scaled_cosines() -> None:
    found = classify(encoder(), picture(0, 0), ["cat", "dog", "red_fox"], ("a {}",))
    cosines = np.array([3.0, 1.0, 4 / np.sqrt(2)]) / np.sqrt(10)
    odds = np.exp(4 * cosines)
    assert found.labels == ("cat", "red_fox", "dog")
    assert found.probabilities == pytest.approx((odds / odds.sum())[[0, 2, 1]], abs=1e-6)
    assert found.cosines == pytest.approx(cosines[[0, 2, 1]], abs=1e-6)
    assert sum(found.probabilities) == pytest.approx(1.0)
    assert found.to_dict()["best"] == "cat"


def test_a_question_is_turned_into_statements() -> None:
    found = answer(encoder(), picture(0, 0), "what is the dog doing?", ["running", "sleeping"])
    assert found.labels == ("sleeping", "running")
    assert found.prompts == ("the dog is sleeping", "the dog is running")
    assert found.to_dict()["scores"][0]["prompt"] == "the dog is sleeping"


def test_chart_shows_the_picture_and_the_bars() -> None:
    found = classify(encoder(), picture(0, 0), ["cat", "dog"], ("a {}",))
    with Image.open(io.BytesIO(chart(picture(0, 0), found))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] > pixels.shape[0]
    left, right = np.split(pixels, [pixels.shape[1] // 3], axis=1)
    assert ((left[..., 0] > 150) & (left[..., 1] < 110)).mean() > 0.2, "the red picture"
    assert (right == [0, 0x72, 0xB2]).all(axis=-1).sum() > 500, "the best label's bar"


@pytest.mark.parametrize("labels", [["cat"], ["cat", ""], ["cat", "cat"]])
def test_labels_must_be_a_choice(labels: list[str]) -> None:
    with pytest.raises(ConfigError, match="at least two"):
        classify(encoder(), picture(0, 0), labels)
