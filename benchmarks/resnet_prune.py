"""ResNet-56 on CIFAR-10 with half of its FLOPs: five rankings of channels, random among them, side by side.

`python -m benchmarks.resnet_prune DATA WORK` takes the trained network and the images of the real data, fine-tunes
the unpruned network and each pruned one on the same images for the same steps, and prints top-1 on all test images
with paired differences to the unpruned fine-tuned one. Everything lies in WORK: a run that was cut off goes on there.
`--rows` does some of the rows only; the table shows those that are there.
"""

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.cifar_resnet import CifarResNet, Examples, images, trained
from hfcompress.architectures.layers import Batch
from hfcompress.compress.prune.iterations import prune
from hfcompress.compress.prune.target import Plan
from hfcompress.evaluation.drawn import Drawn, paired_difference
from hfcompress.evaluation.metrics import METRICS
from hfcompress.folders.record import cpu_name, write_json
from hfcompress.ops.losses import soft_cross_entropy, states_mse
from hfcompress.training.trainer import Train, train

ROWS = ("unpruned", "unpruned-finetuned", "reconstruction", "l1", "taylor", "geometric_median", "random")
SCORED = 512  # training images that gradients are taken from and layers are fitted on
SOFT, TEMPERATURE = 0.9, 4.0  # how much of a distilled row's loss is the unpruned network's answers, and how soft
STATES = 20.0  # weight of the blocks' states beside the answers
CONFIDENCE = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--keep", type=float, default=0.5, help="share of the FLOPs")
    parser.add_argument("--distill", action="store_true", help="answers and states of the unpruned fine-tuned network")
    parser.add_argument("--plain", action="store_true", help="cut without fitting what reads the channels that go")
    parser.add_argument("--iterations", type=int, default=3, help="cuts")
    parser.add_argument("--between", type=int, default=90, help="steps of training after each cut but the last")
    parser.add_argument("--last", type=int, default=420, help="steps of training after the last cut")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tested-from", type=int, default=0, help="leave so many test images out of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = Train(
        learning_rate=arguments.learning_rate,
        per_device_train_batch_size=arguments.batch,
        weight_decay=5e-4,
        bf16="no",  # slower here: the channels are too few
        saves_per_epoch=10,
    )
    examples = Examples(*images(arguments.data, "train"), varied=True)
    for row in arguments.rows:
        out = arguments.work / (row + "-distilled" * arguments.distill + "-plain" * arguments.plain)
        if not (out / "result.json").is_file():
            make(row, out, arguments, options, examples)
    show(arguments.work, images(arguments.data, "test")[1], arguments.tested_from)


def make(row: str, out: Path, arguments: argparse.Namespace, options: Train, examples: Examples) -> None:
    """One row: its network's logits on the test images, and what was done to it."""
    out.mkdir(parents=True, exist_ok=True)
    network = trained(arguments.data, 56)
    loss = hard_loss if not arguments.distill else soft_loss(arguments.work / "unpruned-finetuned", network)
    done: dict[str, Any] = {}
    if row == "unpruned-finetuned":
        steps = (arguments.iterations - 1) * arguments.between + arguments.last
        done = {"training": [finetuned(network, out, replace(options, max_steps=steps), examples, loss)]}
    elif row != "unpruned":
        plan = Plan(
            "flops",
            arguments.keep,
            row,  # type: ignore[arg-type]
            iterations=arguments.iterations,
            reconstruct=not arguments.plain,
        )
        pixels, labels = images(arguments.data, "train", SCORED)
        batches = [{"pixel_values": pixels[i : i + 64], "labels": labels[i : i + 64]} for i in range(0, SCORED, 64)]

        def finetune(model: nn.Module, place: Path, number: int) -> dict[str, Any]:
            steps = arguments.last if number == arguments.iterations else arguments.between
            return finetuned(model, place, replace(options, max_steps=steps), examples, loss)

        done = prune(network, plan, out / "work", batches, hard_loss, finetune)
        done["training"] = [entry["training"] for entry in done["iterations"]]
    pixels, _ = images(arguments.data, "test")
    np.save(out / "logits.npy", evaluated(network, pixels).numpy())
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, out / "weights.safetensors")
    write_json(out / "result.json", done | {"parameters": sum(p.numel() for p in network.parameters())})


def finetuned(model: nn.Module, place: Path, options: Train, examples: Examples, loss: Any) -> dict[str, Any]:
    found = train(model, None, place, options, examples, loss=loss)  # type: ignore[arg-type]
    return {"steps": found.steps, "images": found.samples, "loss": found.final_loss}


def hard_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch["pixel_values"]), batch["labels"])


def soft_loss(folder: Path, network: CifarResNet) -> Any:
    """Cross-entropy with the labels, and the unpruned fine-tuned network's answers and states."""
    teacher = copy.deepcopy(network)
    teacher.load_state_dict(load_file(folder / "weights.safetensors"))
    teacher.eval()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted, target = teacher.with_states(batch["pixel_values"])
        found, states = cast(CifarResNet, model).with_states(batch["pixel_values"])
        answers = (1 - SOFT) * F.cross_entropy(found, batch["labels"]) + SOFT * soft_cross_entropy(
            found, wanted, TEMPERATURE
        )
        return answers + STATES * states_mse(states, target)

    return loss


def evaluated(network: nn.Module, pixels: Tensor) -> Tensor:
    network.eval()
    with torch.inference_mode():
        return torch.cat([network(part) for part in pixels.split(500)])


def show(work: Path, labels: Tensor, start: int) -> None:
    """The table of all rows that are in `work`, on the test images from this one on."""
    truth = labels[start:].numpy()
    groups = [f"{i:05d}" for i in range(len(truth))]

    def drawn(name: str) -> Drawn:
        return Drawn(answers(work / name), truth, groups, resamples=1000, seed=0)

    def answers(folder: Path) -> Any:
        return np.load(folder / "logits.npy")[start:].argmax(axis=1)

    reference = work / "unpruned-finetuned"
    print(cpu_name())
    print(f"{'network':28} {'FLOPs':>7} {'parameters':>11} {'top-1':>7} {'difference':>24} {'trained on':>11}")
    for folder in sorted(work.iterdir()):
        if not (folder / "result.json").is_file():
            continue
        found = json.loads((folder / "result.json").read_text())
        share = found["after"]["flops"] / found["before"]["flops"] if "after" in found else 1.0
        top1 = (answers(folder) == truth).mean()
        text = ""
        if (reference / "result.json").is_file() and folder != reference:
            d = paired_difference(drawn(reference.name), drawn(folder.name), METRICS["accuracy"], CONFIDENCE)
            text = f"{100 * d.difference:+.2f} ({100 * d.lower_bound:+.2f} to {100 * d.upper_bound:+.2f})"
        seen = sum(entry["images"] for entry in found.get("training", []))
        print(f"{folder.name:28} {share:7.3f} {found['parameters']:11,} {100 * top1:7.2f} {text:>24} {seen:11,}")


if __name__ == "__main__":
    main()
