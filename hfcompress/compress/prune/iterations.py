"""Structured pruning: rank units, cut a little, train, repeat; of any torch module that is called as network(**batch).

What this knows of a model is what `coupling` and `layer_costs` find out by tracing it.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfcompress.architectures.layers import Batch
from hfcompress.compress.prune.channel_groups import Group, Units, cut, cut_and_check, find_groups, has_filters
from hfcompress.compress.prune.layer_costs import Costs, Kept
from hfcompress.compress.prune.reconstruction import elimination_scores, reconstructed
from hfcompress.compress.prune.target import MEASURES, Importance, Measure, Plan
from hfcompress.errors import OptionError, UserError
from hfcompress.folders.files import whole_path
from hfcompress.folders.record import write_json
from hfcompress.ops import channel_importance
from hfcompress.planning.machine import Machine

PROBED = 16  # examples that the cut network and the masked one are asked
STEPS = 1000  # that a uniform share is looked for in


@dataclass(frozen=True)
class Choice:
    """Units to take out; roots of the groups that would have been emptied and keep what a group must."""

    removed: Units
    held: list[str]


def unit_scores(
    network: nn.Module, groups: list[Group], importance: Importance, filter_scores: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """Root -> what each unit is worth: the sum over the filters that write it, of all layers of its group.

    Norms of different layers do not compare, so that l1 and geometric_median are divided by the group's mean; taylor
    is in the loss's own terms everywhere.

    Args:
        filter_scores: a layer's name -> the score of each of its filters.
    """
    found = {}
    for group in groups:
        total = torch.zeros(group.units)
        for member in group.members:
            if member.writes and has_filters(network, member.layer):
                total.index_add_(0, member.unit, filter_scores(member.layer).float().cpu()[member.index])
        relative = importance in ("l1", "geometric_median")
        found[group.root] = total / total.mean().clamp(min=1e-30) if relative else total
    return found


def taylor_of_batches(
    network: nn.Module, batches: list[Batch], loss: Callable[[nn.Module, Batch], Tensor]
) -> dict[str, Tensor]:
    """Name -> the Taylor score of each filter, the mean over batches; in eval mode, the network is left as it was."""
    training, found = network.training, dict[str, Tensor]()
    network.eval()
    for batch in batches:
        network.zero_grad()
        loss(network, on_device(network, batch)).backward()
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.grad is not None:
                score = channel_importance.taylor(module.weight.detach(), module.weight.grad)
                found[name] = found.get(name, torch.zeros_like(score)) + score / len(batches)
    network.zero_grad()
    network.train(training)
    return found


def scores_by(
    plan: Plan,
    network: nn.Module,
    groups: list[Group],
    batches: list[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    iteration: int,
) -> dict[str, Tensor]:
    """Root -> scores of the units, by the plan's importance."""
    if plan.importance == "random":
        generator = torch.Generator().manual_seed(plan.seed + iteration)
        return {group.root: channel_importance.random(group.units, generator) for group in groups}
    if plan.importance == "reconstruction":
        return elimination_scores(network, groups, (first_inputs(network, [batch], None) for batch in batches))
    taylor = taylor_of_batches(network, batches, loss) if plan.importance == "taylor" else {}

    def filters(name: str) -> Tensor:
        if plan.importance == "taylor":
            return taylor[name]
        weight: Any = network.get_submodule(name).weight
        score = channel_importance.l1_norm if plan.importance == "l1" else channel_importance.geometric_median
        return score(weight.detach())

    return unit_scores(network, groups, plan.importance, filters)


