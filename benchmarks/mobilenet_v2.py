"""MobileNetV2 on photographs: fp32 and static int8 in onnxruntime, top-1 and latency side by side.

`python -m benchmarks.mobilenet_v2 DATA` takes the trained model and its 300 images from the real data. Each way of
calibrating is done twice: what one half of the images is quantized with is tested on the other half, so that all 300
are test images and none was seen.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from datasets import Image, load_dataset

from hfcompress.architectures.models import load_classifier, load_image_processor
from hfcompress.evaluation import latency
from hfcompress.evaluation.drawn import Drawn, paired_difference
from hfcompress.evaluation.metrics import METRICS
from hfcompress.evaluation.statistics import Difference
from hfcompress.folders.record import cpu_name
from hfcompress.formats import onnx_export
from hfcompress.formats.onnx_export import Array
from hfcompress.formats.onnx_image_stages import CALIBRATION_BATCH
from hfcompress.formats.onnx_images import export_images, require_parity
from hfcompress.formats.runtimes.sessions import onnx_session
from hfcompress.formats.tensorrt import static_qdq
from hfcompress.tasks.image_data import decode, pixel_values

CALIBRATION = 32  # images of the other half
BATCH = 20
WAYS = ("uint8", "uint8-percentile", "uint8-entropy", "int8-symmetric")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=60)
    arguments = parser.parse_args()
    pixels, labels = images(arguments.data / "mobilenet_v2")
    with TemporaryDirectory() as work:
        fp32 = fp32_onnx(arguments.data / "mobilenet_v2", Path(work), pixels[:8])
        models, logits = {"fp32": fp32}, {"fp32": answers(fp32, pixels)}
        for way in arguments.ways:
            models[way], logits[way] = both_halves(way, fp32, pixels)
        print(f"{cpu_name()}, {arguments.threads} threads, {len(labels)} images")
        print_accuracy(logits, labels)
        print_kernels(models)
        print_latency(models, pixels[:1], arguments.threads, arguments.runs)


def images(folder: Path) -> tuple[Array, Array]:
    """pixel_values [images, 3, 224, 224] by the model's own processor, and labels."""
    rows = load_dataset("parquet", data_files=str(folder / "images.parquet"), split="train")
    rows = rows.cast_column("image", Image(decode=False))
    processor = load_image_processor(folder)
    pixels = [pixel_values(processor, [decode(row["image"])]) for row in rows]
    return np.concatenate(pixels), np.array(rows["label"])


def fp32_onnx(model: Path, folder: Path, pixels: Array) -> Path:
    """model.onnx; its logits are torch's on these images."""
    network = load_classifier(model)
    export_images(network, folder, pixels.shape[2:])
    require_parity(network, folder / "model.onnx", pixels)
    return folder / "model.onnx"


def quantize(way: str, fp32: Path, out: Path, calibration: Array) -> Path:
    """One way of static quantization."""
    methods = {"uint8-percentile": "percentile", "uint8-entropy": "entropy"}
    symmetric = way == "int8-symmetric"
    found = static_qdq(
        fp32,
        [calibration[start : start + CALIBRATION_BATCH] for start in range(0, len(calibration), CALIBRATION_BATCH)],
        symmetric=symmetric,
        calibration=methods.get(way, "minmax"),
        extra_options={"ActivationSymmetric": symmetric},
    )
    onnx.save(found, str(out))
    return out


def both_halves(way: str, fp32: Path, pixels: Array) -> tuple[Path, Array]:
    """Logits of all images, each by the model that was calibrated on the other half; and the first model."""
    halves = [np.arange(0, len(pixels), 2), np.arange(1, len(pixels), 2)]
    logits: Any = None
    for number, (seen, tested) in enumerate((halves, halves[::-1])):
        model = quantize(way, fp32, fp32.with_name(f"{way}-{number}.onnx"), pixels[seen[:CALIBRATION]])
        found = answers(model, pixels[tested])
        logits = np.empty((len(pixels), found.shape[1]), np.float32) if logits is None else logits
        logits[tested] = found
    return fp32.with_name(f"{way}-0.onnx"), logits


def answers(model: Path, pixels: Array) -> Array:
    """Logits [images, classes]."""
    session = onnx_session(model, threads=2)
    parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    return np.concatenate([session.run(["logits"], {"pixel_values": part})[0] for part in parts])


def print_accuracy(logits: dict[str, Array], labels: Array) -> None:
    """Top-1, its paired difference to fp32, and how many answers changed."""
    print(f"\n{'model':18} {'top-1':>7} {'difference, points (95%)':>28} {'answers changed':>16}")
    whole = logits["fp32"].argmax(axis=1)
    for name, found in logits.items():
        answer = found.argmax(axis=1)
        text = ""
        if name != "fp32":
            d = difference(whole == labels, answer == labels)
            text = f"{100 * d.difference:+.2f} ({100 * d.lower_bound:+.2f} to {100 * d.upper_bound:+.2f})"
        changed = int((answer != whole).sum())
        print(f"{name:18} {100 * (answer == labels).mean():7.2f} {text:>28} {changed:>16}")


def difference(before: Array, after: Array) -> Difference:
    """The paired difference of accuracy, from which answers are right, each image being its own group."""
    groups, right = [str(i) for i in range(len(before))], np.ones(len(before), int)
    # a confusion matrix of right and wrong alone: one of 1,001 classes for each image would not fit in memory
    one, other = (Drawn(found.astype(int), right, groups, resamples=4000, seed=0) for found in (before, after))
    return paired_difference(one, other, METRICS["accuracy"], 0.95)


def print_kernels(models: dict[str, Path]) -> None:
    """What onnxruntime runs: its optimized graph, counted."""
    print()
    for name, file in models.items():
        kernels = Counter(node.op_type for node in onnx_export.optimized_nodes(file))
        print(f"{name:18} {file.stat().st_size / 1e6:6.2f} MB  {dict(kernels.most_common())}")


def print_latency(models: dict[str, Path], pixels: Array, threads: int, runs: int) -> None:
    """Interleaved requests of one image: medians, and the fastest, which other work on the machine disturbs least."""
    requests: dict[str, Callable[[], object]] = {
        name: partial(onnx_session(file, threads).run, ["logits"], {"pixel_values": pixels})
        for name, file in models.items()
    }
    times, probes = latency.side_by_side(requests, runs, back_to_back=True)
    noisy = " (a noisy machine)" if probes["noisy"] else ""
    print(f"\n{'model':18} {'p50 ms':>8} {'times as fast':>14} {'fastest ms':>11} {'times as fast':>14}{noisy}")
    found = {name: (float(np.median(taken)), min(taken)) for name, taken in times.items()}
    for name, (median, fastest) in found.items():
        ratios = found["fp32"][0] / median, found["fp32"][1] / fastest
        print(f"{name:18} {median:8.2f} {ratios[0]:14.2f} {fastest:11.2f} {ratios[1]:14.2f}")


if __name__ == "__main__":
    main()
