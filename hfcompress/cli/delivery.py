"""export: a run's model in another format."""

import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from hfcompress.cli.common import quiet
from hfcompress.errors import UserError


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
        images: a folder or parquet file of images, for calibration and for comparing LiteRT with torch.
        litert_python: the Python of an environment that has litert-torch, where this one has not.
    """
    if bits not in (8, 32):
        raise UserError(f"--bits {bits}: 32 or 8")
    if bits == 8 and to != "litert":
        raise UserError(f"--bits 8: {to} has the bits that the model has; leave it out")
    quiet()
    from hfcompress import delivery

    place = out or Path(f"{Path(model).expanduser().resolve().name}-{to}")
    found = delivery.export(
        model,
        to,
        place,
        bits=bits,
        images=None if images is None else delivery.read_images(images),
        python=litert_python,
    )
    for line in found.lines:
        print(line)
    print(f"written: {found.folder}", file=sys.stderr)
    return 0
