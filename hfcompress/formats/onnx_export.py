"""From a torch classifier to model.onnx, and what the graph then really is: folding, parity, integer kernels."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hfcompress.architectures.encoders import masks_added
from hfcompress.architectures.text_inputs import inputs_of
from hfcompress.errors import UserError
from hfcompress.formats.unsigned_weights import store_unsigned

Array = np.ndarray[Any, Any]

OPSET = 18
INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # the order of the forward signature: names bind by it
INLINE_LIMIT = 1_000_000_000  # bytes of weights from which on they lie beside the graph, in model.onnx_data
LARGE = 1_000  # elements
INTEGER_OPS = (
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearMatMul",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
    "QAttention",
)


class Logits(torch.nn.Module):
    """The classifier as a function of tensors in the order of these names."""

    def __init__(self, network: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.network(**dict(zip(self.names, tensors, strict=True))).logits


def input_names(network: Any) -> tuple[str, ...]:
    """Return what a text classifier's graph reads; token types where the model tells more than one apart."""
    taken, types = inputs_of(network), getattr(network.config, "type_vocab_size", 0)
    return tuple(name for name in INPUTS if name in taken and (name != "token_type_ids" or types > 1))


def trace(network: Any) -> ModelProto:
    """The graph of a classifier without its weights: they are inputs, named as in the state dict after "network."."""
    network.eval()
    example = torch.ones((2, 16), dtype=torch.long)
    names = input_names(network)
    axes = {**{name: {0: "batch", 1: "sequence"} for name in names}, "logits": {0: "batch"}}
    examples = tuple(torch.zeros_like(example) if name == "token_type_ids" else example for name in names)
    with light_weights(network), masks_added(network):
        return without_weights(Logits(network, names).eval(), examples, names, axes)


def without_weights(
    network: Any, example: tuple[torch.Tensor, ...], inputs: tuple[str, ...], axes: dict[str, dict[int, str]]
) -> ModelProto:
    """The graph from these inputs, in the order of `forward`, to "logits"; the weights are inputs, too.

    The TorchScript exporter with dynamic axes: the route on which integer kernels are found. Without weights in it,
    the exporter's several copies of the graph cost no memory. Whoever calls this compares the outputs.
    """
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that the trace makes constant
        torch.onnx.export(
            network,
            example,
            stream,
            input_names=list(inputs),
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=False,
            export_params=False,
            do_constant_folding=False,
            keep_initializers_as_inputs=False,
            dynamic_axes=axes,
        )
    return onnx.load_from_string(stream.getvalue())


@contextmanager
def light_weights(network: Any) -> Iterator[None]:
    """Meanwhile every large weight is one number seen in its whole shape: the tracer copies all that it is given.

    So weights that are still mapped from their file stay there, and the tracer's copy is the only one in memory. Each
    has a number of its own: the exporter merges parameters that are equal.
    """
    large = [parameter for parameter in network.parameters() if parameter.numel() > LARGE]
    weights = [parameter.data for parameter in large]
    for number, parameter in enumerate(large, 1):
        parameter.data = torch.full((1,), float(number)).expand(parameter.shape)
    try:
        yield
    finally:
        for parameter, weight in zip(large, weights, strict=True):
            parameter.data = weight


def export(
    network: Any,
    out: Path,
    integers: dict[str, Array] | None = None,
    scales: dict[str, Array] | None = None,
    rewrite: Callable[[ModelProto], None] | None = None,
    *,
    signed: bool = False,
) -> None:
    """Write model.onnx for a classifier; with `integers`, weights that are fake-quantized become 8 bits for good.

    Args:
        network: a text classifier in fp32 on the CPU.
        integers, scales: by parameter name, the int8 rows of fake-quantized weights and their scales.
        rewrite: changes the traced graph before the weights that it still reads are added.
        signed: store weights as int8, as TensorRT takes them; else as uint8 (see unsigned_weights.py).
    """
    write_graph(
        trace(network), network, input_names(network), out / "model.onnx", integers, scales, rewrite, signed=signed
    )


