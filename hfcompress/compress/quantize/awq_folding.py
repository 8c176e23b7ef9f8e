"""AWQ's scales, folded into what writes the scaled columns: the norm or the linear layer before."""

from typing import TYPE_CHECKING

from hfcompress.ops.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hfcompress.architectures.decoders import DecoderKind
    from hfcompress.ops.hessian import SecondMoment


def fold_awq(
    layer: "nn.Module", moments: "dict[str, SecondMoment]", grids: dict[str, Grid], kind: "DecoderKind"
) -> "dict[str, Tensor]":
    """Scale the columns that read large inputs up, and what writes those inputs down (AWQ, section 3.2).

    The norm before q, k, v and before gate, up takes their scales; up_proj's rows take down_proj's. What o_proj reads
    is shared by the heads of a group, and is left alone. The moments follow.

    Returns: the norms' new weights, and up_proj's new bias where it has one.
    """
    from hfcompress.ops.awq import awq_scales

    into_attention, _, into_mlp, out_of_mlp = kind.groups
    folded = {}
    for norm, readers in (("input_layernorm", into_attention), (kind.mlp_norm, into_mlp)):
        linears, moment = [layer.get_submodule(name) for name in readers], moments[readers[0]]
        weights = [linear.weight for linear in linears]
        scales = awq_scales(weights, moment.hessian, moment.mean_abs, grids[readers[0]])
        for weight in weights:
            weight.mul_(scales)
        written = layer.get_submodule(norm).weight
        written.add_(kind.norm_offset).div_(scales).sub_(kind.norm_offset)
        rescale(moment, scales)
        folded[f"{norm}.weight"] = written
    down, moment = layer.get_submodule(out_of_mlp[0]), moments[out_of_mlp[0]]
    scales = awq_scales([down.weight], moment.hessian, moment.mean_abs, grids[out_of_mlp[0]])
    down.weight.mul_(scales)
    up = layer.get_submodule(into_mlp[-1])
    up.weight[-len(scales) :].div_(scales.unsqueeze(1))  # where it is one with the gate, its rows are the last ones
    if up.bias is not None:
        up.bias[-len(scales) :].div_(scales)
        folded[f"{into_mlp[-1]}.bias"] = up.bias
    rescale(moment, scales)
    return folded


def rescale(moment: "SecondMoment", scales: "Tensor") -> None:
    """The moment of inputs that are divided by `scales`."""
    moment.hessian /= scales.unsqueeze(0)
    moment.hessian /= scales.unsqueeze(1)
    moment.mean_abs /= scales
