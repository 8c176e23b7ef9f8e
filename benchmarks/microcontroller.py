"""Activation memory on a microcontroller, predicted and counted, with and without patches.

`python -m benchmarks.microcontroller FOLDER IMAGES` takes a trained MobileNetV2 and a parquet file of images (columns
image, label), quantizes it at several resolutions (its widths cannot be changed without training), runs the int8 graph
in the interpreter that counts live bytes, whole and in patches, and holds the logits against onnxruntime's. Then it
prints which widths and resolutions fit the limits, with another number of labels perhaps.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as parquet

from hfcompress.architectures.models import load_classifier, load_image_processor
from hfcompress.budget import ImageBudget
from hfcompress.folders.record import cpu_name, read_json
from hfcompress.formats.onnx_images import export_images
from hfcompress.formats.runtimes.sessions import onnx_session
from hfcompress.formats.tensorrt import static_qdq
from hfcompress.planning.devices.arena import run
from hfcompress.planning.devices.integer_graph import read_onnx
from hfcompress.planning.devices.microcontroller import plan_microcontroller
from hfcompress.planning.devices.patches import smallest_patches
from hfcompress.planning.devices.tensor_lifetimes import KB, plan_memory
from hfcompress.runs.delivery import spread
from hfcompress.tasks.image_data import decode, pixel_values

CALIBRATED, COUNTED = 32, 3  # images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[224, 160, 128, 96])
    parser.add_argument("--sram-kb", type=float, default=256)
    parser.add_argument("--flash-kb", type=float, default=1024)
    parser.add_argument("--labels", type=int, default=2)
    arguments = parser.parse_args()
    table = parquet.read_table(arguments.images).to_pydict()
    print(f"{cpu_name()}; {len(table['label'])} images; KB = 1024 bytes")
    print(
        f"{'pixels':>6} {'top-1':>6} {'run':24} {'predicted KB':>12} {'counted KB':>10} {'live KB':>8} {'flash KB':>8}"
        f" {'MMACs':>6} {'more':>5}  {'patches':>14}  {'from whole':>10} {'onnxruntime':>11} {'a step':>6}"
    )
    for resolution in arguments.resolutions:
        show(arguments.folder, table, resolution)
    config = read_json(arguments.folder / "config.json")
    names = [str(i) for i in range(arguments.labels)]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: int(name) for name in names}}
    budget = ImageBudget(sram_kb=arguments.sram_kb, flash_kb=arguments.flash_kb)
    print("\n".join(plan_microcontroller(config, 224, budget).lines()))


def show(folder: Path, table: dict[str, Any], resolution: int) -> None:
    """The rows of one resolution."""
    processor: Any = load_image_processor(folder)
    processor.size = {"shortest_edge": resolution}
    processor.crop_size = {"height": resolution, "width": resolution}
    pixels = pixel_values(processor, [decode(row) for row in table["image"]])
    with tempfile.TemporaryDirectory() as name:
        export_images(load_classifier(folder), Path(name), (resolution, resolution))
        batches = [image[None] for image in spread(pixels, CALIBRATED)]
        onnx.save(static_qdq(Path(name) / "model.onnx", batches, symmetric=False), str(Path(name) / "int8.onnx"))
        graph = read_onnx(Path(name) / "int8.onnx")
        session = onnx_session(Path(name) / "int8.onnx", threads=2)
    logits = np.concatenate([session.run(None, {"pixel_values": image[None]})[0] for image in pixels])
    top1 = float((logits.argmax(axis=1) == np.array(table["label"])).mean())
    whole = [run(graph, plan_memory(graph), image).logits for image in pixels[:COUNTED]]
    step = graph.quantization[graph.output].scale
    ways = {"whole": None, "patches": smallest_patches(graph), "patches, image outside": smallest_patches(graph, True)}
    for way, found in ways.items():
        if found is None and way != "whole":
            continue
        ran, memory = (graph, plan_memory(graph)) if found is None else (found.graph, found.memory)
        counted = [run(ran, memory, image) for image in pixels[:COUNTED]]
        apart = [
            max(float(np.abs(c.logits - other[i]).max()) for i, c in enumerate(counted)) for other in (whole, logits)
        ]
        more = 0.0 if found is None else found.overhead
        patches = "–" if found is None else f"{found.operations} ops in {found.grid}x{found.grid}"
        print(
            f"{resolution:>6} {top1:>6.1%} {way:24} {memory.arena / KB:>12.1f} {counted[0].arena / KB:>10.1f} "
            f"{counted[0].peak / KB:>8.1f} {graph.flash / KB:>8.1f} {ran.macs / 1e6:>6.1f} {more:>5.0%}  {patches:>14}"
            f"  {apart[0]:>10.2g} {apart[1]:>11.2g} {step:>6.2g}"
        )


if __name__ == "__main__":
    main()
