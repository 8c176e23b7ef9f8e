"""What is done to encoders of every architecture in the table: layers found, scored, and cut to smaller classes.

Module names come from the architecture's `Encoder`; nothing here names one.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hfcompress.architectures import ENCODERS
from hfcompress.architectures.encoder import EMBEDDINGS, Encoder
from hfcompress.architectures.factors import LowRankLinear
from hfcompress.architectures.kinds import is_text_classifier
from hfcompress.errors import OptionError, UserError
from hfcompress.ops.importance import l1_norm
from hfcompress.ops.slicing import cut_embedding, cut_layer_norm, cut_linear, head_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEAN_OVER_CLS = 5.0  # how much more the mean of the tokens counts than [CLS] itself, which the residual adds
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")


@dataclass(frozen=True)
class Kept:
    """What stays of an encoder: old layer numbers, for each of them old heads and neurons; residual dimensions."""

    layers: list[int]
    heads: list[Tensor]
    neurons: list[Tensor]
    dimensions: Tensor


def encoder_of(network: Any) -> Encoder:
    """Return the architecture of a text classifier.

    Raises:
        UserError: it is none of the table's, or another head than for sequence classification; see `require_sizes`.
    """
    network = unwrapped(network)
    found = ENCODERS.get(network.config.model_type)
    if found is None or not is_text_classifier(type(network)):
        raise UserError(
            f"{type(network).__name__} cannot be made smaller here: sequence classifiers of "
            f"{', '.join(ENCODERS)} can be cut; give such a model"
        )
    found.require_sizes(vars(network.config) | {"model_type": network.config.model_type})
    return found


def require_native(network: "PreTrainedModel", field: str = "", value: object = None) -> Encoder:
    """Return the architecture, and refuse a model that is no native class any more, where a native one is to be cut.

    Args:
        field: the option that wants a native class, with its `value`; "" where the whole stage does.

    Raises:
        UserError: see `encoder_of`, or the model was cut or factored before.
    """
    found = encoder_of(network)
    if getattr(network, "edits", None):
        reason = (
            "the model was cut or factored before (it has a surgery.json), and this needs a class of transformers; do "
            "this first, and factorize or prune single layers after it"
        )
        raise OptionError(field, reason, value) if field else UserError(reason)
    return found


def unwrapped(model: Any) -> Any:
    """The network inside DistributedDataParallel, or the network itself."""
    return getattr(model, "module", model)


def body(network: Any) -> Any:
    """The encoder below the head."""
    return network.get_submodule(encoder_of(network).body)


def with_attention_maps(network: "PreTrainedModel") -> "PreTrainedModel":
    """The same model with attention that can return its maps (eager); the fused kernels never form them."""
    new = type(network)._from_config(copy.deepcopy(network.config), attn_implementation="eager")
    new.load_state_dict(network.state_dict())
    return new.train(network.training)


@contextmanager
def masks_added(network: Any) -> Iterator[None]:
    """Meanwhile attention is written out, with a mask that is added to its scores.

    transformers 5 gives torch's fused attention a mask of truths instead, of which the exporter makes more nodes in
    every layer (IsNaN, Where). Below 5 the mask is added already, and who attends is chosen when a network is built.
    """
    from transformers import masking_utils

    if not hasattr(masking_utils, "create_bidirectional_mask"):
        yield
        return
    configs = {id(module.config): module.config for module in network.modules() if hasattr(module, "config")}
    kept = [(config, config._attn_implementation) for config in configs.values()]
    for config, _ in kept:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, attention in kept:
            config._attn_implementation = attention


def layers(network: Any) -> list[Any]:
    """The encoder's layers, first to last."""
    return list(body(network).get_submodule(encoder_of(network).layers))


