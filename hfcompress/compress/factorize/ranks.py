"""Which layers of a network become factors, of which ranks, and the factors put in their place; any torch module."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hfcompress.architectures.factors import FactoredConv, LowRankLinear, TTEmbedding, edit_of, factored, fill
from hfcompress.ops.conv_factors import CP, Tucker2
from hfcompress.ops.hessian import SecondMoment
from hfcompress.ops.knapsack import knapsack
from hfcompress.ops.low_rank import Factorization, LowRank, Ranks
from hfcompress.ops.tensor_train import cores, train_weights

Kind = Literal["svd", "tucker2", "cp"]
Measure = Literal["bytes", "flops"]
FORMS: dict[str, Callable[[Tensor, Tensor | None], Factorization]] = {"svd": LowRank, "tucker2": Tucker2, "cp": CP}


@dataclass
class Seen:
    """What a layer was given on calibration data."""

    moment: SecondMoment | None
    """E[x x'] of its inputs, if asked for: a token's, an unfolded patch's (svd), a pixel's channels (tucker2, cp)."""
    inputs: float = 0.0
    """Tokens or pixels that it read, and (`outputs`) wrote, an example."""
    outputs: float = 0.0
    halfway: float = 0.0
    """Pixels after its columns alone, as CP takes them first: as many rows as it wrote, as wide as what it read."""


@dataclass(frozen=True)
class Option:
    """One way to keep a layer: `ranks` of its factors, or None as it is."""

    ranks: Ranks | None
    weights: int
    flops: float  # multiplications and additions for an example
    error: float  # E|change of the output|^2 / E|output|^2

    def cost(self, measure: Measure) -> float:
        return 4.0 * self.weights if measure == "bytes" else self.flops


@dataclass
class Layer:
    """A layer that can be factored, and the ways to do it; the first option is to leave it alone."""

    name: str
    kind: Kind
    factorization: Factorization
    options: list[Option] = field(default_factory=list)


def is_factored(network: nn.Module) -> bool:
    return any(isinstance(module, LowRankLinear | FactoredConv | TTEmbedding) for module in network.modules())


def find_layers(network: nn.Module, names: Iterable[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """Linear layers and convolutions that can be factored, and why others are left alone (name -> reason).

    Args:
        names: only these; None: all of the network.
    """
    owners: dict[int, list[str]] = {}
    modules = dict(network.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            owners.setdefault(id(module.weight), []).append(name)
    found, left_alone = [], {}
    for name in modules if names is None else names:
        module = modules[name]
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        others = [other for other in owners[id(module.weight)] if other != name]
        if others:
            left_alone[name] = f"shared with {others[0]}"
        elif isinstance(module, nn.Conv2d) and module.groups != 1:
            left_alone[name] = "depthwise" if module.groups == module.in_channels else f"{module.groups} groups"
        else:
            found.append(name)
    return found, left_alone


def kind_of(module: nn.Module, kind: Kind) -> Kind:
    """A 1x1 convolution is a linear layer of every pixel."""
    return kind if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 else "svd"


def watch(
    network: nn.Module, names: list[str], batches: Iterable[dict[str, Tensor]], kind: Kind, weighted: bool
) -> dict[str, Seen]:
    """Run the network over calibration batches (without labels), in eval mode, and note what each layer reads.

    Padding tokens (attention_mask 0) are not counted.
    """
    seen = {name: Seen(None) for name in names}
    mask: Tensor | None = None
    examples = 0

    def hook(name: str) -> Any:
        def see(module: Any, arguments: Any, output: Tensor) -> None:
            note(seen[name], module, arguments[0], output, mask, kind_of(module, kind), weighted)

        return see

    hooks = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                mask = batch.get("attention_mask")
                examples += len(next(iter(batch.values())))
                network(**batch)
    finally:
        for handle in hooks:
            handle.remove()
        network.train(training)
    for found in seen.values():
        found.inputs /= max(examples, 1)
        found.outputs /= max(examples, 1)
        found.halfway /= max(examples, 1)
        if found.moment is not None:
            found.moment.finish()
    return seen


def note(
    seen: Seen, module: Any, inputs: Tensor, output: Tensor, mask: Tensor | None, kind: Kind, weighted: bool
) -> None:
    """Add one batch's inputs of a layer."""
    if isinstance(module, nn.Conv2d):
        rows = patches(module, inputs) if kind == "svd" else inputs.permute(0, 2, 3, 1).flatten(0, 2)
        seen.inputs += inputs[:, 0].numel()
        seen.outputs += output[:, 0].numel()
        seen.halfway += len(inputs) * output.shape[2] * inputs.shape[3]
    else:
        tokens = mask is not None and inputs.ndim == 3 and inputs.shape[:2] == mask.shape
        rows = inputs[mask.bool()] if tokens and mask is not None else inputs.flatten(0, -2)
        seen.inputs += len(rows)
        seen.outputs += len(rows)
    if weighted:
        if seen.moment is None:
            seen.moment = SecondMoment(rows.shape[1])
        seen.moment.add(rows.cpu())


def patches(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What a convolution multiplies its weight with: [pixels of the output, in * height * width]."""
    padding: Any = module.padding
    if isinstance(padding, str):
        same = padding == "same"
        padding = [d * (k - 1) // 2 * same for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    unfolded = nn.functional.unfold(inputs, module.kernel_size, module.dilation, padding, module.stride)
    return unfolded.transpose(1, 2).flatten(0, 1)


def layer_options(network: nn.Module, name: str, kind: Kind, seen: Seen) -> Layer:
    """All ways to keep a layer that do not make it larger.

    Raises:
        ValueError: calibration data says nothing of the layer's inputs.
    """
    module: Any = network.get_submodule(name)
    kind = kind_of(module, kind)
    moment = None if seen.moment is None else seen.moment.hessian
    form = FORMS[kind](module.weight, moment)
    layer = Layer(name, kind, form, [Option(None, form.dense, 2 * form.dense * seen.outputs, 0.0)])
    pixels = {  # that each factor writes: a kernel with a stride writes fewer than it reads
        "svd": (seen.outputs, seen.outputs),
        "tucker2": (seen.inputs, seen.outputs, seen.outputs),
        "cp": (seen.inputs, seen.halfway, seen.outputs, seen.outputs),
    }[kind]
    for ranks in form.candidates():
        parts = form.parts(ranks)
        flops = 2 * sum(weights * written for weights, written in zip(parts, pixels, strict=True))
        layer.options.append(Option(ranks, sum(parts), flops, form.error(ranks)))
    return layer


def by_energy(layers: list[Layer], energy: float) -> list[Option]:
    """For each layer the smallest factors that keep this share of its output's mean square."""
    found = []
    for layer in layers:
        whole, *smaller = layer.options
        enough = [option for option in smaller if option.error <= 1 - energy + 1e-12]
        found.append(min(enough, key=lambda option: option.weights, default=whole))
    return found


def by_budget(layers: list[Layer], measure: Measure, keep: float) -> list[Option] | None:
    """An option for each layer, all together at most `keep` of their cost, at the least sum of errors; or None.

    A layer's error falls ever slower with its rank (singular values are sorted), so that taking the best step for its
    cost again and again would be optimal up to the last step; the integer program also is where a fit (CP) is not
    convex, and where the step from factors to the layer as it is jumps.
    """
    options = [[{"cost": o.cost(measure), "error": o.error} for o in layer.options] for layer in layers]
    limit = keep * sum(found[0]["cost"] for found in options)
    chosen = knapsack(options, {"cost": limit}, loss="error")
    return None if chosen is None else [layer.options[i] for layer, i in zip(layers, chosen, strict=True)]


def least(layers: list[Layer], measure: Measure) -> float:
    """The share of the cost that is left when every layer is as small as its options can make it."""
    whole = sum(layer.options[0].cost(measure) for layer in layers)
    return sum(min(option.cost(measure) for option in layer.options) for layer in layers) / whole


def put(network: nn.Module, layer: Layer, ranks: Ranks) -> dict[str, Any]:
    """Replace a layer by its factors; returns the edit that says so."""
    old = network.get_submodule(layer.name)
    edit = edit_of(layer.name, layer.kind, ranks)
    new = factored(old, edit)
    assert new is not None
    fill(new, old, layer.factorization.factors(ranks))
    network.set_submodule(layer.name, new.train(old.training))
    return edit


def put_tensor_train(network: nn.Module, name: str, rank: int) -> dict[str, Any]:
    """Replace an embedding by the tensor train of this rank.

    Raises:
        ValueError: the table has no train of this rank, or is smaller than it.
    """
    old: Any = network.get_submodule(name)
    rows, dim = old.weight.shape
    if (size := train_weights(rows, dim, rank)) >= rows * dim:
        raise ValueError(f"a rank of {rank}: its cores have {size:,} weights, the table {rows * dim:,}")
    edit = edit_of(name, "tt", (rank,))
    new = factored(old, edit)
    assert new is not None
    fill(new, old, cores(old.weight, rank))
    network.set_submodule(name, new.train(old.training))
    return edit
