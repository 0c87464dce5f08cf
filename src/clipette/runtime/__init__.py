"""The bundle at work: images and texts to vectors by onnxruntime, without PyTorch."""

from __future__ import annotations

from clipette.runtime.bundle import Bundle, is_bundle, open_bundle
from clipette.runtime.encoder import BundleEncoder, load_bundle

__all__ = ["Bundle", "BundleEncoder", "is_bundle", "load_bundle", "open_bundle"]
