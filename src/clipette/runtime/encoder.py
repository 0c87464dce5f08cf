"""A bundle as an ``Encoder``: what evaluation, index and server use, without PyTorch."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipette.data.images import DecodeSettings
from clipette.data.preprocess import Preprocess
from clipette.errors import ConfigError, ModelError, UnsupportedError
from clipette.runtime import batches
from clipette.runtime.bundle import MANIFEST, Bundle, open_bundle
from clipette.runtime.sessions import Session, open_session
from clipette.runtime.tokens import TableTokenizer, build_tokenizer, until_end
from clipette.types import Encoded, Floats, ImageInput, Sample

PREPROCESS = "preprocess.json"
INPUTS = {"image": ("pixels",), "text": ("input_ids", "attention_mask")}


class BundleEncoder:
    """``types.Encoder`` over a bundle's graphs.

    ``threads``: of each session; by default the cores that this process may use. ``engine``: ``onnxruntime`` or
    ``openvino``; by default the one that the bundle was measured on, else OpenVINO where it is installed.
    """

    def __init__(
        self, bundle: Bundle, *, name: str | None = None, threads: int | None = None, engine: str | None = None
    ) -> None:
        self.bundle = bundle
        self.settings = DecodeSettings()
        manifest = bundle.manifest
        self._name = name or str(manifest["name"])
        self._threads = threads
        self._engine = engine
        self._image = self._session("image")
        text = bundle.side("text")
        stored = text is not None and text["tokenizer"].get("kind") == "stored"
        self._text = None if stored else self._session("text")
        self.tokenizer = None if text is None else build_tokenizer(text["tokenizer"], bundle.files)
        self._until_end = text is not None and text.get("columns") == "until_end"
        self._table = self._vectors(text["file"]) if stored and text is not None else None
        image = bundle.side("image")
        self.preprocess = None if image is None else self._preprocessing(image["preprocess"])

    def _preprocessing(self, values: Mapping[str, Any]) -> Preprocess:
        try:
            # The file is checked by its digest; the manifest beside it must not say something else.
            exported = self.bundle.files.get(PREPROCESS)
            if exported is not None and json.loads(exported) != values:
                raise ConfigError(f"it does not say of preprocessing what {PREPROCESS} says")
            return Preprocess.from_dict(values)
        except (ConfigError, ValueError) as error:
            raise ModelError(f"{self.bundle.path / MANIFEST}: damaged ({error}); export the model again") from error

    def _vectors(self, file: str) -> Floats:
        """The stored vectors, one for each of the tokenizer's texts."""
        where = self.bundle.path / file
        try:
            vectors = np.load(io.BytesIO(self.bundle.files[file]), allow_pickle=False).astype(np.float32)
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise ModelError(f"{where}: not a table of vectors ({error}); export the model again") from error
        texts = self.tokenizer.texts if isinstance(self.tokenizer, TableTokenizer) else ()
        if vectors.shape != (len(texts), self.dim):
            raise ModelError(
                f"{where}: {len(texts)} names and {len(vectors) if vectors.ndim else 0} vectors of width "
                f"{vectors.shape[-1] if vectors.ndim else 0} (the manifest says {self.dim}); export the model again"
            )
        if not np.isfinite(vectors).all():
            raise ModelError(f"{where}: a vector holds NaN or infinity; export the model again")
        return np.asarray(vectors)

    def _session(self, side: str) -> Session | None:
        part = self.bundle.side(side)
        if part is None:
            return None
        where = str(self.bundle.path / part["file"])
        session = open_session(
            self.bundle.files[part["file"]],
            where=where,
            threads=self._threads,
            engine=self._engine,
            preferred=self.bundle.manifest.get("engine"),
        )
        strangers = [name for name in session.inputs if name not in INPUTS[side]]
        if strangers:
            raise ModelError(
                f"{where}: it reads '{strangers[0]}', which towers of the {side} side are not given; export again"
            )
        if session.width not in (None, self.dim):
            raise ModelError(
                f"{where}: its vectors are {session.width} wide, the manifest says {self.dim}; export again"
            )
        return session

    @property
    def name(self) -> str:
        return self._name

    @property
    def space(self) -> str:
        return str(self.bundle.manifest["space"])

    @property
    def dim(self) -> int:
        return int(self.bundle.manifest["dim"])

    @property
    def logit_scale(self) -> float:
        return float(self.bundle.manifest["logit_scale"])

    @property
    def logit_bias(self) -> float:
        return float(self.bundle.manifest["logit_bias"])

    @property
    def engine(self) -> str:
        """What runs its graphs; the image tower's, where they are not the same."""
        sessions = [session for session in (self._image, self._text) if session is not None]
        return sessions[0].engine if sessions else "numpy"

    @property
    def can_encode_text(self) -> bool:
        return self.tokenizer is not None

    @property
    def can_encode_images(self) -> bool:
        return self._image is not None

    def encode_pixels(self, pixels: Floats) -> Floats:
        """Unit vectors [B, D] of already preprocessed pixels [B, 3, H, W]."""
        if self._image is None:
            raise UnsupportedError(f"{self.name} has no image tower: it cannot encode images")
        out: Floats = self._image({"pixels": np.ascontiguousarray(pixels)})
        return out

    def _preprocess(self) -> Preprocess:
        if self.preprocess is None:
            raise UnsupportedError(f"{self.name} has no image tower: it cannot encode images")
        return self.preprocess

    def encode_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Floats:
        return batches.encode_images(
            images,
            self.encode_pixels,
            self._preprocess(),
            dim=self.dim,
            batch_size=batch_size,
            settings=self.settings,
        )

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        return batches.encode_samples(
            samples,
            self.encode_pixels,
            self._preprocess(),
            name=self.name,
            dim=self.dim,
            batch_size=batch_size,
            settings=self.settings,
            progress=progress,
        )

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Floats:
        return batches.encode_texts(texts, self._encode_strings, dim=self.dim, batch_size=batch_size)

    def _encode_strings(self, texts: Sequence[str]) -> Floats:
        if self.tokenizer is None:
            raise UnsupportedError(f"{self.name} has no text side: it cannot encode texts")
        tokens = self.tokenizer(texts)
        out: Floats
        if self._text is not None:
            out = self._text(until_end(tokens) if self._until_end else tokens)
        elif self._table is not None:
            out = self._table[tokens["row"][:, 0]]
        return out


def load_bundle(
    path: str | Path, *, name: str | None = None, threads: int | None = None, engine: str | None = None
) -> BundleEncoder:
    """A bundle's encoder. Raises ``ModelError`` where the bundle is not whole."""
    return BundleEncoder(open_bundle(path), name=name, threads=threads, engine=engine)
