"""TensorRT's rules: what the suite writes keeps them, and each one broken on purpose is found by its name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from hfcompress.errors import UserError
from hfcompress.formats import tensorrt as tensorrt_onnx
from hfcompress.formats import tensorrt_rules
from tests import onnx_images


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_images.export(onnx_images.mobilenet(), tmp_path_factory.mktemp("tensorrt"))


@pytest.fixture(scope="module")
def written(float_model: Path) -> bytes:
    batches = np.split(onnx_images.images(8), 8)
    return tensorrt_onnx.quantize_for_tensorrt(float_model, batches).SerializeToString()


@pytest.fixture
def model(written: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(written)


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def put(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    tensor(model, name).CopyFrom(numpy_helper.from_array(array, name))


def weights_of(model: onnx.ModelProto, kind: str = "Conv") -> onnx.NodeProto:
    """The DequantizeLinear of a convolution's weights."""
    name = nodes(model, kind)[1 if kind == "Conv" else 0].input[1]
    return next(node for node in model.graph.node if name in node.output)


def test_what_is_written_keeps_every_rule_and_answers_as_before(model: onnx.ModelProto, float_model: Path) -> None:
    tensorrt_rules.require(model, "model.onnx")
    pixel_values = {"pixel_values": onnx_images.images(4)}
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    found = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, pixel_values)[0]
    expected = onnxruntime.InferenceSession(str(float_model)).run(None, pixel_values)[0]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
    kinds = {node.op_type for node in model.graph.node}
    assert "Clip" in kinds
    assert len(nodes(model, "Conv")) == 52


def test_the_residual_alone_is_quantized(model: onnx.ModelProto) -> None:
    producers = {output: node.op_type for node in model.graph.node for output in node.output}
    assert {tuple(sorted(producers[name] for name in add.input)) for add in nodes(model, "Add")} == {
        ("Conv", "DequantizeLinear")
    }


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 11


def zero_point(model: onnx.ModelProto) -> None:
    put(model, nodes(model, "QuantizeLinear")[0].input[2], np.array(3, np.int8))


def unsigned(model: onnx.ModelProto) -> None:
    put(model, nodes(model, "QuantizeLinear")[0].input[2], np.array(0, np.uint8))


def integer_bias(model: onnx.ModelProto) -> None:
    conv = nodes(model, "Conv")[1]
    channels = tensor(model, conv.input[2]).dims[0]
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.zeros(channels, np.int32), "bias_int32"),
            numpy_helper.from_array(np.ones(channels, np.float32), "bias_scale"),
        ]
    )
    dequantize = helper.make_node("DequantizeLinear", ["bias_int32", "bias_scale"], ["bias"], name="bias/DQ", axis=0)
    model.graph.node.insert(0, dequantize)
    conv.input[2] = "bias"


def negative_scale(model: onnx.ModelProto) -> None:
    put(model, nodes(model, "QuantizeLinear")[2].input[1], np.array(-1, np.float32))


def wrong_axis(model: onnx.ModelProto) -> None:
    weights_of(model, "Gemm").attribute[0].i = 1


def computed_weights(model: onnx.ModelProto) -> None:
    """The weights come from the graph's own input."""
    weights_of(model).input[0] = nodes(model, "QuantizeLinear")[0].output[0]


def read_as_integers(model: onnx.ModelProto) -> None:
    quantize = nodes(model, "QuantizeLinear")[0]
    model.graph.node.append(helper.make_node("Flatten", [quantize.output[0]], ["flat"], name="odd"))


def float_weights(model: onnx.ModelProto) -> None:
    conv = nodes(model, "Conv")[1]
    array = numpy_helper.to_array(tensor(model, weights_of(model).input[0])).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(array, "float_weights"))
    conv.input[1] = "float_weights"


def pair_before_clip(model: onnx.ModelProto) -> None:
    """As onnxruntime's quantizer does by itself: Conv, QuantizeLinear, DequantizeLinear, Clip."""
    clip, pattern = nodes(model, "Clip")[0], nodes(model, "QuantizeLinear")[0]
    place = list(model.graph.node).index(clip)
    pair = [
        helper.make_node("QuantizeLinear", [clip.input[0], *pattern.input[1:]], ["odd_int8"], name="odd/Q"),
        helper.make_node("DequantizeLinear", ["odd_int8", *pattern.input[1:]], ["odd_float"], name="odd/DQ"),
    ]
    for node in reversed(pair):
        model.graph.node.insert(place, node)
    clip.input[0] = "odd_float"


def float_residual(model: onnx.ModelProto) -> None:
    producers = {output: node for node in model.graph.node for output in node.output}
    add = nodes(model, "Add")[0]
    for i, name in enumerate(add.input):
        if producers[name].op_type == "DequantizeLinear":
            add.input[i] = producers[producers[name].input[0]].input[0]


@pytest.mark.parametrize(
    ("break_it", "rule"),
    [
        (old_opset, tensorrt_rules.OPSET),
        (zero_point, tensorrt_rules.ZERO_POINT),
        (unsigned, tensorrt_rules.TYPES),
        (integer_bias, tensorrt_rules.TYPES),
        (negative_scale, tensorrt_rules.SCALE),
        (wrong_axis, tensorrt_rules.AXIS),
        (computed_weights, tensorrt_rules.CONSTANT),
        (read_as_integers, tensorrt_rules.PAIRS),
        (float_weights, tensorrt_rules.INPUTS),
        (pair_before_clip, tensorrt_rules.FUSION),
        (float_residual, tensorrt_rules.RESIDUAL),
    ],
)
def test_a_broken_rule_is_named(
    model: onnx.ModelProto, break_it: Callable[[onnx.ModelProto], None], rule: tensorrt_rules.Rule
) -> None:
    break_it(model)
    assert rule in {violation.rule for violation in tensorrt_rules.violations(model)}
    with pytest.raises(UserError, match="breaks TensorRT's rule of"):
        tensorrt_rules.require(model, "model.onnx")


def test_every_rule_is_broken_by_a_test_and_has_its_source() -> None:
    marks = test_a_broken_rule_is_named.pytestmark  # type: ignore[attr-defined]
    assert {rule.name for _, rule in marks[0].args[1]} == {rule.name for rule in tensorrt_rules.RULES}
    assert all(rule.source for rule in tensorrt_rules.RULES)


def test_what_onnxruntime_writes_by_itself_is_refused(float_model: Path, tmp_path: Path) -> None:
    for symmetric, rule in ((False, "zero point"), (True, "fusion")):
        odd = onnx.load(str(onnx_images.quantize(float_model, tmp_path / "odd.onnx", symmetric=symmetric)))
        assert rule in {violation.rule.name for violation in tensorrt_rules.violations(odd)}
        assert tensorrt_rules.is_symmetric(odd) == symmetric
    with pytest.raises(UserError, match="has no QuantizeLinear"):
        tensorrt_rules.require(onnx.load(str(float_model)), "model.onnx")


def test_the_command_names_open_shapes(model: onnx.ModelProto) -> None:
    line = tensorrt_rules.trtexec(model, "model.onnx", {"pixel_values": (1, 3, 32, 32)})
    assert line == "trtexec --onnx=model.onnx --saveEngine=model.engine --shapes=pixel_values:1x3x32x32"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert "--shapes" not in tensorrt_rules.trtexec(model, "model.onnx", {"pixel_values": (1, 3, 32, 32)})