def write_graph(
    model: ModelProto,
    network: Any,
    names: tuple[str, ...],
    path: Path,
    integers: dict[str, Array] | None = None,
    scales: dict[str, Array] | None = None,
    rewrite: Callable[[ModelProto], None] | None = None,
    *,
    signed: bool = False,
) -> None:
    """Give a graph that `without_weights` made of the module around `network` its weights, and write it.

    Args:
        names: of the graph's inputs.
        integers, scales, rewrite, signed: as of `export`.
    """
    state = {f"network.{name}": tensor.detach() for name, tensor in network.state_dict().items()}
    parameters = {entry.name for entry in model.graph.input} - set(names)
    inputs = [entry for entry in model.graph.input if entry.name in names]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    if integers is not None and scales is not None:
        fold_integers(
            model, {f"network.{k}": v for k, v in integers.items()}, {f"network.{k}": v for k, v in scales.items()}
        )
        fold_casts(model)
        merge_equal_quantizers(model)
        if not signed:
            store_unsigned(model)
    if rewrite is not None:
        rewrite(model)
    transposed = fold_transposes(model, parameters)
    used = {name for node in model.graph.node for name in node.input}
    weights = {name: (state[name], name in transposed) for name in sorted(parameters & used)}
    write(model, weights, path)


def write(model: ModelProto, weights: dict[str, tuple[torch.Tensor, bool]], path: Path) -> None:
    """Add the weights (tensor, whether to transpose it) one by one: inline, or beside a graph that is too large."""
    inline = sum(tensor.numel() * tensor.element_size() for tensor, _ in weights.values()) < INLINE_LIMIT
    if inline:
        model.graph.initializer.extend(
            numpy_helper.from_array(as_array(t, flip), n) for n, (t, flip) in weights.items()
        )
        onnx.save(model, str(path))
        return
    data = path.with_name(path.name + "_data")
    with data.open("wb") as stream:
        for name, (tensor, flip) in weights.items():
            array = as_array(tensor, flip)
            entry = TensorProto(
                name=name,
                data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
                dims=array.shape,
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in (("location", data.name), ("offset", stream.tell()), ("length", array.nbytes)):
                entry.external_data.add(key=key, value=str(value))
            stream.write(array.data)
            model.graph.initializer.append(entry)
    onnx.save(model, str(path))


def as_array(tensor: torch.Tensor, flip: bool) -> Array:
    return np.ascontiguousarray((tensor.T if flip else tensor).numpy())


def fold_transposes(model: ModelProto, parameters: set[str]) -> set[str]:
    """Remove the Transpose behind each weight that has no other reader; returns what is to be stored transposed."""
    readers = readers_of(model)
    found = set()
    for node in [n for n in model.graph.node if n.op_type == "Transpose" and n.input[0] in parameters]:
        if len(readers[node.input[0]]) == 1:
            found.add(node.input[0])
            replace_input(model, node.output[0], node.input[0])
            model.graph.node.remove(node)
    return found


def fold_integers(model: ModelProto, integers: dict[str, Array], scales: dict[str, Array]) -> None:
    """Replace QuantizeLinear(weight) -> DequantizeLinear by int8 initializers.

    In front of a MatMul the transpose is folded too; an embedding's rows are gathered as int8 and multiplied by their
    gathered scales, so that the table is never dequantized whole.
    """
    for quantize in [n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in integers]:
        name = quantize.input[0]
        (dequantize,) = readers_of(model)[quantize.output[0]]
        for reader in readers_of(model)[dequantize.output[0]]:
            if reader.op_type == "Gather":
                fold_embedding(model, reader, name, integers[name], scales[name])
            else:
                fold_linear(model, reader, name, integers[name], scales[name], dequantize.output[0])
        model.graph.node.remove(quantize)
        model.graph.node.remove(dequantize)
    drop_unused(model)


def fold_linear(model: ModelProto, reader: NodeProto, name: str, rows: Array, scale: Array, old: str) -> None:
    """An int8 weight and its DequantizeLinear; transposed at once where the graph would do it at run time."""
    flip = reader.op_type == "Transpose"
    add_initializers(
        model,
        {
            f"{name}_int8": np.ascontiguousarray(rows.T) if flip else rows,
            f"{name}_scale": scale,
            f"{name}_zero_point": np.zeros(len(scale), dtype=np.int8),
        },
    )
    node = helper.make_node(
        "DequantizeLinear",
        [f"{name}_int8", f"{name}_scale", f"{name}_zero_point"],
        [f"{name}_dequantized"],
        name=f"{name}/DequantizeLinear",
        axis=1 if flip else 0,
    )
    replace_input(model, reader.output[0] if flip else old, node.output[0])
    if flip:
        model.graph.node.remove(reader)
    model.graph.node.insert(0, node)


def fold_embedding(model: ModelProto, gather: NodeProto, name: str, rows: Array, scale: Array) -> None:
    """Gather int8 rows and their scales, and multiply."""
    add_initializers(model, {f"{name}_int8": rows, f"{name}_scale": scale[:, None]})
    ids = gather.input[1]
    nodes = [
        helper.make_node("Gather", [f"{name}_int8", ids], [f"{name}_rows"], name=f"{name}/Gather", axis=0),
        helper.make_node("Gather", [f"{name}_scale", ids], [f"{name}_row_scales"], name=f"{name}/GatherScale", axis=0),
        helper.make_node("Cast", [f"{name}_rows"], [f"{name}_float"], name=f"{name}/Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_float", f"{name}_row_scales"], [gather.output[0]], name=f"{name}/Mul"),
    ]
    place = list(model.graph.node).index(gather)
    model.graph.node.remove(gather)
    for node in reversed(nodes):
        model.graph.node.insert(place, node)


