"""A look into an ONNX file without the library that reads them: does it name other files, which operators does it use?

onnxruntime would open them, relative to wherever the process stands. Only the nesting of the protocol buffers that
can hold a tensor is walked (onnx.proto of ONNX 1.x), without copying what is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator

from clipette.errors import ModelError

# Message → number of a field → the message in it.
NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14
OPSET_IMPORT = 8
DEEPEST = 64


def has_external_data(model: bytes) -> bool:
    """Whether any tensor of an ONNX model says that its bytes lie in another file. Raises ``ModelError``: no ONNX."""
    try:
        return _mentions("model", memoryview(model), 0)
    except (IndexError, RecursionError) as error:
        raise ModelError("not an ONNX graph: its bytes end in the middle of a field; export the model again") from error


def operator_set(model: bytes) -> int:
    """The version of ONNX's own operators that a model states; 0 where it states none. Raises ``ModelError``."""
    try:
        parts = [value for number, value in _fields(memoryview(model)) if number == OPSET_IMPORT]
        stated = [dict(_fields(part)) for part in parts if isinstance(part, memoryview)]
    except IndexError as error:
        raise ModelError("not an ONNX graph: its bytes end in the middle of a field; export the model again") from error
    own = [each.get(2) for each in stated if bytes(each.get(1, b"")) in (b"", b"ai.onnx")]
    return max((version for version in own if isinstance(version, int)), default=0)


def _mentions(kind: str, data: memoryview, depth: int) -> bool:
    if depth > DEEPEST:
        raise RecursionError
    for number, value in _fields(data):
        if kind == "tensor":
            # An empty location is the default: inside.
            if number == EXTERNAL_DATA or (number == DATA_LOCATION and value != 0):
                return True
            continue
        inner = NESTED[kind].get(number)
        if inner is not None and isinstance(value, memoryview) and _mentions(inner, value, depth + 1):
            return True
    return False


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(number, bytes or integer) of each field of one message, in wire order."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        wire = tag & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        if wire == 2:
            length, place = _varint(data, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise IndexError
        if place + length > len(data):
            raise IndexError
        yield tag >> 3, data[place : place + length]
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise IndexError