def place(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    """(parent, attribute name) of what a path leads to."""
    parent, _, name = path.rpartition(".")
    return module.get_submodule(parent), name


def put(module: nn.Module, path: str, new: nn.Module) -> None:
    """Set what a path leads to."""
    parent, name = place(module, path)
    setattr(parent, name, new)


def tables(network: Any) -> list[str]:
    """The names of the embedding tables that the architecture has, below the body's `embeddings`."""
    return [name for name in EMBEDDINGS if hasattr(body(network).embeddings, name)]


def layer_norms(network: Any) -> Iterator[tuple[nn.Module, str]]:
    """(parent, attribute name) of every LayerNorm on the residual stream."""
    encoder = encoder_of(network)
    yield body(network).embeddings, "LayerNorm"
    for layer in layers(network):
        yield place(layer, encoder.context_norm)
        yield place(layer, encoder.neurons_norm)


def context_outputs(network: Any) -> list[nn.Linear]:
    """Of each layer: the Linear whose inputs are the heads' contexts, side by side."""
    path = encoder_of(network).context_output
    return [layer.get_submodule(path) for layer in layers(network)]


def neurons_outputs(network: Any) -> list[nn.Linear]:
    """Of each layer: the Linear whose inputs are the feed-forward neurons."""
    path = encoder_of(network).neurons_output
    return [layer.get_submodule(path) for layer in layers(network)]


def classifier(network: Any) -> nn.Linear:
    """The Linear that gives the logits."""
    found: nn.Linear = network.get_submodule(encoder_of(network).classifier)
    return found


def start_as_mean(network: Any) -> None:
    """Make the last layer one that begins by giving the first token the mean of all, and learns on from there.

    A base made for mean pooling (as sentence-transformers') never trained its [CLS], which the native classifier
    reads. Zero queries attend to all tokens alike, identity values pass them on, and a feed-forward block whose
    outputs are zero adds nothing. Keys and the feed-forward block's inputs stay as they are, so that gradients reach
    every matrix from the second step on.

    Raises:
        UserError: the architecture's head cannot pass a mean on.
    """
    encoder, layer = encoder_of(network), layers(network)[-1]
    if not encoder.starts_as_mean:
        reason = "the head of {kind} cuts off negative numbers; give {pooling} cls"
        raise OptionError("pooling", reason, "mean", kind=type(network).__name__)
    query, value, output, last = (
        layer.get_submodule(path)
        for path in (encoder.query, encoder.value, encoder.context_output, encoder.neurons_output)
    )
    pooler = network.get_submodule(encoder.pooler)
    with torch.no_grad():
        for linear in (query, value, output, last, pooler):
            linear.weight.zero_()
            linear.bias.zero_()
        for linear, scale in ((value, 1.0), (output, MEAN_OVER_CLS), (pooler, 1.0)):
            linear.weight.fill_diagonal_(scale)
        for path in (encoder.context_norm, encoder.neurons_norm):
            layer.get_submodule(path).reset_parameters()


def linear_names(network: Any) -> list[str]:
    """Module names of the linear layers of encoder and pooler, factored or not."""
    names = {module: name for name, module in network.named_modules()}
    return [f"{names[parent]}.{name}".lstrip(".") for group in _linear_places(network) for parent, name in group]


def linear_groups(network: Any) -> list[list[tuple[nn.Module, str]]]:
    """(parent, attribute name) of the Linear layers of encoder and pooler; those of a group read the same tensor.

    A layer that consists of two factors is two of them: the first reads what the layer reads, the second the first.
    """
    groups: list[list[tuple[nn.Module, str]]] = []
    for places in _linear_places(network):
        found = [(getattr(parent, name), parent, name) for parent, name in places]
        groups.append(
            [(layer, "down") if isinstance(layer, LowRankLinear) else (parent, name) for layer, parent, name in found]
        )
        groups += [[(layer, "up")] for layer, _, _ in found if isinstance(layer, LowRankLinear)]
    return groups


def encoder_linears(network: Any) -> list[tuple[nn.Module, str]]:
    """(parent, attribute name) of the Linear layers of the encoder alone, without the pooler's."""
    inside = set(body(network).get_submodule(encoder_of(network).layers).modules())
    return [pair for group in linear_groups(network) for pair in group if pair[0] in inside]


def _linear_places(network: Any) -> list[list[tuple[nn.Module, str]]]:
    """Where the native class has its linear layers; those of a group read the same tensor."""
    encoder = encoder_of(network)
    paths = (
        (encoder.query, encoder.key, encoder.value),
        (encoder.context_output,),
        (encoder.neurons_input,),
        (encoder.neurons_output,),
    )
    groups = [[place(layer, path) for path in group] for layer in layers(network) for group in paths]
    return [*groups, [place(network, encoder.pooler)]]


def size(network: Any, ours: str) -> int:
    """One of SIZES, by our name, of a network's config."""
    return int(getattr(network.config, encoder_of(network).name(ours)))


def head_size(network: Any) -> int:
    return size(network, "hidden_size") // size(network, "num_attention_heads")


def cut(network: Any, kept: Kept) -> "PreTrainedModel":
    """Return a new model of the same class with what is kept; `network` is left as it is.

    Heads and neurons must be equally many in all kept layers, and the dimensions as many as heads times head size:
    that is what the class can express.
    """
    encoder, width = encoder_of(network), head_size(network)
    if len({len(heads) for heads in kept.heads}) != 1 or len({len(neurons) for neurons in kept.neurons}) != 1:
        raise ValueError("every layer must keep as many heads, and as many neurons, as the others")
    if len(kept.dimensions) != len(kept.heads[0]) * width:
        raise ValueError(f"{len(kept.dimensions)} dimensions are not {len(kept.heads[0])} heads of {width}")
    counts = len(kept.layers), len(kept.dimensions), len(kept.heads[0]), len(kept.neurons[0])
    sizes = {encoder.name(ours): count for ours, count in zip(SIZES, counts, strict=True)}
    sizes |= dict.fromkeys(encoder.as_hidden_size, len(kept.dimensions))
    new: Any = type(network)(type(network.config).from_dict(network.config.to_dict() | sizes)).eval()
    dims, source, target = kept.dimensions, body(network), body(new)
    for name in tables(network):
        setattr(target.embeddings, name, cut_embedding(getattr(source.embeddings, name), dims))
    target.embeddings.LayerNorm = cut_layer_norm(source.embeddings.LayerNorm, dims)
    before, after = layers(network), layers(new)
    for i, old in enumerate(kept.layers):
        cut_layer(encoder, before[old], after[i], head_rows(kept.heads[i], width), kept.neurons[i], dims)
    put(new, encoder.pooler, cut_linear(network.get_submodule(encoder.pooler), dims, dims))
    put(new, encoder.classifier, cut_linear(classifier(network), None, dims))
    return new


def cut_layer(
    encoder: Encoder, source: nn.Module, target: nn.Module, head_rows: Tensor, neurons: Tensor, dims: Tensor
) -> None:
    """Fill the modules of one layer."""
    rows_and_columns = {
        encoder.query: (head_rows, dims),
        encoder.key: (head_rows, dims),
        encoder.value: (head_rows, dims),
        encoder.context_output: (dims, head_rows),
        encoder.neurons_input: (neurons, dims),
        encoder.neurons_output: (dims, neurons),
    }
    for path, (rows, columns) in rows_and_columns.items():
        linear: Any = source.get_submodule(path)
        put(target, path, cut_linear(linear, rows, columns))
    for path in (encoder.context_norm, encoder.neurons_norm):
        norm: Any = source.get_submodule(path)
        put(target, path, cut_layer_norm(norm, dims))
    attention, _ = place(source, encoder.query)
    if hasattr(attention, "distance_embedding"):  # relative positions: one table for all heads
        place(target, encoder.query)[0].distance_embedding = copy.deepcopy(attention.distance_embedding)


def weight_scores(network: Any, norm: Any = l1_norm) -> tuple[Tensor, Tensor, Tensor]:
    """Heads [layers, heads], neurons [layers, neurons] and dimensions [size] by a norm of their own weights.

    A head's weights are its value rows and its columns of the output projection; a neuron's its row in and its column
    out; a dimension's the embeddings and output projections that write to it (the sum of their norms).
    """
    encoder, width = encoder_of(network), head_size(network)
    heads, neurons = [], []
    written = norm(body(network).embeddings.word_embeddings.weight.T)
    for layer in layers(network):
        value, out, first, last = (
            layer.get_submodule(path).weight
            for path in (encoder.value, encoder.context_output, encoder.neurons_input, encoder.neurons_output)
        )
        per_head = torch.cat([value, out.T], dim=1).reshape(-1, width * (value.shape[1] + out.shape[0]))
        heads.append(norm(per_head))
        neurons.append(norm(torch.cat([first, last.T], dim=1)))
        written = written + norm(out) + norm(last)
    return torch.stack(heads).detach(), torch.stack(neurons).detach(), written.detach()
