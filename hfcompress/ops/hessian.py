"""The second moment of a linear layer's inputs, and what an error of its weight costs at its output.

With H = E[x x'] the squared change of the outputs is E|x (W - Q)'|^2 = tr((W - Q) H (W - Q)'): nothing else need be
kept of the inputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hfcompress.ops.grid import Quantized

BLOCK = 2048  # columns of a moment that are computed at once


@contextmanager
def fast_products() -> Iterator[None]:
    """float32 products of inputs with themselves by oneDNN, in the instructions of the CPU that are fastest.

    Where those are bf16's, both factors are rounded alike: the result is the moment of rounded inputs, and stays
    positive semidefinite. Where there are none it is float32, on AMD twice as fast as MKL's, which torch takes else.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class SecondMoment:
    """E[x x'], E[x] and E[|x|] of inputs [tokens, columns], added up batch by batch.

    The moment is symmetric: only blocks on and below its diagonal are computed, half the work of a wide layer.
    """

    def __init__(self, columns: int) -> None:
        self.hessian, self.count = torch.zeros(columns, columns), 0
        self.mean, self.mean_abs = torch.zeros(columns), torch.zeros(columns)

    def add(self, inputs: Tensor) -> None:
        """inputs: [tokens, columns]."""
        inputs = inputs.detach().float()
        with fast_products():
            for start in range(0, inputs.shape[1], BLOCK):
                block = slice(start, start + BLOCK)
                self.hessian[start:, block].addmm_(inputs[:, start:].T, inputs[:, block])
        self.mean += inputs.sum(0)
        self.mean_abs += inputs.abs().sum(0)
        self.count += len(inputs)

    def finish(self) -> "SecondMoment":
        """Make sums means, and the upper half like the lower; to be called once, after the last batch."""
        for start in range(0, len(self.hessian), BLOCK):
            end = start + BLOCK
            self.hessian[start:end, end:] = self.hessian[end:, start:end].T
        self.hessian /= max(self.count, 1)
        self.mean /= max(self.count, 1)
        self.mean_abs /= max(self.count, 1)
        return self


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
