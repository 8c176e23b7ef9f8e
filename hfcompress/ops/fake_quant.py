"""Fake quantization: layers that compute in float what int8 kernels will compute.

Weights: symmetric int8, one scale an output channel (a row of an embedding). Activations: one scale a tensor, uint8
with a zero point (target "cpu", what x86 integer kernels multiply) or symmetric int8 (target "tensorrt"). Ranges are
learned by gradient (LSQ: Esser et al. 2020, section 2) or follow the data as a moving average (Jacob et al. 2018,
section 3.1). Weights of target "cpu" are stored as uint8 (see unsigned_weights.py): int8 ones
saturate the 16-bit sums of AVX2 kernels.
"""

import math

import torch
from torch import Tensor, nn

WEIGHT_MAX = 127  # symmetric: -128 is not used
MOMENTUM = 0.05
SMALLEST = 1e-8


def row_scales(weight: Tensor) -> Tensor:
    """The scale of each row of [rows, ...]: its largest absolute value becomes 127."""
    return (weight.detach().abs().flatten(1).amax(dim=1) / WEIGHT_MAX).clamp(min=SMALLEST)


def fake_quant_rows(weight: Tensor) -> Tensor:
    """round(w / s) * s for each row; the gradient passes straight through."""
    zero_points = torch.zeros(weight.shape[0], dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, row_scales(weight), zero_points, 0, -128, 127)


def integer_rows(weight: Tensor) -> Tensor:
    """The int8 values that `fake_quant_rows` stands for (the same rounding: w times the reciprocal of the scale)."""
    inverse = (1.0 / row_scales(weight)).view(-1, *(1,) * (weight.ndim - 1))
    return torch.round(weight.detach() * inverse).clamp(-128, 127).to(torch.int8)


class ActivationQuantizer(nn.Module):
    """Fake-quantizes a whole tensor.

    Args:
        symmetric: int8 from -128 to 127 around 0; otherwise uint8 from 0 to 255 with a zero point.
        learned: the scale is a parameter (LSQ); otherwise it follows a moving average of the extremes in training.

    While `observing` is set, the tensor passes unchanged and its extremes are noted: they are the start of the range.
    """

    def __init__(self, symmetric: bool, learned: bool) -> None:
        super().__init__()
        self.symmetric, self.learned = symmetric, learned
        self.lowest, self.highest = (-128, 127) if symmetric else (0, 255)
        self.observing = False
        self.register_buffer("minimum", torch.zeros(()))
        self.register_buffer("maximum", torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(1), requires_grad=learned)
        self.register_buffer("zero_point", torch.zeros(1))

    def observe(self, x: Tensor) -> None:
        """Let the range cover this tensor's: at once while observing, by a moving average in training."""
        low, high = x.detach().amin().float(), x.detach().amax().float()
        if self.observing:
            self.minimum.copy_(torch.minimum(self.minimum, low))
            self.maximum.copy_(torch.maximum(self.maximum, high))
        else:
            self.minimum.lerp_(low.clamp(max=0.0), MOMENTUM)
            self.maximum.lerp_(high.clamp(min=0.0), MOMENTUM)
        self.set_range()

    def set_range(self) -> None:
        """Scale and zero point from the extremes; 0 is always represented exactly."""
        with torch.no_grad():
            if self.symmetric:
                self.scale.copy_(torch.maximum(-self.minimum, self.maximum).clamp(min=SMALLEST) / self.highest)
            else:
                self.scale.copy_((self.maximum - self.minimum).clamp(min=SMALLEST) / 255)
                self.zero_point.copy_((-self.minimum / self.scale).round().clamp(0, 255))

    def forward(self, x: Tensor) -> Tensor:
        if self.observing:
            self.observe(x)
            return x
        if torch.onnx.is_in_onnx_export():
            return torch.fake_quantize_per_tensor_affine(
                x, float(self.scale), int(self.zero_point), self.lowest, self.highest
            )
        if not self.learned:
            if self.training:
                self.observe(x)
            return torch.fake_quantize_per_tensor_affine(
                x.float(), self.scale.detach().clone(), self.zero_point.int(), self.lowest, self.highest
            )
        # LSQ scales the gradient of the step size by 1 / sqrt(features of an example * highest level) (section 2.2).
        factor = 1.0 / math.sqrt(x[0].numel() * self.highest)
        return torch._fake_quantize_learnable_per_tensor_affine(
            x.float(), self.scale, self.zero_point, self.lowest, self.highest, factor
        )


class FakeQuantLinear(nn.Module):
    """A Linear with fake-quantized weights and input.

    Layers that read the same tensor share one quantizer; only the first owns it, so that it is stored once.
    """

    def __init__(self, layer: nn.Linear, quantizer: ActivationQuantizer, owner: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.quantizer = quantizer if owner else None
        self._shared = [quantizer]

    @property
    def of_input(self) -> ActivationQuantizer:
        """What quantizes the layer's input, its own or another's."""
        return self._shared[0]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.of_input(x), fake_quant_rows(self.weight), self.bias)


class FakeQuantEmbedding(nn.Module):
    """An Embedding with fake-quantized rows."""

    def __init__(self, layer: nn.Embedding) -> None:
        super().__init__()
        self.weight = layer.weight
        self.padding_idx = layer.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return nn.functional.embedding(ids, fake_quant_rows(self.weight))
        rows = nn.functional.embedding(ids, self.weight, self.padding_idx)  # only these rows need be quantized
        return fake_quant_rows(rows.reshape(-1, rows.shape[-1])).view_as(rows)


class FakeQuantConv2d(nn.Conv2d):
    """A convolution with fake-quantized weights; what it reads is quantized where it is made."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            device="meta",  # the weights are the layer's own
        )
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, fake_quant_rows(self.weight), self.bias)
