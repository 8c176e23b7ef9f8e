"""Time and memory of image classifiers as `plan` predicts them, beside what was measured of the same networks.

`python -m benchmarks.image_plan` makes networks of random weights in the recipes' own stages, exports and quantizes
them. First everything is predicted from the configs, then one image is run through each in turn, and a fresh process
each tells its peak memory.
"""

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hfcompress.evaluation import latency
from hfcompress.folders.record import cpu_name
from hfcompress.formats.memory import fresh_process
from hfcompress.formats.onnx_image_stages import ExportImages, StaticInt8Images
from hfcompress.formats.runtimes.image_predictor import ImagePredictor
from hfcompress.planning.image_graph import images_ms
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.training.new_images import NewImages, NewMobileNet, NewResNet

NETWORKS: dict[str, NewImages] = {
    "MobileNetV2 0.35, 48 x 48": NewMobileNet(),
    "ResNet-14, 32 x 32": NewResNet(),
    "MobileNetV2 1.0, 224 x 224": NewMobileNet(side=224, width=1.0),
    "ResNet of 64 to 512 channels, 224 x 224": NewResNet(side=224, widths=(64, 128, 256, 512)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=40)
    arguments = parser.parse_args()
    threads, task = arguments.threads, ImageClassification()
    print(f"{cpu_name()}, {threads} threads, one image a request; p: predicted")
    columns = ("p50 ms, p", "p50 ms", "fastest", "MB, p", "MB", "bare +, p", "bare +")
    print(f"{'':8} " + " ".join(f"{column:>9}" for column in columns))
    for name, new in NETWORKS.items():
        predicted = predictions(new, task, threads)
        with TemporaryDirectory() as work:
            folders = written(new, task, Path(work))
            requests: dict[str, Any] = {}
            for kind, folder in folders.items():
                predictor = ImagePredictor(folder, threads)
                requests[kind] = partial(predictor.run, predictor.request())
            times, probes = latency.side_by_side(requests, arguments.runs, back_to_back=True)
            print(f"\n{name}{' (a noisy machine)' if probes['noisy'] else ''}")
            for kind, folder in folders.items():
                memory, found = fresh_process(folder, 1, threads), predicted[kind]
                p50, fastest = latency.percentiles(times[kind])["p50"], min(times[kind])
                over_bare = memory["peak_rss_mb"] - memory["bare_rss_mb"]
                print(
                    f"{kind:8} {found['latency_ms']:9.3f} {p50:9.3f} {fastest:9.3f}"
                    f" {found['ram_mb']:9.0f} {memory['peak_rss_mb']:9.0f}"
                    f" {found['peak_over_bare_mb']:9.1f} {over_bare:9.1f}"
                )


def predictions(new: NewImages, task: ImageClassification, threads: int) -> dict[str, dict[str, Any]]:
    """What a plan says, before anything is written."""
    fp32 = ExportImages().predict(new.predict(task=task), task=task)
    shapes = {"fp32": fp32, "int8": StaticInt8Images().predict(fp32, task=task)}
    networks = {kind: (shape.timed, kind == "int8") for kind, shape in shapes.items()}
    times = images_ms(networks, fp32.size, 1, threads)
    return {kind: shape.predicted(times[kind]) for kind, shape in shapes.items()}


def written(new: NewImages, task: ImageClassification, work: Path) -> dict[str, Path]:
    """The network in fp32 and in static int8 as onnx."""
    folders = {kind: work / kind for kind in ("torch", "fp32", "int8")}
    for folder in folders.values():
        folder.mkdir()
    new(folders["torch"], task=task)
    ExportImages()(folders["fp32"], model=folders["torch"], task=task)
    StaticInt8Images()(folders["int8"], model=folders["fp32"], task=task)
    del folders["torch"]
    return folders


if __name__ == "__main__":
    main()
