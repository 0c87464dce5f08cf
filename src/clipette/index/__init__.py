"""The index: vectors of images and texts found by nearness, filtered by metadata. No PyTorch."""

from clipette.index.collection import Collection, open_index
from clipette.index.filters import Filter, parse_filter
from clipette.index.store import Found, Kind, Row, Value, VectorRows, VectorStore

__all__ = [
    "Collection",
    "Filter",
    "Found",
    "Kind",
    "Row",
    "Value",
    "VectorRows",
    "VectorStore",
    "open_index",
    "parse_filter",
]