def choose(plan: Plan, groups: list[Group], scores: dict[str, Tensor], costs: Costs, limit: float) -> Choice:
    """The fewest units, lowest first, without which the network costs at most `limit`.

    global: the lowest scores of all groups together; taylor's and reconstruction's, which are a loss and an error, are
    divided by what a unit saves of the plan's measure: the target is to be met at the least loss. uniform: the lowest
    of each group, the same share of each.

    Raises:
        UserError: the limit is not met even when every group keeps no more than it must.
    """
    units = np.array([group.units for group in groups])
    least = np.minimum(units, np.maximum([group.least for group in groups], plan.round_to))
    ranked = [scores[group.root].argsort(stable=True).tolist() for group in groups]
    is_a_loss = plan.importance in ("taylor", "reconstruction")
    price = [saved_by_a_unit(plan, group, costs) if is_a_loss else 1.0 for group in groups]
    lowest = np.concatenate([np.sort(scores[g.root].numpy()) / price[i] for i, g in enumerate(groups)])
    owner = np.repeat(np.arange(len(groups)), units)[np.argsort(lowest, kind="stable")]

    def gone(step: int) -> Any:
        """Units of each group that would go: the first so many of all, or a share of each."""
        if plan.ranking == "global":
            return np.bincount(owner[:step], minlength=len(groups))
        return np.floor(units * (step / STEPS) + 1e-9).astype(int)

    def left(step: int) -> Any:
        """Units that each group keeps: not fewer than it must, a multiple of round_to or all."""
        rounded = -(-(units - gone(step)) // plan.round_to) * plan.round_to
        return np.minimum(units, np.maximum(least, rounded))

    def cost(step: int) -> float:
        kept: Kept = {group.root: int(n) for group, n in zip(groups, left(step), strict=True)}
        return costs.total(plan.measure, kept)

    last = len(owner) if plan.ranking == "global" else STEPS
    if cost(last) > limit:
        raise OptionError(
            f"keep_{plan.measure}",
            "would empty layers: with {least} of every kind left it is {share:.3g} of what it is now; give more",
            plan.keep,
            least=plan.round_to,
            share=cost(last) / costs.total(plan.measure, costs.whole()),
        )
    low, high = 0, last  # the first step that costs no more than the limit
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= limit else (middle + 1, high)
    kept = left(low)
    counts = [int(n) for n in units - kept]
    removed = {g.root: sorted(ranked[i][: counts[i]]) for i, g in enumerate(groups) if counts[i]}
    return Choice(removed, [g.root for i, g in enumerate(groups) if units[i] - gone(low)[i] < least[i]])


def saved_by_a_unit(plan: Plan, group: Group, costs: Costs) -> float:
    """What a unit of a group costs of the plan's measure, the mean over those that can go."""
    whole = costs.whole()
    most = group.units - min(group.units, group.least)
    saved = costs.total(plan.measure, whole) - costs.total(plan.measure, whole | {group.root: group.units - most})
    return max(saved / max(most, 1), 1e-12)  # a timing can come out the other way round


def prune(
    network: nn.Module,
    plan: Plan,
    work: Path,
    batches: list[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    train: Callable[[nn.Module, Path, int], Any],
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Prune `network` in place down to the plan's share, training between the cuts.

    `work/iteration-N` holds what was cut and, when its training has ended, the weights: a killed call goes on there.

    Args:
        batches: labelled inputs, for Taylor's gradients and for reconstruction; the first one's also serve as the
            probe of every cut.
        loss: of a batch, for Taylor.
        train: called with the network, a folder of its own and the number of the iteration (from 1).

    Returns: what each iteration cut and reached, the widths, and the costs before and after.

    Raises:
        UserError: the target cannot be met, or the network has nothing that can be cut.
        RuntimeError: a cut was not what had been chosen (see `coupling.cut_and_check`).
    """
    example, probe = first_inputs(network, batches, 1), first_inputs(network, batches, PROBED)
    machine = machine or Machine()
    names = None if plan.roots is None else list(plan.roots)
    groups, left_alone = find_groups(network, example, names)
    if not groups:
        raise UserError(f"{type(network).__name__} has no channels, heads or neurons that can be cut by structures")
    first = Costs(network, example, groups, machine)
    before = {measure: first.total(measure, first.whole()) for measure in MEASURES if wanted(measure, plan)}
    iterations: list[dict[str, Any]] = []
    for number in range(1, plan.iterations + 1):
        folder = work / f"iteration-{number}"
        example, probe = first_inputs(network, batches, 1), first_inputs(network, batches, PROBED)
        groups, _ = find_groups(network, example, names)
        costs = Costs(network, example, groups, machine)

        def decide() -> Choice:
            found = scores_by(plan, network, groups, batches, loss, number)  # noqa: B023 (called before the next turn)
            return choose(plan, groups, found, costs, plan.share(number) * before[plan.measure])  # noqa: B023

        def fit(removed: Units) -> tuple[dict[str, Tensor], dict[str, float]]:
            inputs = (first_inputs(network, [batch], None) for batch in batches)
            return reconstructed(network, groups, removed, inputs)  # noqa: B023

        entry = cut_once(network, example, probe, groups, costs, folder, decide, fit if plan.reconstruct else None)
        trained = trained_once(network, folder, lambda place: train(network, place, number))  # noqa: B023
        iterations.append(entry | {"iteration": number, "training": trained})
    groups, _ = find_groups(network, example, names)
    last = Costs(network, example, groups, machine)
    return {
        "before": before,
        "after": {measure: last.total(measure, last.whole()) for measure in before},
        "widths": {group.root: [first.whole()[group.root], group.units] for group in groups},
        "left_alone": left_alone,
        "iterations": iterations,
    }


def first_inputs(network: nn.Module, batches: list[Batch], count: int | None) -> Batch:
    """The inputs of the first batch's first examples, without labels, where the network is: training may move it."""
    inputs = on_device(network, batches[0])
    return {name: tensor[:count] for name, tensor in inputs.items() if name not in ("labels", "index")}


def on_device(network: nn.Module, batch: Batch) -> Batch:
    """The batch on the network's device."""
    device = next(network.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def wanted(measure: Measure, plan: Plan) -> bool:
    """Milliseconds are measured only where they are the target."""
    return measure != "latency" or plan.measure == "latency"


def cut_once(
    network: nn.Module,
    example: Batch,
    probe: Batch,
    groups: list[Group],
    costs: Costs,
    folder: Path,
    decide: Callable[[], Choice],
    fit: Callable[[Units], tuple[dict[str, Tensor], dict[str, float]]] | None,
) -> dict[str, Any]:
    """Cut what `decide` says, or what it said before this was killed; of several processes the main one decides.

    Args:
        fit: units that go -> new parameters of what reads them, and each layer's error; None leaves them as they are.
    """
    from accelerate import PartialState
    from safetensors.torch import load_file, save_file

    file, fitted = folder / "cut.json", folder / "fitted.safetensors"
    with PartialState().main_process_first():
        if not file.is_file():
            choice = decide()
            if PartialState().is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                new, errors = fit(choice.removed) if fit else ({}, {})
                save_file(new, fitted)
                write_json(file, {"removed": choice.removed, "held": choice.held, "reconstruction_errors": errors})
    found = json.loads(file.read_text(encoding="utf-8"))
    removed: Units = found["removed"]
    kept = {group.root: group.units - len(removed.get(group.root, [])) for group in groups}
    if (folder / "weights.safetensors").is_file():  # trained already: those weights come next
        cut(network, example, groups, removed)
        distance = found["difference"]
    else:
        network.load_state_dict(load_file(fitted), strict=False)
        parameters = int(costs.total("parameters", kept))
        distance = cut_and_check(network, example, groups, removed, probe, parameters)
        if PartialState().is_main_process:
            write_json(file, found | {"difference": distance})
    if PartialState().is_main_process:
        print(said_of_cut(folder.name, removed, kept, found["held"]), file=sys.stderr, flush=True)
    shares = {m: costs.total(m, kept) / costs.total(m, costs.whole()) for m in ("flops", "parameters")}
    counts = {root: len(units) for root, units in removed.items()}
    return {
        "removed": counts,
        "held": found["held"],
        "reconstruction_errors": found["reconstruction_errors"],
        "largest_difference_of_cut_to_masked": distance,
        "left": shares,
    }


def said_of_cut(name: str, removed: Units, kept: Kept, held: list[str]) -> str:
    """One line for a person: how many units went, and which layers would have been emptied."""
    line = f"  {name}: {sum(map(len, removed.values()))} of {sum(kept.values()) + sum(map(len, removed.values()))} cut"
    return line + (f"; kept from being emptied: {', '.join(held)}" if held else "")


def trained_once(network: nn.Module, folder: Path, train: Callable[[Path], Any]) -> Any:
    """Train, or load what was trained before this was killed; returns what the training said of itself."""
    from accelerate import PartialState
    from safetensors.torch import load_file, save_file

    weights, said = folder / "weights.safetensors", folder / "training.json"
    if not weights.is_file():
        training = train(folder)
        if PartialState().is_main_process:
            write_json(said, training)
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
            with whole_path(weights) as part:
                save_file(state, part)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        PartialState().wait_for_everyone()
        return training
    network.load_state_dict(load_file(weights))
    return json.loads(said.read_text(encoding="utf-8"))
