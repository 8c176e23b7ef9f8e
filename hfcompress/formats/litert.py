"""LiteRT (TensorFlow Lite): a torch image classifier as .tflite, converted by litert-torch in a Python of its own."""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hfcompress.errors import UserError
from hfcompress.formats.onnx_export import Array

PARITY = 1e-3  # of the largest logit, in float32
INSTALL = 'make litert, or pip install "torch==2.13.0" "litert-torch==0.10.0"'


def find_python(given: Path | None) -> Path:
    """The Python that has litert-torch: the one that was named, or this one.

    Raises:
        UserError: it cannot import litert-torch.
    """
    python = given or Path(sys.executable)
    try:
        found = subprocess.run(
            [python, "-P", "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('litert_torch') is None)"],
            capture_output=True,
        )
    except OSError as error:
        raise UserError(f"--litert-python {python}: cannot be run ({error.strerror})") from None
    if found.returncode:
        option = f"--litert-python {python}: it" if given else "this Python"
        raise UserError(
            f"{option} has no litert-torch. It wants an older typing-extensions than this environment has: make an "
            f"environment of its own ({INSTALL}) and name its Python with --litert-python"
        )
    return python


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
        np.save(work / "pixel_values.npy", pixel_values)
        if calibration is not None:
            np.save(work / "calibration.npy", calibration)
        script = Path(__file__).with_name("litert_convert.py")
        done = subprocess.run([python, "-P", script, work], capture_output=True, text=True)
        if done.returncode or not (work / "logits.npy").is_file():
            cause = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise UserError(f"litert-torch cannot convert this model: {cause}")
        found = np.load(work / "logits.npy")
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
