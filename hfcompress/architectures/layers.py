"""The convolutions, linear layers and batch norms of a network as numbers: widths, kernels, places of use.

FLOPs count a multiplication and an addition as two (one MAC is 2 FLOPs), as torch.utils.flop_counter does.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = dict[str, "Tensor"]  # as a network is called with
BLOCK = 8  # widths are timed in steps of so many channels: kernels work in such blocks anyway


@dataclass(frozen=True)
class Layer:
    """A convolution, Linear or batch norm at its place in a network."""

    kind: Literal["convolution", "linear", "norm"]
    inputs: int
    outputs: int
    bias: bool = False
    groups: int = 1
    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    size: tuple[int, ...] = (1, 1)  # height and width of what a convolution reads
    positions: int = 1  # that the weights are used at for one example: pixels of the output, or tokens

    @property
    def weights(self) -> int:
        return self.outputs * (self.inputs // self.groups) * int(np.prod(self.kernel))

    @property
    def parameters(self) -> int:
        if self.kind == "norm":
            return 2 * self.outputs
        return self.weights + (self.outputs if self.bias else 0)

    @property
    def bytes(self) -> int:
        """In fp32, with a batch norm's running mean and variance."""
        return 4 * (self.parameters + (2 * self.outputs if self.kind == "norm" else 0))

    @property
    def flops(self) -> int:
        return 0 if self.kind == "norm" else 2 * self.weights * self.positions

    def narrowed(self, inputs: int, outputs: int) -> "Layer":
        """With so many channels less; a depthwise convolution has as many groups as channels."""
        groups = self.groups - inputs if self.groups > 1 and self.groups == self.inputs else self.groups
        return replace(self, inputs=self.inputs - inputs, outputs=self.outputs - outputs, groups=groups)

    def rounded(self) -> "Layer":
        """At the next widths that are timed."""
        inputs, outputs = (-(-width // BLOCK) * BLOCK for width in (self.inputs, self.outputs))
        if 1 < self.groups < self.inputs:  # cannot be cut, so its widths are not looked for
            return self
        return replace(self, inputs=inputs, outputs=outputs, groups=inputs if self.groups > 1 else 1, bias=False)


def layers_of(network: "nn.Module", example: "Batch") -> dict[str, Layer]:
    """Name -> layer, of the convolutions, linear layers and batch norms that a forward pass uses."""
    from torch import nn

    found: dict[str, Layer] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, output: found.__setitem__(name, layer_of(module, inputs[0], output))

    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(note(name)) for name, m in network.named_modules() if isinstance(m, kinds)]
    logits_of(network, example)
    for hook in hooks:
        hook.remove()
    return found


def layer_of(module: Any, read: Any, written: Any) -> Layer:
    """A module as it was called.

    Args:
        read, written: its input and output.
    """
    from torch import nn

    if isinstance(module, nn.BatchNorm2d):
        return Layer("norm", module.num_features, module.num_features)
    if isinstance(module, nn.Linear):
        rows = read.numel() // module.in_features
        return Layer("linear", module.in_features, module.out_features, module.bias is not None, positions=rows)
    return Layer(
        "convolution",
        module.in_channels,
        module.out_channels,
        module.bias is not None,
        module.groups,
        tuple(module.kernel_size),
        tuple(module.stride),
        tuple(read.shape[-2:]),
        written.shape[-2] * written.shape[-1],
    )


def logits_of(network: "nn.Module", batch: "Batch") -> "Tensor":
    """Logits [batch, classes] in eval mode, without gradients; train or eval mode are left as they were."""
    import torch

    training = network.training
    network.eval()
    with torch.no_grad():
        found = network(**batch)
    network.train(training)
    return getattr(found, "logits", found).float()
