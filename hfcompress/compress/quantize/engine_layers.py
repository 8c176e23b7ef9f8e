"""What another tool makes of a causal LM's layers, one at a time, for `WeightOnly`; see engines/engine.py."""

import copy
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from hfcompress.engines import ENGINES
from hfcompress.engines.engine import Layer, Tuning, checked
from hfcompress.errors import OptionError, Reason, needs
from hfcompress.ops.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hfcompress.architectures.decoder_stack import DecoderStack, HiddenStates
    from hfcompress.architectures.decoders import DecoderKind

ALONE = "matrix"  # the name of a matrix that is quantized by itself
TOKENS = 128  # of each window, whose products with such a matrix are formed at once


def require_engine(name: str, algorithm: str, grids: Iterable[Grid] = (), kind: "DecoderKind | None" = None) -> None:
    """Refuse an engine that has not the algorithm, or not on these grids, or not for such a decoder.

    Raises:
        OptionError: saying what to give instead.
        UserError: saying which extra to install.
    """
    engine = ENGINES[name]
    if algorithm not in engine.algorithms:
        have = [*(other for other, found in ENGINES.items() if algorithm in found.algorithms), "own"]
        raise OptionError(
            "engine",
            "it has {known} here, not {wanted}; give one of them with {algorithm}, or {others}",
            name,
            known=", ".join(engine.algorithms),
            wanted=algorithm,
            others=Reason(" or ".join("{engine} " + other for other in have)),
        )
    for grid in sorted(set(grids), key=str):
        if reason := engine.refusal(algorithm, grid):
            raise OptionError("engine", reason, name)
    if kind is not None and algorithm == "awq" and kind.norm_offset:
        why = "its AWQ divides a norm's weight, and this model's norms multiply by 1 + weight; give {engine} own"
        raise OptionError("engine", why, name)
    needs(engine.package)


def writers(kind: "DecoderKind") -> dict[str, tuple[str, ...]]:
    """Return what writes the inputs of Linear layers alone -> those layers, within a decoder layer.

    Where gate and up are one matrix, nothing that is whole writes down_proj's inputs.
    """
    into_attention, _, into_mlp, out_of_mlp = kind.groups
    found = {"input_layernorm": into_attention, kind.mlp_norm: into_mlp}
    return found if kind.fused else found | {into_mlp[-1]: out_of_mlp}


def quantized_layer(
    engine: str,
    algorithm: str,
    tuning: Tuning,
    stack: "DecoderStack",
    layer: "nn.Module",
    states: "tuple[HiddenStates, HiddenStates]",
    grids: dict[str, Grid],
    bf16: bool,
) -> "tuple[dict[str, Tensor], float]":
    """Quantize a decoder layer with an engine, and write its quantized outputs.

    Args:
        layer: as loaded; its weights become what the integers stand for.
        states: what goes into the layer, and where its outputs are written.
        grids: Linear layers within it -> their grids.

    Returns: the tensors that stand for the matrices, changed norms among them, by names within the layer; and the
    squared change of what the layer adds to the hidden states, as a share of that.
    """
    import torch

    from hfcompress.architectures.quantized_model import packed_tensors

    def run(module: "nn.Module", hidden: "Tensor") -> "Tensor":
        return stack.run(module, hidden, bf16)

    given = Layer(layer, grids, states[0].batches, run, writers(stack.kind) if algorithm == "awq" else {})
    answer = checked(ENGINES[engine], given, algorithm, tuning)
    tensors = dict(answer.plain)
    for name, quantized in answer.matrices.items():
        tensors |= packed_tensors(name, quantized)
    with torch.inference_mode():
        before = copy.deepcopy(layer)
        for name, quantized in answer.matrices.items():
            layer.get_submodule(name).weight.copy_(quantized.dequantize())
        for name, value in answer.plain.items():
            layer.get_parameter(name).copy_(value)
        errors = [0.0, 0.0]
        states[1].write(outputs(run, before, layer, states[0].batches(), errors))
    return tensors, errors[0] / errors[1] if errors[1] else 0.0


def outputs(
    run: Any, before: "nn.Module", after: "nn.Module", batches: "Iterator[Tensor]", errors: list[float]
) -> "Iterator[Tensor]":
    """Yield a quantized layer's outputs; add to `errors` their squared change and the square of what it added."""
    for hidden in batches:
        expected, found = run(before, hidden), run(after, hidden)
        errors[0] += float((found - expected).square().sum())
        errors[1] += float((expected - hidden).square().sum())
        yield found


def quantized_matrix(engine: str, algorithm: str, weight: "Tensor", grid: Grid) -> Any:
    """Return a matrix quantized by itself, without calibration; float32 [rows, columns]."""
    return calibrated_matrix(engine, algorithm, Tuning(), weight, grid, lambda: iter(()))


def calibrated_matrix(engine: str, algorithm: str, tuning: Tuning, weight: "Tensor", grid: Grid, batches: Any) -> Any:
    """Return a matrix whose inputs are `batches()`, each [some windows, tokens, columns], quantized by an engine.

    Its products are formed a few tokens at a time and are not kept: a head's are as wide as the vocabulary.
    """
    import torch

    module = torch.nn.Module()
    module.add_module(ALONE, torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta"))
    module.get_submodule(ALONE).weight = torch.nn.Parameter(weight, requires_grad=False)

    def run(module: "nn.Module", hidden: "Tensor") -> "Tensor":
        for tokens in hidden.split(TOKENS, 1):
            module.get_submodule(ALONE)(tokens)
        return hidden

    answer = checked(ENGINES[engine], Layer(module, {ALONE: grid}, batches, run), algorithm, tuning)
    return answer.matrices[ALONE]
