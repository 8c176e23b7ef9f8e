"""Run by the Python that has LiteRT, on its own: a model.tflite answers images, or is measured alone.

python -P litert_worker.py answer MODEL.tflite THREADS: reads requests from standard input, writes answers to standard
output. A request is four integers of 8 bytes (images, channels, height, width) and the float32 pixels; one of no
images asks for the last request again. An answer is two integers (images, classes) and the float32 logits. What is
damaged ends the process with a line on standard error.

python -P litert_worker.py measure MODEL.tflite THREADS IMAGES: prints one JSON line, see `measure`.
"""

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


class Model:
    """A classifier of one image at a time in LiteRT's interpreter, pixels and logits in float32."""

    def __init__(self, file: str, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter: Any = Interpreter(file, num_threads=threads)
        self.interpreter.allocate_tensors()
        self.source = self.interpreter.get_input_details()[0]
        self.target = self.interpreter.get_output_details()[0]

    def logits(self, pixels: Any) -> Any:
        """[images, classes] of [images, channels, height, width]."""
        return np.stack([self.answer(image[None]) for image in pixels]).astype(np.float32)

    def answer(self, image: Any) -> Any:
        """[classes] of [1, channels, height, width]."""
        self.interpreter.set_tensor(self.source["index"], as_stored(image, self.source))
        self.interpreter.invoke()
        found = self.interpreter.get_tensor(self.target["index"])[0]
        scale, zero_point = self.target["quantization"]
        return (found.astype(np.float32) - zero_point) * scale if scale else found


def as_stored(pixels: Any, details: Any) -> Any:
    """Real values in the type that the input has."""
    scale, zero_point = details["quantization"]
    if not scale:
        return pixels.astype(details["dtype"])
    limits = np.iinfo(details["dtype"])
    return np.clip(np.rint(pixels / scale) + zero_point, limits.min, limits.max).astype(details["dtype"])


def answer(file: str, threads: int) -> None:
    """Answer requests until standard input ends."""
    model, source, target = Model(file, threads), sys.stdin.buffer, sys.stdout.buffer
    target.write(b"ready\n")
    target.flush()
    pixels = np.zeros((0, 1, 1, 1), np.float32)
    while len(header := source.read(32)) == 32:
        shape = struct.unpack("<4q", header)
        if shape[0]:
            pixels = np.frombuffer(source.read(4 * int(np.prod(shape))), np.float32).reshape(shape)
        logits = model.logits(pixels)
        target.write(struct.pack("<2q", *logits.shape) + logits.tobytes())
        target.flush()


def measure(file: str, threads: int, images: int) -> dict[str, float]:
    """peak_rss_mb, bare_rss_mb (after the imports, before the model) and load_ms of a model that answers."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: F401  (part of the bare runtime)

    bare = rss_mb()
    begun = time.perf_counter()
    model = Model(file, threads)
    load_ms = (time.perf_counter() - begun) * 1e3
    pixels = np.zeros((images, *model.source["shape"][1:]), np.float32)
    for _ in range(3):
        model.logits(pixels)
    return {"peak_rss_mb": rss_mb(), "bare_rss_mb": bare, "load_ms": load_ms}


def rss_mb() -> float:
    """The highest resident memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def main() -> None:
    mode, file, threads, *more = sys.argv[1:]
    if mode == "answer":
        answer(file, int(threads))
    else:
        print(json.dumps(measure(file, int(threads), int(more[0]))))


if __name__ == "__main__":
    main()