def fold_casts(model: ModelProto) -> None:
    """Replace a Cast of a constant by the cast constant: a zero point is then what explicit QDQ wants, a constant."""
    constants = constant_values(model)
    for node in [n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in constants]:
        kind = helper.tensor_dtype_to_np_dtype(node.attribute[0].i)
        add_initializers(model, {node.output[0]: constants[node.input[0]].astype(kind)})
        model.graph.node.remove(node)
    drop_unused(model)


def merge_equal_quantizers(model: ModelProto) -> None:
    """One QuantizeLinear/DequantizeLinear pair where several quantize the same tensor in the same way."""
    constants = constant_values(model)
    seen: dict[tuple[Any, ...], NodeProto] = {}
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        for node in [n for n in model.graph.node if n.op_type == kind]:
            values = tuple(constants[name].tobytes() if name in constants else name for name in node.input)
            first = seen.setdefault((kind, *values), node)
            if first is not node:
                replace_input(model, node.output[0], first.output[0])
                model.graph.node.remove(node)
    drop_unused(model)


def constant_values(model: ModelProto) -> dict[str, Array]:
    """The tensors of initializers and Constant nodes by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | {
        node.output[0]: numpy_helper.to_array(attribute.t)
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }


def readers_of(model: ModelProto) -> dict[str, list[NodeProto]]:
    """Tensor name -> the nodes that read it."""
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def replace_input(model: ModelProto, old: str, new: str) -> None:
    """Let every reader of `old` read `new`."""
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def read_model(path: Path) -> ModelProto:
    """A model.onnx with its weights.

    Raises:
        UserError: it is not there, damaged or cut short.
    """
    from google.protobuf.message import DecodeError
    from onnx.checker import ValidationError

    if not path.is_file():
        raise UserError(f"{path}: no such file; give an ONNX model")
    try:
        model = onnx.load(str(path))
    except (DecodeError, ValidationError, OSError) as error:
        raise UserError(f"{path} is damaged or cut short ({str(error).splitlines()[0]}); make it again") from None
    if not model.graph.output:
        raise UserError(f"{path} is damaged or cut short (it has no output); make it again")
    return model


def add_initializers(model: ModelProto, arrays: dict[str, Array]) -> None:
    present = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items() if n not in present)


def drop_unused(model: ModelProto) -> None:
    """Remove nodes whose outputs nobody reads, until none is left."""
    outputs = {entry.name for entry in model.graph.output}
    while True:
        used = outputs | {name for node in model.graph.node for name in node.input}
        dead = [node for node in model.graph.node if not used & set(node.output)]
        if not dead:
            return
        for node in dead:
            model.graph.node.remove(node)


def optimized_nodes(path: Path) -> Iterator[NodeProto]:
    """The nodes that onnxruntime really runs: its optimized graph, read back."""
    import onnxruntime

    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        yield from onnx.load(options.optimized_model_filepath).graph.node


def integer_kernels(path: Path) -> int:
    """How many matrix products onnxruntime runs in integer kernels, counted in the optimized graph."""
    return sum(node.op_type in INTEGER_OPS for node in optimized_nodes(path))


def parity(network: Any, path: Path, batch: dict[str, Array]) -> tuple[float, float]:
    """The largest difference of logits between torch and onnxruntime on a padded batch; the largest logit."""
    from hfcompress.formats.runtimes.sessions import onnx_session

    batch = {name: batch[name] for name in input_names(network)}
    (found,) = onnx_session(path, threads=1).run(["logits"], batch)
    with torch.inference_mode():
        logits = network.cpu().eval()(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits
    expected = logits.numpy()
    return float(np.abs(found - expected).max()), float(np.abs(expected).max())


def parity_batch(tokenizer: Any, texts: list[str], max_length: int) -> dict[str, Array]:
    """A padded batch in which swapped inputs are seen: lengths differ, and half of each text is a second segment."""
    encoded = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="np")
    types = np.zeros_like(encoded["input_ids"])
    types[:, types.shape[1] // 2 :] = 1
    return {
        "input_ids": encoded["input_ids"],
        "attention_mask": encoded["attention_mask"],
        "token_type_ids": types * encoded["attention_mask"],
    }
