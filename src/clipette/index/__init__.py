"""The index: vectors of images and texts found by nearness, filtered by metadata. No PyTorch."""

from clipette.index.build import add_all, build_index
from clipette.index.collection import Collection
from clipette.index.filters import Filter, parse_filter
from clipette.index.opening import create, open_index
from clipette.index.store import Found, Kind, Row, Value, VectorRows, VectorStore
from clipette.index.writing import AddReport

__all__ = [
    "AddReport",
    "Collection",
    "Filter",
    "Found",
    "Kind",
    "Row",
    "Value",
    "VectorRows",
    "VectorStore",
    "add_all",
    "build_index",
    "create",
    "open_index",
    "parse_filter",
]
