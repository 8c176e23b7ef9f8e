"""litert: an image classifier as model.tflite, which LiteRT (TensorFlow Lite) runs on phones and cameras."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.formats.format import Files, Kind, Named

USE = """import json

import numpy
from ai_edge_litert.interpreter import Interpreter

model = Interpreter("{folder}/model.tflite")
model.allocate_tensors()
source, target = model.get_input_details()[0], model.get_output_details()[0]
pixels = numpy.zeros(source["shape"], numpy.float32)  # an image as preprocessor_config.json makes it
scale, zero_point = source["quantization"]
stored = numpy.clip(numpy.rint(pixels / scale) + zero_point, -128, 127).astype(source["dtype"]) if scale else pixels
model.set_tensor(source["index"], stored)
model.invoke()
labels = json.load(open("{folder}/config.json"))["id2label"]
print(labels[str(int(model.get_tensor(target["index"]).argmax()))])
"""


@dataclass(frozen=True)
class LiteRT(Files):
    """model.tflite beside config.json and preprocessor_config.json, run by the Python that has LiteRT."""

    name: ClassVar[str] = "litert"
    word: ClassVar[str] = "litert"
    kinds: ClassVar[tuple[Kind, ...]] = ("images",)
    runtime: ClassVar[str] = "LiteRT"
    weights: ClassVar[str] = "*.tflite"
    folder: ClassVar[str] = "litert/"
    library: ClassVar[str] = "litert"
    own_environment: ClassVar[bool] = True
    bound: ClassVar[float] = 0.3  # weights and activations in int8, of a model whose weights are random

    def holds(self, folder: Path) -> bool:
        """Return whether the folder has a .tflite and no weights of torch beside it, as many a Hub repository has."""
        return (folder / "model.tflite").is_file() and not any(folder.glob("*.safetensors"))

    def python(self) -> Path:
        from hfcompress.formats.runtimes.litert_network import find_python

        return find_python(package="ai_edge_litert")

    def write(self, out: Path, *, model: Path, task: Any) -> dict[str, Any]:
        from hfcompress.formats.litert import ExportLiteRT

        return ExportLiteRT()(out, model=model, task=task)

    def network(self, folder: Path, threads: int) -> Any:
        from hfcompress.formats.runtimes.litert_network import LiteRTNetwork

        return LiteRTNetwork(folder, threads)

    def tensors(self, file: Path, bits: dict[str, int]) -> list[Named]:
        from hfcompress.formats.tflite_file import stored_tensors

        return stored_tensors(file)

    def import_runtime(self, kind: Kind, threads: int) -> None:
        self.python()

    def serve(self, folder: Path, kind: Kind, length: int, threads: int) -> dict[str, float]:
        from hfcompress.formats.runtimes.litert_network import measured

        return measured(folder / "model.tflite", threads, length)

    def usage(self, folder: str, kind: Kind) -> str:
        return USE.format(folder=folder)


LITERT = LiteRT()
