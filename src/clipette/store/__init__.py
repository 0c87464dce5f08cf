"""The store: a teacher's outputs, poured once and read in every training. No PyTorch."""

from clipette.store.clip_retrieval import export_clip_retrieval, import_clip_retrieval
from clipette.store.layout import StoredFailure, folder_key, store_path
from clipette.store.maintain import compact, describe, repair
from clipette.store.plan import Chunk, Plan
from clipette.store.reader import Store, Table, open_store
from clipette.store.rows import Rows
from clipette.store.writer import StoreWriter

__all__ = [
    "Chunk",
    "Plan",
    "Rows",
    "Store",
    "StoreWriter",
    "StoredFailure",
    "Table",
    "compact",
    "describe",
    "export_clip_retrieval",
    "folder_key",
    "import_clip_retrieval",
    "open_store",
    "repair",
    "store_path",
]
