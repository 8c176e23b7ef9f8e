"""Reconstruction: before units are cut, the layers that read them learn to do without, by least squares.

A cut channel is seldom lost: the channels that stay are correlated with it. He, Zhang and Sun (2017, section 3.1) give
the layer that read it the weights with which its output changes least on calibration data, in closed form. What is
lost even so also ranks units: those go first that the others can replace (`elimination_scores`).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.architectures.layers import Batch
from hfcompress.compress.factorize.ranks import Seen, watch
from hfcompress.compress.prune.channel_groups import Group, Member, Units
from hfcompress.ops.hessian import SecondMoment, row_errors
from hfcompress.ops.least_squares import Elimination, without_columns


def readers(network: nn.Module, group: Group) -> list[Member]:
    """The layers that read a group's units and mix them with others: what can be fitted."""

    def mixes(layer: Any) -> bool:
        return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)

    return [m for m in group.members if not m.writes and mixes(network.get_submodule(m.layer))]


def columns_that_go(network: nn.Module, groups: list[Group], removed: Units) -> dict[str, Tensor]:
    """Layer -> numbers of the input channels that it will no longer be given."""
    found: dict[str, list[Tensor]] = {}
    for group in groups:
        gone = torch.tensor(removed.get(group.root, []), dtype=torch.long)
        for member in readers(network, group) if len(gone) else []:
            found.setdefault(member.layer, []).append(member.index[torch.isin(member.unit, gone)])
    return {layer: torch.cat(parts).unique() for layer, parts in found.items()}


def elimination_scores(network: nn.Module, groups: list[Group], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Root -> what each unit is worth: the error that its absence adds in the layers that read it, as a share of their
    outputs' mean square, when all that are worth less went before it and the others were fitted. A unit that no layer
    reads is worth nothing.

    Args:
        batches: inputs without labels, where the network is.
    """
    layers = sorted({member.layer for group in groups for member in readers(network, group)})
    seen = watch(network, layers, batches, "svd", weighted=True)
    found = {}
    for group in groups:
        eliminations = [elimination(network, member, seen[member.layer]) for member in readers(network, group)]
        scores, left, worth = torch.zeros(group.units), torch.ones(group.units, dtype=torch.bool), 0.0
        for _ in range(group.units if eliminations else 0):
            costs = torch.stack([one.costs() for one in eliminations]).sum(dim=0).masked_fill(~left, torch.inf)
            unit = int(costs.argmin())
            worth = max(worth * (1 + 1e-6), float(costs[unit]))  # those that went before are worth less
            scores[unit], left[unit] = worth, False
            for one in eliminations:
                one.remove(unit)
        found[group.root] = scores
    return found


def elimination(network: nn.Module, member: Member, seen: Seen) -> Elimination:
    """A reader with the columns of each unit; a bias stays."""
    module: Any = network.get_submodule(member.layer)
    assert seen.moment is not None
    weight, h = with_bias(module, seen.moment)
    columns = columns_of(module, member.index[member.unit.argsort(stable=True)])
    return Elimination(weight, h, columns.view(int(member.unit.max()) + 1, -1))


def columns_of(module: Any, channels: Tensor) -> Tensor:
    """The columns of a layer's matrix that read these channels: patches lie channel by channel."""
    kernel = module.weight[0, 0].numel()  # 1 of a Linear
    return (channels[:, None] * kernel + torch.arange(kernel)).flatten()


def reconstructed(
    network: nn.Module, groups: list[Group], removed: Units, batches: Iterable[Batch]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights for the layers that read the units which go, and what share of their outputs' mean square is lost.

    The network stays as it is. Each layer is fitted to what it is given now, all at once.

    Args:
        batches: inputs without labels, where the network is.

    Returns: the new parameters by name, 0 where a unit was read; layer -> E|change of the output|^2 / E|output|^2.
    """
    gone = columns_that_go(network, groups, removed)
    seen = watch(network, list(gone), batches, "svd", weighted=True)
    parameters, errors = dict[str, Tensor](), dict[str, float]()
    for layer, channels in gone.items():
        module: Any = network.get_submodule(layer)
        moment = seen[layer].moment
        assert moment is not None
        weight, h = with_bias(module, moment)
        stays = torch.ones(weight.shape[1], dtype=torch.bool)
        stays[columns_of(module, channels)] = False
        new = without_columns(weight, h, stays.nonzero().flatten())
        lost = row_errors((weight - new).double(), h.double()).sum()
        errors[layer] = float(lost / row_errors(weight.double(), h.double()).sum().clamp(min=1e-30))
        columns = module.weight[0].numel()
        parameters[f"{layer}.weight"] = new[:, :columns].reshape(module.weight.shape).contiguous()
        if module.bias is not None:
            parameters[f"{layer}.bias"] = new[:, columns].contiguous()
    return parameters, errors


def with_bias(module: Any, moment: SecondMoment) -> tuple[Tensor, Tensor]:
    """A layer's matrix and its inputs' moment; a bias is one more column, whose input is always 1."""
    weight, h = module.weight.detach().cpu().float().flatten(1), moment.hessian
    if module.bias is None:
        return weight, h
    mean = moment.mean[:, None]
    h = torch.cat([torch.cat([h, mean], dim=1), torch.cat([mean.T, torch.ones(1, 1)], dim=1)])
    return torch.cat([weight, module.bias.detach().cpu().float()[:, None]], dim=1), h
