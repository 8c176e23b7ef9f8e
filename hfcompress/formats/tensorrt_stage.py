"""tensorrt_stage: an fp32 ONNX image classifier as int8 ONNX that keeps TensorRT's rules."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.architectures.models import load_image_processor
from hfcompress.errors import require, require_numbers
from hfcompress.folders.record import write_json
from hfcompress.formats.bits_claimed import require_stored
from hfcompress.formats.memory import image_size
from hfcompress.formats.onnx import copy_companions
from hfcompress.formats.onnx_image_stages import batches, calibration_rows
from hfcompress.stage import GRAPHS
from hfcompress.tasks.image_classification import ImageClassification

NOTE = (
    "{name} is ONNX from which trtexec builds a TensorRT engine on the device. No engine was built here: its answers, "
    "time and memory are onnxruntime's of the same graph on this CPU."
)


@dataclass(frozen=True)
class ExportTensorRT:
    """Quantize symmetrically, Q/DQ where TensorRT's documentation wants it, and write trtexec's command beside it."""

    calibration_images: int = 128
    """Training images that ranges are taken from; drawn evenly from the classes."""
    seed: int = 0

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = GRAPHS

    def __post_init__(self) -> None:
        require_numbers(self)
        require(self, 1, "calibration_images")

    def __call__(self, out: Path, *, model: Path, task: ImageClassification) -> dict[str, Any]:
        """Write model.onnx and tensorrt.json.

        Args:
            model: a folder with model.onnx in fp32.

        Raises:
            UserError: the graph breaks one of TensorRT's rules.
        """
        import onnx

        from hfcompress.formats.tensorrt import quantize_for_tensorrt
        from hfcompress.formats.tensorrt_rules import RULES, require, trtexec

        rows = calibration_rows(task.data.label_ids("train"), self.calibration_images, self.seed)
        found = quantize_for_tensorrt(model / "model.onnx", batches(task, load_image_processor(model), rows))
        require(found, f"{model.name}/model.onnx")
        onnx.save(found, str(out / "model.onnx"))
        copy_companions(model, out)
        command = trtexec(found, "model.onnx", {"pixel_values": (1, 3, *image_size(model))})
        write_json(out / "tensorrt.json", {"trtexec": command, "rules": [rule.name for rule in RULES]})
        require_stored(out, 8, "onnxruntime's quantizer knows too few weights of it; give another {.base}")
        return {"trtexec": command, "rules": len(RULES), "calibration_images": len(rows)}

    def predict(self, model: Any, *, task: ImageClassification) -> Any:
        return model.with_(format="tensorrt-onnx", weight_bits=8)
