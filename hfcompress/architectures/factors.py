"""Modules made of factors, in the place of one layer each; what surgery.json's edits for factors say.

- `{"edit": "low_rank_linear", "module": NAME, "rank": r}`: a Linear, or a convolution of one group;
- `{"edit": "tucker2_conv", "module": NAME, "ranks": [r_in, r_out]}`, `{"edit": "cp_conv", "module": NAME, "rank": r}`:
  a convolution of one group;
- `{"edit": "tt_embedding", "module": NAME, "rank": r}`: an Embedding.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.ops.low_rank import check_rank
from hfcompress.ops.tensor_train import core_shapes, lookup


class LowRankLinear(nn.Sequential):
    """x -> up(down(x)): [..., in] -> [..., rank] -> [..., out]."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        check_rank(rank, min(layer.in_features, layer.out_features))
        super().__init__(
            OrderedDict(
                down=nn.Linear(layer.in_features, rank, bias=False),
                up=nn.Linear(rank, layer.out_features, bias=layer.bias is not None),
            )
        )
        self.in_features, self.out_features, self.rank = layer.in_features, layer.out_features, rank


class FactoredConv(nn.Sequential):
    """Convolutions one after the other in the place of one; stride, padding and sizes are still told as its own.

    Raises:
        ValueError: the convolution has groups.
    """

    def __init__(self, layer: nn.Conv2d, parts: dict[str, nn.Conv2d]) -> None:
        super().__init__(OrderedDict(parts))
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(self, name, getattr(layer, name))

    @staticmethod
    def part(layer: nn.Conv2d, inputs: int, outputs: int, axes: str = "", **more: Any) -> nn.Conv2d:
        """A convolution with the kernel, stride, padding and dilation of `layer` along these axes, 1 elsewhere."""
        if layer.groups != 1:
            raise ValueError(f"a convolution of {layer.groups} groups has no factors here")
        here = ["h" in axes, "w" in axes]
        padding: Any = layer.padding
        if not isinstance(padding, str):
            padding = tuple(p if own else 0 for p, own in zip(padding, here, strict=True))
        kernel, stride, dilation = (
            tuple(v if own else 1 for v, own in zip(values, here, strict=True))
            for values in (layer.kernel_size, layer.stride, layer.dilation)
        )
        return nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            padding_mode=layer.padding_mode,
            bias=more.pop("bias", False),
            **more,
        )


class LowRankConv(FactoredConv):
    """The whole kernel into `rank` channels, then 1x1."""

    def __init__(self, layer: nn.Conv2d, rank: int) -> None:
        check_rank(rank, min(layer.out_channels, layer.weight[0].numel()))
        super().__init__(
            layer,
            {
                "down": self.part(layer, layer.in_channels, rank, "hw"),
                "up": self.part(layer, rank, layer.out_channels, bias=layer.bias is not None),
            },
        )


class Tucker2Conv(FactoredConv):
    """1x1 into `ranks[0]` channels, the kernel into `ranks[1]`, then 1x1."""

    def __init__(self, layer: nn.Conv2d, ranks: tuple[int, int]) -> None:
        into, out = ranks
        check_rank(into, layer.in_channels)
        check_rank(out, layer.out_channels)
        super().__init__(
            layer,
            {
                "down": self.part(layer, layer.in_channels, into),
                "core": self.part(layer, into, out, "hw"),
                "up": self.part(layer, out, layer.out_channels, bias=layer.bias is not None),
            },
        )


class CPConv(FactoredConv):
    """1x1 into `rank` channels, a column and a row of a kernel for each, then 1x1."""

    def __init__(self, layer: nn.Conv2d, rank: int) -> None:
        check_rank(rank, layer.weight.numel())
        super().__init__(
            layer,
            {
                "down": self.part(layer, layer.in_channels, rank),
                "vertical": self.part(layer, rank, rank, "h", groups=rank),
                "horizontal": self.part(layer, rank, rank, "w", groups=rank),
                "up": self.part(layer, rank, layer.out_channels, bias=layer.bias is not None),
            },
        )


class TTEmbedding(nn.Module):
    """Rows looked up in the three cores of a tensor train (ops/tensor_train.py)."""

    def __init__(self, layer: nn.Embedding, rank: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.rank = layer.num_embeddings, layer.embedding_dim, rank
        self.padding_idx = layer.padding_idx
        shapes = core_shapes(self.num_embeddings, self.embedding_dim, rank)
        self.first, self.second, self.third = (nn.Parameter(torch.empty(shape)) for shape in shapes)

    def forward(self, ids: Tensor) -> Tensor:
        return lookup(ids, self.first, self.second, self.third)


Factored = LowRankLinear | FactoredConv | TTEmbedding


def edit_of(module: str, kind: str, ranks: tuple[int, ...]) -> dict[str, Any]:
    """The edit that says this layer's factors; `kind` is svd, tucker2, cp or tt."""
    name = {"svd": "low_rank_linear", "tucker2": "tucker2_conv", "cp": "cp_conv", "tt": "tt_embedding"}[kind]
    return {"edit": name, "module": module} | ({"rank": ranks[0]} if len(ranks) == 1 else {"ranks": list(ranks)})


def factored(layer: nn.Module, edit: dict[str, Any]) -> Factored | None:
    """The module of factors that an edit puts in the place of a layer, its weights not set; None for other edits.

    Raises:
        TypeError: the layer is of another kind.
        ValueError: the layer has no factors of such a rank.
        KeyError: the edit lacks its rank.
    """
    kinds: dict[str, Any] = {
        "low_rank_linear": LowRankConv if isinstance(layer, nn.Conv2d) else LowRankLinear,
        "tucker2_conv": Tucker2Conv,
        "cp_conv": CPConv,
        "tt_embedding": TTEmbedding,
    }
    if edit["edit"] not in kinds:
        return None
    made = kinds[edit["edit"]]
    wanted = {LowRankLinear: nn.Linear, TTEmbedding: nn.Embedding}.get(made, nn.Conv2d)
    if not isinstance(layer, wanted):
        raise TypeError(f"a {type(layer).__name__} has no factors of this kind")
    ranks = edit["ranks"] if "tucker2" in edit["edit"] else edit["rank"]
    with torch.device(next(layer.parameters()).device):
        return made(layer, ranks)


def fill(module: Factored, layer: nn.Module, factors: list[Tensor]) -> None:
    """Give the module its factors, and the bias of the layer that it replaces."""
    with torch.no_grad():
        for parameter, factor in zip((p for p in module.parameters() if p.ndim > 1), factors, strict=True):
            parameter.copy_(factor)
        if isinstance(bias := getattr(layer, "bias", None), Tensor):
            last: Any = module[-1]
            last.bias.copy_(bias)
