"""export: a run's model in another format."""

import inspect
import sys
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from hfcompress.cli.common import quiet
from hfcompress.errors import UserError
from hfcompress.runs.recipes import load_recipe


def export(
    model: Positional[str],
    to: Literal["onnx", "litert", "tensorrt-onnx"],
    out: Path | None = None,
    bits: int = 32,
    images: Path | None = None,
    litert_python: Path | None = None,
) -> int:
    """Write a run's compressed model as ONNX, LiteRT (.tflite), or ONNX for TensorRT with the trtexec line.

    Args:
        model: a run, whose compressed model is meant, or the folder of one model.
        to: onnx (as it is), litert (image classifiers, by litert-torch) or tensorrt-onnx (symmetric Q/DQ, checked).
        out: a new folder [NAME-FORMAT].
        bits: of a LiteRT model: 32, or 8 calibrated on --images.
        images: a folder or parquet file of images, for calibration and for comparing LiteRT with torch [the run's
            training images].
        litert_python: the Python of an environment that has litert-torch, where this one has not.
    """
    if bits not in (8, 32):
        raise UserError(f"--bits {bits}: 32 or 8")
    if bits == 8 and to != "litert":
        raise UserError(f"--bits 8: {to} has the bits that the model has; leave it out")
    if images is not None and to == "onnx":
        raise UserError(f"--images {images}: onnx is written without images; leave it out")
    if litert_python is not None and to != "litert":
        raise UserError(f"--litert-python {litert_python}: {to} needs no LiteRT; leave it out")
    quiet()
    from hfcompress.runs import delivery

    place = out or Path(f"{Path(model).expanduser().resolve().name}-{to}")
    found = delivery.export(
        model,
        to,
        place,
        bits=bits,
        images=images_of(model, images),
        python=litert_python,
    )
    for line in found.lines:
        print(line)
    print(f"written: {found.folder}", file=sys.stderr)
    return 0


def images_of(model: str, given: Path | None) -> Any:
    """Where images come from: what was given, else the run's own data; None where that is neither here nor images."""
    from hfcompress.runs import delivery
    from hfcompress.runs.lock import LOCK, locked_task, read_lock

    if given is not None:
        return delivery.read_images(given)
    if not (Path(model) / LOCK).is_file():
        return None
    locked = read_lock(Path(model) / LOCK)
    default = inspect.signature(load_recipe(locked["recipe"]).recipe).parameters["task"].default
    if not default.has_images or isinstance(locked["options"]["task"]["dataset"], dict):
        return None
    return delivery.task_images(locked_task(locked, default, None))
