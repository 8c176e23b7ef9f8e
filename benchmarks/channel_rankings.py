"""What each ranking leaves of a trained ResNet-20 without any training: one cut, and nothing learned afterwards.

`python -m benchmarks.channel_rankings DATA` cuts a quarter of the FLOPs and prints top-1 on the first 1,000 test
images: straight after the cut, and with the batch norms' statistics taken anew from 1,024 training images. The last
column is what each stage's inner layers keep of their channels.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cifar_resnet import images, trained
from hfcompress.architectures.layers import Batch
from hfcompress.compress.prune.iterations import prune
from hfcompress.compress.prune.target import Plan
from hfcompress.folders.record import cpu_name

ROWS: tuple[tuple[Any, Any], ...] = tuple(
    (importance, ranking)
    for importance in ("l1", "taylor", "geometric_median", "reconstruction", "random")
    for ranking in ("global", "uniform")
)
TESTED, SCORED, RECOMPUTED, BATCH = 1000, 512, 1024, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--depth", type=int, default=20, choices=(20, 56))
    parser.add_argument("--keep", type=float, default=0.75, help="share of the FLOPs")
    arguments = parser.parse_args()
    pixels, labels = images(arguments.data, "train", RECOMPUTED)
    tested = images(arguments.data, "test", TESTED)
    batches = [
        {"pixel_values": pixels[i : i + BATCH], "labels": labels[i : i + BATCH]} for i in range(0, SCORED, BATCH)
    ]
    print(f"{cpu_name()}\nunpruned: {100 * top1(trained(arguments.data, arguments.depth), *tested):.1f}")
    print(f"{'ranking':28} {'FLOPs':>6} {'cut':>6} {'anew':>6} {'fitted':>7} {'anew':>6}  channels kept")
    for importance, ranking in ROWS:
        scores = []
        for fit in (False, True):
            network = trained(arguments.data, arguments.depth)
            plan = Plan("flops", arguments.keep, importance, ranking, reconstruct=fit)
            with tempfile.TemporaryDirectory() as work:
                found = prune(network, plan, Path(work), batches, loss, lambda *_: {})
            scores.append(100 * top1(network, *tested))
            recompute_statistics(network, pixels)
            scores.append(100 * top1(network, *tested))
        share = found["after"]["flops"] / found["before"]["flops"]
        row = "{:6.1f} {:6.1f} {:7.1f} {:6.1f}".format(*scores)
        print(f"{importance + ', ' + ranking:28} {share:6.3f} {row}  {kept_by_stage(found['widths'])}", flush=True)


def loss(network: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(network(batch["pixel_values"]), batch["labels"])


def top1(network: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    network.eval()
    with torch.inference_mode():
        return float((network(pixels).argmax(dim=1) == labels).float().mean())


def recompute_statistics(network: nn.Module, pixels: Tensor) -> None:
    """The batch norms' running means and variances as averages over these images."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # type: ignore[assignment]  (a plain average)
    network.train()
    with torch.inference_mode():
        for part in pixels.split(128):
            network(part)


def kept_by_stage(widths: dict[str, list[int]]) -> str:
    """Channels of each stage's inner layers, kept of how many."""
    totals: dict[str, list[int]] = {}
    for root, (before, after) in widths.items():
        total = totals.setdefault(root.split(".")[0], [0, 0])
        total[0], total[1] = total[0] + after, total[1] + before
    return ", ".join(f"{kept}/{whole}" for kept, whole in totals.values())


if __name__ == "__main__":
    main()
