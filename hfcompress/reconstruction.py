"""Reconstruction: before units are cut, the layers that read them learn to do without, by least squares.

A cut channel is seldom lost: the channels that stay are correlated with it. He, Zhang and Sun (2017, section 3.1) give
the layer that read it the weights with which its output changes least on calibration data, in closed form.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.coupling import Batch, Group, Units
from hfcompress.factorization import watch
from hfcompress.ops.hessian import SecondMoment, row_errors
from hfcompress.ops.least_squares import without_columns


def columns_that_go(network: nn.Module, groups: list[Group], removed: Units) -> dict[str, Tensor]:
    """Layer -> numbers of the input channels that it will no longer be given; only layers that mix their inputs."""
    found: dict[str, list[Tensor]] = {}
    for group in groups:
        gone = torch.tensor(removed.get(group.root, []), dtype=torch.long)
        for member in group.members:
            module: Any = network.get_submodule(member.layer)
            mixes = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
            if len(gone) and mixes and not member.writes:
                found.setdefault(member.layer, []).append(member.index[torch.isin(member.unit, gone)])
    return {layer: torch.cat(parts).unique() for layer, parts in found.items()}


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
        kernel = module.weight[0, 0].numel()  # 1 of a Linear; patches lie channel by channel
        stays = torch.ones(weight.shape[1], dtype=torch.bool)
        stays[(channels[:, None] * kernel + torch.arange(kernel)).flatten()] = False
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
