"""LiteRT (TensorFlow Lite): a torch image classifier as .tflite, converted by litert-torch in a Python of its own."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import numpy as np

from hfcompress.errors import OptionError, Reason, UserError, require, require_numbers
from hfcompress.formats.onnx import copy_companions
from hfcompress.formats.onnx_image_stages import batches, calibration_rows
from hfcompress.formats.runtimes.litert_network import LiteRTNetwork, find_python
from hfcompress.stage import TENSORS
from hfcompress.tasks.image_classification import ImageClassification

Array = np.ndarray[Any, Any]

PARITY = 1e-3  # of the largest logit, in float32
COMPARED = 64  # images


@dataclass(frozen=True)
class ExportLiteRT:
    """Write model.tflite of a torch image classifier, in int8 with ranges of training images, or in float32."""

    bits: Literal[8, 32] = 8
    """Of weights and activations: 8 or 32."""
    calibration_images: int = 128
    """Training images that ranges are taken from; drawn evenly from the classes."""
    seed: int = 0

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TENSORS

    def __post_init__(self) -> None:
        require_numbers(self)
        require(self, 1, "calibration_images")
        if self.bits not in (8, 32):
            raise OptionError("bits", "32 or 8", self.bits)

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        if self.bits == 8:
            return {}
        return dict.fromkeys(("calibration_images", "seed"), Reason("with {bits} {given}", given=self.bits))

    def __call__(self, out: Path, *, model: Path, task: ImageClassification) -> dict[str, Any]:
        """Write the file, and hold its logits against torch's on validation images.

        Raises:
            UserError: litert-torch is not there, cannot convert the model, or its float32 file answers otherwise.
        """
        from hfcompress.architectures.models import load_classifier, load_image_processor
        from hfcompress.tasks.image_data import pixel_values

        processor = load_image_processor(model)
        pixels = np.asarray(pixel_values(processor, task.data.inputs("validation", COMPARED)))
        calibration = None
        if self.bits == 8:
            rows = calibration_rows(task.data.label_ids("train"), self.calibration_images, self.seed)
            calibration = np.concatenate(list(batches(task, processor, rows)))
        found = to_litert(load_classifier(model), out, pixels, calibration, None)
        copy_companions(model, out)
        return found

    def predict(self, model: Any, *, task: ImageClassification) -> Any:
        return model.with_(format="litert", weight_bits=self.bits)


def to_litert(
    network: Any, out: Path, pixel_values: Array, calibration: Array | None, python: Path | None
) -> dict[str, Any]:
    """Write model.tflite and say how it answers beside torch.

    Args:
        network: an image classifier in fp32 on the CPU.
        pixel_values: float32 [images, 3, height, width] that both answer; the file takes one image of this size.
        calibration: images for the ranges of an int8 model; None for float32.

    Raises:
        UserError: litert-torch is not there, cannot convert the model, or its float32 model answers otherwise.
    """
    import torch

    from hfcompress.formats.onnx_images import ImageLogits

    python = find_python(python)
    with TemporaryDirectory() as name:
        work = Path(name)
        with torch.inference_mode():
            expected = network(torch.from_numpy(pixel_values)).logits.numpy()
        example = {"pixel_values": torch.from_numpy(pixel_values[:1])}
        program = torch.export.export(ImageLogits(network).eval(), (), example)
        torch.export.save(program, work / "program.pt2")
        np.save(work / "example.npy", pixel_values[:1])
        if calibration is not None:
            np.save(work / "calibration.npy", calibration)
        script = Path(__file__).with_name("litert_convert.py")
        done = subprocess.run([python, "-P", script, work], capture_output=True, text=True)
        if done.returncode or not (work / "model.tflite").is_file():
            cause = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise UserError(f"litert-torch cannot convert this model: {cause}")
        found = LiteRTNetwork(work, 1, python).run({"pixel_values": pixel_values})
        distance, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
        if calibration is None and not distance <= PARITY * largest:
            raise UserError(f"the LiteRT model's logits differ by {distance:.2g} from torch's: not delivered")
        shutil.copyfile(work / "model.tflite", out / "model.tflite")
    return {
        "bytes": (out / "model.tflite").stat().st_size,
        "images": len(found),
        "largest_logit_difference": distance,
        "largest_logit": largest,
        "top1_agreement": float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()),
    }
