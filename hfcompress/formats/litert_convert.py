"""Run by the Python that has litert-torch, on its own: a torch program becomes a .tflite.

python -P litert_convert.py FOLDER, which holds program.pt2, example.npy [1, 3, height, width] and, for int8,
calibration.npy [images, 3, height, width]. It writes model.tflite there.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np


def convert(folder: Path) -> None:
    """model.tflite in float32."""
    import litert_torch
    import torch

    program = torch.export.load(folder / "program.pt2")
    example = torch.from_numpy(np.load(folder / "example.npy"))
    found = litert_torch.convert(program.module(), sample_kwargs={"pixel_values": example})
    found.export(str(folder / "model.tflite"))


def quantize(folder: Path, calibration: Any) -> None:
    """The same in int8: weights a channel, activations by the images that are calibrated with, int8 in and out."""
    from ai_edge_quantizer import quantizer, recipe

    work = quantizer.Quantizer(str(folder / "model.tflite"), recipe.static_wi8_ai8())
    batches = [{"pixel_values": image[None]} for image in calibration]
    found = work.quantize(work.calibrate({"serving_default": batches}))
    (folder / "model.tflite").unlink()
    found.export_model(str(folder / "model.tflite"))


def main() -> None:
    folder = Path(sys.argv[1])
    convert(folder)
    if (folder / "calibration.npy").is_file():
        quantize(folder, np.load(folder / "calibration.npy"))


if __name__ == "__main__":
    main()
