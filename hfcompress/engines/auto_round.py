"""AutoRound 0.16: signed gradient descent over a whole decoder layer, by its `quantize_block`.

Its grids are ours: signed float16 scales with the middle code as zero, or float16 scales with integer zero points. It
tunes all matrices of a layer together against the layer's own outputs, where ours tunes each matrix against its own.
Both the inputs that it tunes on and those that its reference reads are those of the quantized layers before.
"""

import copy
from collections.abc import Mapping
from typing import Any

from hfcompress.engines.engine import Layer, Rounded, Tuning
from hfcompress.errors import Reason, needs
from hfcompress.ops.grid import Grid, Quantized, encode, representable

BLOCK = "layers.0"
BATCH = 8  # windows of a step; its default


class AutoRound:
    """See `Engine`."""

    package = "auto_round"
    libraries: tuple[str, ...] = ("auto-round",)
    algorithms: Mapping[str, tuple[str, ...]] = {"autoround": ("autoround", "bf16")}

    def refusal(self, algorithm: str, grid: Grid) -> Reason | None:
        return None

    def memory(self, algorithm: str, layer_bytes: float, moment_bytes: float, state_bytes: float) -> float:
        # A copy of the layer, rounded weights, the offsets, their gradients and the best ones; inputs and outputs of
        # all windows, and what the backward pass of a step keeps.
        return 5 * layer_bytes + 12 * state_bytes

    def quantize(self, layer: Layer, algorithm: str, tuning: Tuning) -> Rounded:
        needs("auto_round")
        from hfcompress.engines.isolation import Stack, isolated

        stack = Stack(layer, copy.deepcopy(layer.module))
        with isolated(tuning.autoround.seed):
            tune(stack, layer, tuning)
        found: Any = stack.layers[0].module
        return Rounded({name: integers(found.get_submodule(name), grid) for name, grid in layer.grids.items()})


def tune(stack: Any, layer: Layer, tuning: Tuning) -> None:
    """Quantize a model of one layer where it is: its Linear layers get `scale` and `zp`, and rounded weights."""
    needs("auto_round")
    import auto_round
    from auto_round.algorithms.quantization.sign_round.config import SignRoundConfig
    from transformers import PretrainedConfig

    stack.config, stack.name_or_path = PretrainedConfig(), ""  # a name would be looked for on the Hub
    stack.dtype = next(stack.parameters()).dtype
    for name, module in stack.named_modules():
        module.global_name = name
    first = next(iter(layer.grids.values()))
    tuner = auto_round.AutoRound(
        model=stack,
        tokenizer="",
        scheme=scheme(first),
        layer_config={f"{BLOCK}.module.{name}": scheme(grid) for name, grid in layer.grids.items()},
        alg_configs=SignRoundConfig(iters=tuning.autoround.steps),
        batch_size=BATCH,
        device_map="cpu",
        seed=tuning.autoround.seed,
        enable_torch_compile=False,
        low_cpu_mem_usage=False,
        amp=False,
    )
    windows = [window for batch in layer.batches() for window in batch.split(1)]
    inputs: list[Any] = [(((window,), {}),) for window in windows]
    tuner.quantize_block(block=stack.layers[0], inputs=inputs, q_input=None, device="cpu", auto_offload=False)


def scheme(grid: Grid) -> dict[str, Any]:
    """Return a grid in its words; -1 is the whole row."""
    return {
        "bits": grid.bits,
        "group_size": grid.group_size or -1,
        "sym": grid.symmetric,
        "data_type": "int",
        "act_bits": 16,
    }


def integers(linear: Any, grid: Grid) -> "Quantized":
    """Return the codes of a Linear whose weight lies on the grid of its `scale` and `zp`."""
    import torch

    weight = linear.weight.detach().float()
    groups = weight.shape[0], grid.groups(weight.shape[1])
    scales = representable(linear.scale.detach().float().reshape(groups))
    middle = torch.full(groups, grid.middle, dtype=torch.uint8)
    zeros = middle if grid.symmetric else linear.zp.detach().reshape(groups).to(torch.uint8)
    found: Quantized = encode(weight, scales, zeros, grid)
    return found
