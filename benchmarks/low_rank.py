"""Factors without any training after them: plain against activation-weighted decompositions at equal cost.

`python -m benchmarks.low_rank DATA` prints two tables: the shipped licence teacher's linear layers in two factors, at
several shares of their bytes, and a ResNet-20's convolutions (CIFAR-10, from the real data's folder) by SVD, Tucker-2
and CP at several shares of their FLOPs. "uniform" keeps the same share of every layer, the others allot ranks over the
layers. KL and equal answers are to the model before.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cifar_resnet import images, trained
from hfcompress.architectures import encoders
from hfcompress.architectures.models import load_classifier, load_tokenizer
from hfcompress.compress.factorize.factorize import Factorize
from hfcompress.compress.factorize.ranks import (
    Layer,
    Measure,
    Option,
    by_budget,
    find_layers,
    layer_options,
    put,
    watch,
)
from hfcompress.folders.record import cpu_name
from hfcompress.recipes import licence_teacher

BATCH = 32
Answers = Callable[[nn.Module], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--part", choices=("teacher", "resnet", "both"), default="both")
    parser.add_argument("--texts", type=int, default=256, help="test texts, evenly spaced")
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--calibration", type=int, default=256, help="training examples, evenly over the classes")
    parser.add_argument("--kinds", nargs="+", default=["svd", "tucker2", "cp"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{cpu_name()}, {arguments.threads} threads; {arguments.calibration} calibration examples")
    if arguments.part != "resnet":
        teacher(arguments.texts, arguments.calibration)
    if arguments.part != "teacher":
        resnet(arguments.data, arguments.images, arguments.calibration, arguments.kinds)


def teacher(count: int, calibration: int) -> None:
    """The licence teacher, loaded in fp32."""
    task, folder = licence_teacher.TASK, licence_teacher.FOLDER
    network, tokenizer = load_classifier(folder), load_tokenizer(folder)
    texts, labels = task.data.texts("test"), torch.tensor(task.data.label_ids("test"))
    chosen = torch.linspace(0, len(texts) - 1, min(count, len(texts))).long()
    order = sorted(chosen.tolist(), key=lambda row: len(texts[row]))
    options = {"truncation": True, "max_length": task.max_length, "padding": True, "return_tensors": "pt"}
    batches = [tokenizer([texts[row] for row in order[i : i + BATCH]], **options) for i in range(0, len(order), BATCH)]

    def answers(model: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([model(**batch).logits for batch in batches])

    print(f"\nlicence teacher, {len(order)} test texts")
    heading("bytes")
    whole = answers(network)
    show("nothing", 1.0, whole, whole, labels[order])
    stage = Factorize(keep_bytes=0.5, calibration_examples=calibration)
    for weighted in (False, True):
        names, _ = find_layers(network, encoders.linear_names(network))
        seen = watch(network, names, stage.calibration(task, tokenizer), "svd", weighted)
        layers = [layer_options(network, name, "svd", seen[name]) for name in names]
        label = "svd, weighted" if weighted else "svd, plain"
        rows(label, network, layers, "bytes", (0.8, 0.6, 0.4, 0.25), answers, whole, labels[order])


def resnet(data: Path, count: int, calibration: int, kinds: list[Any]) -> None:
    """The trained ResNet-20."""
    network = trained(data, 20)
    pixels, labels = images(data, "test", count)
    shown, _ = images(data, "train", calibration)

    def answers(model: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([model(part) for part in pixels.split(250)])

    print(f"\nResNet-20, {len(labels)} test images")
    heading("FLOPs")
    whole = answers(network)
    show("nothing", 1.0, whole, whole, labels)
    for kind in kinds:
        for weighted in (False, True):
            names, _ = find_layers(network)
            batches = [{"pixel_values": part} for part in shown.split(BATCH)]
            seen = watch(network, names, batches, kind, weighted)
            begun = time.monotonic()
            layers = [layer_options(network, name, kind, seen[name]) for name in names]
            label = f"{kind}, {'weighted' if weighted else 'plain'}"
            rows(label, network, layers, "flops", (0.8, 0.65, 0.5), answers, whole, labels)
            print(f"  ({time.monotonic() - begun:.0f} s)", flush=True)


def rows(
    label: str,
    network: nn.Module,
    layers: list[Layer],
    measure: Measure,
    shares: tuple[float, ...],
    answers: Answers,
    whole: Tensor,
    labels: Tensor,
) -> None:
    """For each share a row with allotted ranks; where weighted, one with the same share of every layer, too."""
    for share in shares:
        if (allotted := by_budget(layers, measure, share)) is not None:
            show(label, share, answers(made(network, layers, allotted)), whole, labels)
        if "weighted" in label:
            alike = uniform(layers, measure, share)
            show(f"{label}, uniform", share, answers(made(network, layers, alike)), whole, labels)


def uniform(layers: list[Layer], measure: Measure, share: float) -> list[Option]:
    """Of each layer the least error within its share; a layer that has no factors so small stays as it is."""
    found = []
    for layer in layers:
        fitting = [o for o in layer.options if o.cost(measure) <= share * layer.options[0].cost(measure)]
        found.append(min(fitting, key=lambda option: option.error, default=layer.options[0]))
    return found


def made(network: nn.Module, layers: list[Layer], options: list[Option]) -> nn.Module:
    """A copy of the network with these factors."""
    copied = copy.deepcopy(network)
    for layer, option in zip(layers, options, strict=True):
        if option.ranks is not None:
            put(copied, layer, option.ranks)
    return copied


def heading(measure: str) -> None:
    print(f"{'factored':26} {measure + ' kept':>12} {'accuracy':>9} {'equal answers':>14} {'KL':>8}")


def show(name: str, share: float, found: Tensor, whole: Tensor, labels: Tensor) -> None:
    right = float((found.argmax(1) == labels).float().mean())
    equal = float((found.argmax(1) == whole.argmax(1)).float().mean())
    kl = nn.functional.kl_div(found.log_softmax(1), whole.log_softmax(1), log_target=True, reduction="batchmean")
    print(f"{name:26} {share:12.2f} {right:9.3f} {equal:14.3f} {float(kl):8.4f}", flush=True)


if __name__ == "__main__":
    main()
