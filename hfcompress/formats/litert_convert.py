"""Run by the Python that has litert-torch, on its own: a torch program becomes a .tflite, and answers in LiteRT.

python -P litert_convert.py FOLDER, which holds program.pt2, pixel_values.npy [images, 3, height, width] (what is to be
answered) and, for int8, calibration.npy. It writes model.tflite and logits.npy there.
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
    example = torch.from_numpy(np.load(folder / "pixel_values.npy")[:1])
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


def answer(folder: Path) -> None:
    """logits.npy, one image at a time in LiteRT's interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(str(folder / "model.tflite"))
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    logits = []
    for image in np.load(folder / "pixel_values.npy"):
        interpreter.set_tensor(source["index"], as_stored(image[None], source))
        interpreter.invoke()
        found = interpreter.get_tensor(target["index"])[0]
        scale, zero_point = target["quantization"]
        logits.append((found.astype(np.float32) - zero_point) * scale if scale else found)
    np.save(folder / "logits.npy", np.stack(logits).astype(np.float32))


def as_stored(pixels: Any, details: Any) -> Any:
    """Real values in the type that the input has."""
    scale, zero_point = details["quantization"]
    if not scale:
        return pixels.astype(details["dtype"])
    limits = np.iinfo(details["dtype"])
    return np.clip(np.rint(pixels / scale) + zero_point, limits.min, limits.max).astype(details["dtype"])


def main() -> None:
    folder = Path(sys.argv[1])
    convert(folder)
    if (folder / "calibration.npy").is_file():
        quantize(folder, np.load(folder / "calibration.npy"))
    answer(folder)


if __name__ == "__main__":
    main()
