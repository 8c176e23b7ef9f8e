"""tensorrt-onnx: an image classifier's int8 graph from which TensorRT's trtexec builds an engine on the device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.formats.known.onnx import OnnxImages


@dataclass(frozen=True)
class TensorRTOnnx(OnnxImages):
    """model.onnx that keeps TensorRT's rules for Q/DQ, and tensorrt.json with the command that builds the engine.

    No engine can be built or run without the GPU that it is for: answers, time and memory are onnxruntime's of the
    same graph, and reports say so.
    """

    name: ClassVar[str] = "tensorrt-onnx"
    word: ClassVar[str] = "tensorrt-onnx"
    source: ClassVar[str] = "onnx-images"
    folder: ClassVar[str] = "tensorrt/"
    bound: ClassVar[float] = 0.3  # weights and activations in int8, of a model whose weights are random

    def holds(self, folder: Path) -> bool:
        return (folder / "tensorrt.json").is_file() and super().holds(folder)

    def write(self, out: Path, *, model: Path, task: Any) -> dict[str, Any]:
        from hfcompress.formats.tensorrt_stage import ExportTensorRT

        return ExportTensorRT()(out, model=model, task=task)

    def place(self, file: str, integer: bool) -> str:
        return self.folder + file


TENSORRT_ONNX = TensorRTOnnx()
