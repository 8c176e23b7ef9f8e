"""export: a run's model in another format."""

import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from hfcompress import api
from hfcompress.cli.common import quiet
from hfcompress.runs.own_data import require_options


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
    require_options(to, bits, images, litert_python)  # before the libraries are loaded
    quiet()
    found = api.export(model, to, out, bits=bits, images=images, litert_python=litert_python)
    for line in found.lines:
        print(line)
    print(f"written: {found.folder}", file=sys.stderr)
    return 0
