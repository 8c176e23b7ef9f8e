"""The second moment of a linear layer's inputs, and what an error of its weight costs at its output.

With H = E[x x'] the squared change of the outputs is E|x (W - Q)'|^2 = tr((W - Q) H (W - Q)'): nothing else need be
kept of the inputs.
"""

import torch
from torch import Tensor

from hfcompress.ops.grid import Quantized


def add_batch(hessian: Tensor, count: int, inputs: Tensor) -> int:
    """Make H = X'X / n, of the `count` inputs seen so far, the moment of those and `inputs` together, in place.

    Args:
        hessian: float32 [columns, columns]; zeros before the first batch.
        inputs: [tokens, columns].

    Returns: how many inputs have been seen now.
    """
    inputs = inputs.detach().float()
    total = count + inputs.shape[0]
    if total > count:
        hessian.addmm_(inputs.T, inputs, beta=count / total, alpha=1 / total)
    return total


def output_error(weight: Tensor, quantized: Quantized, hessian: Tensor) -> float:
    """tr((W - Q) H (W - Q)') / rows: mean squared change of an output."""
    return float(row_errors(weight.detach().float() - quantized.dequantize(), hessian).mean())


def relative_output_error(weight: Tensor, quantized: Quantized, hessian: Tensor) -> float:
    """The same as a share of the outputs' mean square tr(W H W') / rows; 0 where there is no output to change."""
    output = float(row_errors(weight.detach().float(), hessian).mean())
    return output_error(weight, quantized, hessian) / output if output > 0 else 0.0


def row_errors(error: Tensor, hessian: Tensor) -> Tensor:
    """d H d' of each row d of an error D [rows, columns] -> [rows]."""
    return torch.einsum("rc,rc->r", error @ hessian, error)
