"""Channels, heads and neurons that can only be cut together, found by torch-pruning's dependency graph, and cut.

What one layer writes others read, and additions tie layers that write to the same channels: these are a group. The
graph is traced with autograd (Fang et al. 2023, "DepGraph: Towards any structural pruning"), so that any torch module
will do that is called as network(**example).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.architectures.layers import Batch, logits_of
from hfcompress.errors import CheckFailed, Reason, UserError, needs

Units = dict[str, list[int]]  # a group's root -> numbers of its units
TOLERANCE = 1e-4  # logits of the cut network against the masked one, fp32, of logits up to 1


@dataclass(frozen=True)
class Member:
    """A layer of a group: which of its rows (outputs) or columns (inputs) belong to which unit."""

    layer: str
    writes: bool
    index: Tensor  # [rows], of the layer
    unit: Tensor  # [rows], the unit that each of them goes with


@dataclass(frozen=True)
class Group:
    """Units that can be cut, by the name of a layer that writes them: channels and neurons (size 1) or heads."""

    root: str
    units: int
    size: int  # of the root's outputs a unit
    least: int  # units that must stay: a depthwise convolution of one channel would be taken for a plain one
    members: tuple[Member, ...]


def find_groups(network: nn.Module, example: Batch, roots: list[str] | None = None) -> tuple[list[Group], list[str]]:
    """The groups of a network in the order of its layers, and the roots of those that are left alone.

    Left alone are the classes, the residual stream of a transformer (its LayerNorms see all dimensions at once),
    convolutions of several groups that are not depthwise, and channels that the graph cannot follow, such as those of
    a shortcut that pads with zeros.

    Args:
        example: inputs of a batch of one or more.
        roots: only groups that one of these layers is the first to write; None for all.

    Raises:
        UserError: a layer is used in two places.
    """
    refuse_shared(network, example)
    graph = traced(network, example)
    names = {module: name for name, module in network.named_modules()}
    order = {name: i for i, name in enumerate(names.values())}
    found, left = [], []
    for items in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        layers = [names[d.target.module] for d, _ in items.items if d.target.module in names]
        if roots is not None and not set(layers) & set(roots):
            continue
        group = as_group(network, graph, items, names, order)
        if group is None:
            left.append(min(layers, key=order.__getitem__))
        elif roots is None or group.root in roots:  # not one that a root only reads
            found.append(group)
    return sorted(found, key=lambda group: order[group.root]), left


def as_group(network: nn.Module, graph: Any, items: Any, names: dict[Any, str], order: dict[str, int]) -> Group | None:
    """torch-pruning's group in our terms; None when it has to be left alone."""
    root = names[items[0].dep.target.module]
    size = unit_size(network, root)
    members = []
    for item in items.items:
        module, handler = item.dep.target.module, item.dep.handler
        if not item.dep.target.outputs and graph.is_out_channel_pruning_fn(handler):  # the network's own output
            return None
        if module not in names:  # an operation without weights
            continue
        writes = graph.is_out_channel_pruning_fn(handler)
        if not can_be_cut(module, writes, len(item.idxs)) or None in item.root_idxs:
            return None
        units = torch.tensor(item.root_idxs) // size
        members.append(Member(names[module], writes, torch.tensor(item.idxs), units))
    writers = [member.layer for member in members if member.writes and has_filters(network, member.layer)]
    depthwise = any(getattr(network.get_submodule(layer), "groups", 1) > 1 for layer in writers)
    first = min(writers, key=order.__getitem__)
    return Group(first, len(items[0].idxs) // size, size, 2 if depthwise else 1, tuple(members))


def inner_roots(network: nn.Module, groups: list[Group]) -> tuple[str, ...]:
    """The roots of groups within a block: one layer writes them, with the depthwise convolution that it passes."""

    def writers(group: Group) -> int:
        layers = [m.layer for m in group.members if m.writes and has_filters(network, m.layer)]
        return sum(getattr(network.get_submodule(layer), "groups", 1) == 1 for layer in layers)

    return tuple(group.root for group in groups if writers(group) == 1)


def has_filters(network: nn.Module, layer: str) -> bool:
    """Whether a layer is a convolution or a Linear: what a channel can be ranked by."""
    return isinstance(network.get_submodule(layer), nn.Conv2d | nn.Linear)


def can_be_cut(module: Any, writes: bool, rows: int) -> bool:
    """Whether torch-pruning followed all of a layer's channels, and they can be cut one by one."""
    if isinstance(module, nn.Conv2d):
        if module.groups not in (1, module.in_channels):
            return False
        return not writes or rows == module.out_channels
    if isinstance(module, nn.Linear):
        return not writes or rows == module.out_features
    return isinstance(module, nn.BatchNorm2d) and rows == module.num_features


def unit_size(network: nn.Module, root: str) -> int:
    """The outputs of a layer that go together: a head's in attention, else one."""
    parent = network.get_submodule(root.rpartition(".")[0])
    heads = getattr(parent, "num_attention_heads", None)
    return network.get_submodule(root).out_features // heads if heads else 1


def traced(network: nn.Module, example: Batch) -> Any:
    """torch-pruning's graph of a network; train or eval mode are left as they were."""
    needs("torch_pruning")
    from torch_pruning import DependencyGraph

    training = network.training
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = DependencyGraph().build_dependency(network, example_inputs=example, verbose=False)
    network.train(training)
    return graph


def refuse_shared(network: nn.Module, example: Batch) -> None:
    """Refuse a network in which a layer has two places: what is cut for one would be missing in the other.

    Raises:
        UserError: with the layer.
    """
    seen: dict[int, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if (other := seen.setdefault(id(parameter), name)) != name:
            raise UserError(
                f"{name} is also {other}: a layer that two modules share cannot be pruned by structures; "
                "give a model in which each has its own"
            )
    calls: dict[str, int] = {}
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]

    def count(name: str) -> Any:
        return lambda *_: calls.__setitem__(name, calls.get(name, 0) + 1)

    hooks = [module.register_forward_hook(count(name)) for name, module in layers]
    logits_of(network, example)
    for hook in hooks:
        hook.remove()
    if twice := next((name for name, times in calls.items() if times > 1), None):
        raise UserError(f"{twice} is used {calls[twice]} times in a forward pass: such a layer cannot be pruned here")


def cut(network: nn.Module, example: Batch, groups: list[Group], removed: Units) -> None:
    """Take units out of `network` in place: the modules' weights and sizes, and the number of heads."""
    graph = traced(network, example)
    for group in groups:
        if not (units := removed.get(group.root)):
            continue
        layer: Any = network.get_submodule(group.root)
        outputs = [unit * group.size + i for unit in units for i in range(group.size)]
        pruner = graph.get_pruner_of_module(layer)
        graph.get_pruning_group(layer, pruner.prune_out_channels, outputs).prune()
        parent: Any = network.get_submodule(group.root.rpartition(".")[0])
        if group.size > 1:
            parent.num_attention_heads -= len(units)
            parent.all_head_size = parent.num_attention_heads * group.size


@contextmanager
def masked(network: nn.Module, groups: list[Group], removed: Units) -> Iterator[None]:
    """While in here, the units that are to go give 0 in every layer that writes them."""
    hooks = []
    for group in groups:
        gone = torch.tensor(removed.get(group.root, []), dtype=torch.long)
        for member in group.members:
            if member.writes and len(gone):
                rows = member.index[torch.isin(member.unit, gone)]
                hooks.append(network.get_submodule(member.layer).register_forward_hook(zeroes(rows)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def zeroes(rows: Tensor) -> Any:
    """A hook that sets channels of an output to 0: those of [batch, channels, height, width], else the last ones."""

    def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output.index_fill(1 if output.ndim == 4 else -1, rows.to(output.device), 0.0)

    return hook


def cut_and_check(
    network: nn.Module, example: Batch, groups: list[Group], removed: Units, probe: Batch, parameters: int
) -> float:
    """Cut, and hold the result against the masked network.

    Args:
        probe: inputs that both are asked.
        parameters: how many the cut network must have.

    Returns: the largest difference of a logit.

    Raises:
        CheckFailed: the network has another number of parameters than what was taken away leaves (a mask instead of
            a cut), or answers differently than the masked one.
    """
    with masked(network, groups, removed):
        before = logits_of(network, probe)
    cut(network, example, groups, removed)
    found = sum(p.numel() for p in network.parameters())
    if found != parameters:
        raise CheckFailed(
            f"the cut network has {found} parameters, not {parameters}: something was left in it; "
            "give another --base: a layer of this one is not cut as it was planned"
        )
    distance = float((logits_of(network, probe) - before).abs().max())
    if not distance <= TOLERANCE * max(1.0, float(before.abs().max())):
        reason = (
            "the cut network's logits differ by {distance:.2g} from the masked network's; "
            "give another {.base} or {importance}: this network is not cut as it was planned"
        )
        raise CheckFailed(Reason(reason, distance=distance))
    return distance
