"""Karpathy's JSON files (``dataset_coco.json``, ``dataset_flickr8k.json``, ``dataset_flickr30k.json``)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from clipette.data.coco import image_root, read_json, records
from clipette.data.dataset import Listing
from clipette.data.fields import clean_captions
from clipette.data.paths import key_of
from clipette.data.refs import FileImage
from clipette.types import Failure, Sample

OPTIONS = {"images": "folder of the images (default: looked for beside the JSON file)"}


def list_karpathy(rest: str, options: Mapping[str, str]) -> Listing:
    """``karpathy:``. Splits are the file's own: train, restval, val, test (``?split=train,restval`` for both)."""
    path = Path(rest).expanduser()
    entries = records(path, read_json(path), "images", "Karpathy's")
    names = [os.path.join(str(entry.get("filepath") or ""), str(entry.get("filename", ""))) for entry in entries]
    root = image_root(path, options, names[:1])
    listing = Listing()
    for number, (entry, name) in enumerate(zip(entries, names, strict=True), 1):
        place = f"{path} image {number}"
        sentences = entry.get("sentences")
        if not entry.get("filename") or not isinstance(sentences, list):
            listing.failures.append(Failure(name or place, place, "no 'filename' or no 'sentences'"))
            continue
        captions = [str(sentence.get("raw") or " ".join(sentence.get("tokens", []))) for sentence in sentences]
        key = key_of(name)
        listing.samples.append(Sample(
            key=key,
            image=FileImage(os.path.join(root, name), place),
            captions=clean_captions(captions, key, place, listing.failures),
            split=str(entry["split"]) if entry.get("split") else None,
            meta={field: entry[field] for field in ("imgid", "cocoid") if field in entry},
        ))  # fmt: skip
    return listing
