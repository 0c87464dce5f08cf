"""transformers' image processors in our terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipette.data.preprocess import Preprocess
from clipette.errors import ModelError

# PIL's numbers for the two resampling filters we have.
RESAMPLING = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Pixels:
    """What an image processor does: our ``Preprocess``, and a cut of its centre that follows it."""

    preprocess: Preprocess
    cut: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of what the model sees."""
        return self.cut or self.preprocess.size


def pixels_of(processor: Any, name: str) -> Pixels:
    """A transformers image processor's settings in our terms.

    Resize (squash, or by the shorter side), centre cut, and one affine map that joins rescaling, its offset and both
    normalisations. Raises ``ModelError`` for anything else. Where the margin is odd, the cut is torchvision's (and so
    transformers' default backend's); its PIL backend lies one pixel beside.
    """
    values = processor.to_dict()
    if not values.get("do_resize", True):
        raise ModelError(f"the image processor of '{name}' does not resize: images of any size are not supported")
    resample = int(values.get("resample", 3))
    if resample not in RESAMPLING:
        raise ModelError(f"the image processor of '{name}' resamples by PIL filter {resample}: only 2 and 3 are known")
    mean, std = _affine(values)
    common: dict[str, Any] = {"mean": mean, "std": std, "interpolation": RESAMPLING[resample]}
    resized = _sides(values["size"])
    cut = _sides(values["crop_size"]) if values.get("do_center_crop") else None
    target = (cut, cut) if isinstance(cut, int) else cut
    if isinstance(resized, int):
        if target is None:
            raise ModelError(f"the image processor of '{name}' keeps the aspect ratio and cuts nothing: not supported")
        shorter = None if resized == target[0] == target[1] else resized
        return Pixels(Preprocess(size=target, mode="crop", shorter=shorter, **common))
    if target is not None and (target[0] > resized[0] or target[1] > resized[1]):
        raise ModelError(f"the image processor of '{name}' cuts {target} out of {resized}: not supported")
    return Pixels(Preprocess(size=resized, mode="squash", **common), None if target == resized else target)


def _sides(size: Any) -> int | tuple[int, int]:
    """transformers' size: the length of the shorter side, or (height, width)."""
    if isinstance(size, int):
        return size
    values = dict(size)
    if values.get("shortest_edge"):
        return int(values["shortest_edge"])
    return int(values["height"]), int(values["width"])


def _affine(values: Mapping[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(mean, std) such that (byte / 255 - mean) / std is what the processor computes from a byte.

    The processor: x = byte · factor - offset; if normalising, (x - m) / s; EfficientNet's ``include_top`` divides by s
    again.
    """
    slope = [float(values.get("rescale_factor", 1 / 255)) * 255.0 if values.get("do_rescale", True) else 255.0] * 3
    shift = [-1.0 if values.get("rescale_offset", False) else 0.0] * 3
    deviations = [float(x) for x in values.get("image_std") or (1.0, 1.0, 1.0)]
    if values.get("do_normalize", True):
        means = [float(x) for x in values["image_mean"]]
        shift = [(b - m) / s for b, m, s in zip(shift, means, deviations, strict=True)]
        slope = [a / s for a, s in zip(slope, deviations, strict=True)]
    if values.get("include_top", False):
        shift = [b / s for b, s in zip(shift, deviations, strict=True)]
        slope = [a / s for a, s in zip(slope, deviations, strict=True)]
    # slope · x + shift = (x - mean) / std
    std = [round(1.0 / a, 12) for a in slope]
    mean = [round(-b / a, 12) for a, b in zip(slope, shift, strict=True)]
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
