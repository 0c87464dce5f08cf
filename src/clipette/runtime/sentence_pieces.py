"""SentencePiece's normalisation of texts, from the table inside its models, without its library.

The table is a double-array trie over UTF-8 (Darts) and a pool of replacements; the longest match is replaced, one
character is kept where nothing matches (Kudo and Richardson, EMNLP 2018, section 3.2).
"""

from __future__ import annotations

import struct

import numpy as np

from clipette.errors import ModelError

SPACE = "▁"


class Normalizer:
    """A text as SentencePiece sees it: replaced by the table, one space between words, spaces as ``▁``.

    ``charsmap``: ``precompiled_charsmap`` of the model's normaliser; empty where it replaces nothing. Raises
    ``ModelError`` where it is damaged.
    """

    def __init__(self, charsmap: bytes) -> None:
        self._units: list[int] = []
        self._pool = b""
        if charsmap:
            size = int(struct.unpack_from("<I", charsmap)[0]) if len(charsmap) > 4 else -1
            if size < 4 or size % 4 or 4 + size > len(charsmap):
                raise ModelError("the tokenizer's table of characters is damaged: export the model again")
            self._units = np.frombuffer(charsmap, dtype="<u4", count=size // 4, offset=4).tolist()
            self._pool = charsmap[4 + size :]

    def __call__(self, text: str) -> str:
        """``text`` as the rest of a sentence: a space, or ``▁``, at its beginning stays."""
        data = text.encode(errors="replace")
        out = bytearray()
        after_space, place = False, 0
        while place < len(data):
            length, piece = self._prefix(data[place : place + 64])
            place += length
            if after_space:
                piece = piece.lstrip(b" ")
            if piece:
                out += piece
                after_space = piece.endswith(b" ")
        return out.decode(errors="replace").replace(" ", SPACE).rstrip(SPACE)

    def _prefix(self, data: bytes) -> tuple[int, bytes]:
        """(bytes read, what stands for them) of the longest entry that ``data`` begins with, else one character."""
        found = self._longest(data)
        if found is not None:
            length, start = found
            return length, self._pool[start : self._pool.index(b"\0", start)]
        first = data[0]
        length = 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        return length, data[:length]

    def _longest(self, data: bytes) -> tuple[int, int] | None:
        """(length, place in the pool) of the longest entry."""
        units = self._units
        if not units:
            return None
        node = _offset(units[0])
        found = None
        for index, byte in enumerate(data):
            node ^= byte
            if node >= len(units):
                break
            unit = units[node]
            # The label of a unit, and its highest bit, which marks a value.
            if unit & 0x800000FF != byte:
                break
            node ^= _offset(unit)
            if unit >> 8 & 1 and node < len(units):
                found = index + 1, units[node] & 0x7FFFFFFF
        return found


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)
