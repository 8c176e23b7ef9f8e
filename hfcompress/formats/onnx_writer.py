"""An ONNX graph written node by node, its large tensors streamed into one file beside it."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from hfcompress.formats.matmul_nbits import PAGE

MODEL, DATA = "model.onnx", "model.onnx.data"
MICROSOFT = "com.microsoft"

Array = np.ndarray[Any, Any]


class GraphWriter:
    """Nodes and tensors of a graph; large tensors go to the data file at once, in pages of their own."""

    def __init__(self, folder: Path) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.file = folder / f"{DATA}.part"
        self.stream = self.file.open("wb")

    def node(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        """Add a node; its first output's name."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def small(self, name: str, array: Array) -> str:
        """A tensor that lies in model.onnx itself."""
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def large(self, name: str, array: Array) -> str:
        """A tensor that lies in the data file."""
        self.stream.write(bytes(-self.stream.tell() % PAGE))
        offset = self.stream.tell()
        self.stream.write(np.ascontiguousarray(array).data)
        return self.at(name, offset, array.shape, array.dtype)

    def at(self, name: str, offset: int, shape: tuple[int, ...], dtype: Any) -> str:
        """A tensor whose bytes lie in the data file already."""
        from onnx import TensorProto, helper

        tensor = TensorProto(
            name=name,
            dims=shape,
            data_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
            data_location=TensorProto.EXTERNAL,
        )
        length = int(np.prod(shape)) * np.dtype(dtype).itemsize
        for key, value in (("location", DATA), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        self.tensors.append(tensor)
        return name

    def offset_of(self, name: str) -> int:
        """Where a tensor lies in the data file."""
        tensor = next(tensor for tensor in self.tensors if tensor.name == name)
        return int(next(entry.value for entry in tensor.external_data if entry.key == "offset"))

    def save(self, inputs: list[Any], outputs: list[Any]) -> None:
        """Flush the data, then write model.onnx: without it the folder is no model."""
        import onnx
        from onnx import helper

        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        self.file.replace(self.file.with_name(DATA))
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.tensors)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(self.file.with_name(MODEL)))
