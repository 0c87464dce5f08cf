"""8 bits by NNCF, for OpenVINO: quantized nodes that OpenVINO runs as such, in the same kind of ONNX graph."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnx

from clipette.errors import UnsupportedError
from clipette.export.quantize import Batches, is_convolutional, quiet, unshared


class Nncf:
    """8-bit weights and activations, whose ranges come from ``batches``, as NNCF places them.

    Raises ``UnsupportedError`` where NNCF is not installed or cannot quantize the graph.
    """

    def __init__(self, graph: bytes, batches: Batches) -> None:
        try:
            import nncf  # noqa: F401
        except ImportError as error:
            raise UnsupportedError("--precision nncf needs NNCF and OpenVINO: pip install 'clipette[openvino]'") from (
                error
            )
        if not batches:
            raise UnsupportedError("quantization by NNCF needs data to calibrate with: name it with --data")
        self.graph = graph
        self.batches = batches
        self._model = unshared(onnx.load_from_string(graph)).SerializeToString()

    def __call__(self, keep: Sequence[str] = ()) -> bytes:
        """The graph in 8 bits, but for the nodes in ``keep``."""
        import nncf

        transformer = not is_convolutional(self.graph)
        logging.getLogger("nncf").setLevel(logging.ERROR)
        with quiet():
            try:
                model = nncf.quantize(
                    onnx.load_from_string(self._model),
                    nncf.Dataset([dict(batch) for batch in self.batches]),
                    subset_size=len(self.batches),
                    preset=nncf.QuantizationPreset.MIXED,
                    model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                    ignored_scope=nncf.IgnoredScope(names=list(keep), validate=False),
                )
            except Exception as error:  # it raises many kinds
                first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise UnsupportedError(f"NNCF cannot quantize this graph ({first}): use --precision int8") from error
        out: bytes = model.SerializeToString()
        return out
