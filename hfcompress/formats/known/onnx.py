"""onnx: a classifier as model.onnx beside config.json, which plain onnxruntime runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.formats.format import Files, Kind, Named

TEXT = """import numpy
import onnxruntime
from transformers import AutoConfig, AutoTokenizer

session = onnxruntime.InferenceSession("{folder}/model.onnx")
tokenizer, config = AutoTokenizer.from_pretrained("{folder}"), AutoConfig.from_pretrained("{folder}")
encoded = tokenizer("This licence may be terminated.", return_tensors="np")
feed = {{entry.name: encoded[entry.name].astype(numpy.int64) for entry in session.get_inputs()}}
print(config.id2label[int(session.run(["logits"], feed)[0].argmax())])
"""
IMAGES = """import onnxruntime
from transformers import AutoConfig, AutoImageProcessor
from transformers.image_utils import load_image  # upright, in RGB

session = onnxruntime.InferenceSession("{folder}/model.onnx")
processor, config = AutoImageProcessor.from_pretrained("{folder}"), AutoConfig.from_pretrained("{folder}")
pixels = processor(load_image("image.png"), return_tensors="np")["pixel_values"]
print(config.id2label[int(session.run(["logits"], {{"pixel_values": pixels}})[0].argmax())])
"""
CLICKS = """import numpy
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/model.onnx")
rows = 3
feed = {{
    entry.name: numpy.zeros((rows, *entry.shape[1:]), numpy.float32 if "float" in entry.type else numpy.int64)
    for entry in session.get_inputs()
}}
print(session.run(["logits"], feed)[0])  # of a click and of a conversion
"""


@dataclass(frozen=True)
class Onnx(Files):
    """What the graphs of all kinds of classifiers share."""

    word: ClassVar[str] = "onnx"
    runtime: ClassVar[str] = "onnxruntime"
    weights: ClassVar[str] = "*.onnx"
    library: ClassVar[str] = "onnx"
    bound: ClassVar[float] = 1e-4

    def network(self, folder: Path, threads: int) -> Any:
        from hfcompress.formats.runtimes.networks import OnnxNetwork

        return OnnxNetwork(folder, threads)

    def import_runtime(self, kind: Kind, threads: int) -> None:
        import onnxruntime  # noqa: F401

    def tensors(self, file: Path, bits: dict[str, int]) -> list[Named]:
        from hfcompress.formats.size import named_initializers

        return named_initializers(file)

    def place(self, file: str, integer: bool) -> str:
        """Return where Optimum and transformers.js look for a graph; what lies beside it stays at the root."""
        if not file.startswith("model.onnx"):
            return file
        return "onnx/" + file.replace("model.onnx", f"model{'_quantized' if integer else ''}.onnx")


@dataclass(frozen=True)
class OnnxClicks(Onnx):
    """A click model: ids in, logits of a click and a conversion out."""

    name: ClassVar[str] = "onnx-clicks"
    kinds: ClassVar[tuple[Kind, ...]] = ("clicks",)

    def holds(self, folder: Path) -> bool:
        from hfcompress.formats import kind_of

        return super().holds(folder) and kind_of(folder) == "clicks"

    def write(self, out: Path, *, model: Path, task: Any) -> dict[str, Any]:
        from hfcompress.formats.click_onnx import ExportClicks

        return ExportClicks()(out, model=model, task=task)

    def serve(self, folder: Path, kind: Kind, length: int, threads: int) -> dict[str, float]:
        from hfcompress.formats.memory import serve_clicks

        return serve_clicks(folder, length, threads)

    def usage(self, folder: str, kind: Kind) -> str:
        return CLICKS.format(folder=folder)


@dataclass(frozen=True)
class OnnxImages(Onnx):
    """An image classifier: pixel_values in, logits out."""

    name: ClassVar[str] = "onnx-images"
    kinds: ClassVar[tuple[Kind, ...]] = ("images",)

    def holds(self, folder: Path) -> bool:
        from hfcompress.formats import kind_of

        return super().holds(folder) and kind_of(folder) == "images"

    def write(self, out: Path, *, model: Path, task: Any) -> dict[str, Any]:
        from hfcompress.formats.onnx_image_stages import ExportImages

        return ExportImages()(out, model=model, task=task)

    def serve(self, folder: Path, kind: Kind, length: int, threads: int) -> dict[str, float]:
        from hfcompress.formats.memory import serve_images

        return serve_images(folder, length, threads)

    def usage(self, folder: str, kind: Kind) -> str:
        return IMAGES.format(folder=folder)


@dataclass(frozen=True)
class OnnxText(Onnx):
    """A text classifier: token ids in, logits out; also a graph whose folder says nothing of itself."""

    name: ClassVar[str] = "onnx-text"
    kinds: ClassVar[tuple[Kind, ...]] = ("text",)

    def write(self, out: Path, *, model: Path, task: Any) -> dict[str, Any]:
        from hfcompress.formats.onnx import ExportOnnx

        return ExportOnnx()(out, model=model, task=task)

    def serve(self, folder: Path, kind: Kind, length: int, threads: int) -> dict[str, float]:
        from hfcompress.formats.memory import serve_onnx

        return serve_onnx(folder, length, threads)

    def usage(self, folder: str, kind: Kind) -> str:
        return TEXT.format(folder=folder)


ONNX_CLICKS, ONNX_IMAGES, ONNX_TEXT = OnnxClicks(), OnnxImages(), OnnxText()
