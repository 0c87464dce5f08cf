"""The nouns of Clipette, free of PyTorch: samples, views, and the protocols rooms talk through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]
ImageInput: TypeAlias = "str | Path | bytes | Image"


class ImageBytes(Protocol):
    """Where one image's encoded bytes are; reading is lazy and thread-safe."""

    @property
    def location(self) -> str:
        """For messages: ``photos/a.jpg`` or ``train.tar:a.jpg``."""
        ...

    def read(self) -> bytes:
        """The encoded bytes. Raises ``BadImageError`` where they cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a data source. ``key`` is stable: it never is a position."""

    key: str
    image: ImageBytes | None = None
    captions: tuple[str, ...] = ()
    class_name: str | None = None
    label: int | None = None
    domain: str | None = None
    split: str | None = None
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """One sample that was skipped: recorded and counted, never lost in silence."""

    key: str
    location: str
    reason: str


@dataclass(frozen=True, slots=True)
class View:
    """An augmented view as parameters, so that teacher and student can each cut the very same region.

    ``box`` is (left, top, right, bottom) as fractions of the **upright** original; colour factors are PIL's
    ``ImageEnhance`` factors (1 = unchanged), applied in the order brightness, contrast, saturation.
    The identity view is ``View()``: then the encoder's own full preprocessing (resize + centre crop) applies.
    """

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors of the samples that could be read. ``vectors``: [N, D] float32 of unit length; row i is ``keys[i]``."""

    keys: tuple[str, ...]
    vectors: Floats
    failures: tuple[Failure, ...] = ()


class Encoder(Protocol):
    """Images and strings in, unit vectors out; torch-free to the caller.

    Teacher, student, ensemble, exported bundle and a folder of stored embeddings are all encoders. Each carries its
    own preprocessing, tokenizer, scale and bias; callers never share those between encoders.
    """

    @property
    def name(self) -> str:
        """For tables: what the user called it."""
        ...

    @property
    def space(self) -> str:
        """Id of the embedding space: vectors of two encoders are comparable if and only if these are equal."""
        ...

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        ...

    @property
    def logit_scale(self) -> float:
        """The factor on cosines (exp of the learned parameter): 100 for CLIP."""
        ...

    @property
    def logit_bias(self) -> float:
        """Added after scaling: 0 for CLIP, about -10 for SigLIP."""
        ...

    @property
    def can_encode_text(self) -> bool: ...

    @property
    def can_encode_images(self) -> bool: ...

    def encode_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Floats:
        """[N, D] unit vectors of ad-hoc images. Raises ``BadImageError`` on the first that cannot be read."""
        ...

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        """Unit vectors of the samples' images; one that cannot be read becomes a ``Failure``, never an error."""
        ...

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Floats:
        """[N, D] unit vectors. Raises ``UnsupportedError`` where there is no text side."""
        ...


class Classifier(Protocol):
    """Images in, logits over named classes out: for what has no single image-text space."""

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def classify_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        """As ``Encoder.encode_samples``, with logits [N, C] in place of vectors."""
        ...


class Tokenizer(Protocol):
    """Strings in, named integer arrays out, ready for one text tower."""

    @property
    def context_length(self) -> int: ...

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        """For example ``{"input_ids": [N, L], "attention_mask": [N, L]}``."""
        ...
