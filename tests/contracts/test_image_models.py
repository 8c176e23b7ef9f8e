"""What every image architecture of the table keeps: one list of blocks, and all that is worked out from it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageClassification

from hfcompress import architectures
from hfcompress.architectures import IMAGE_MODELS
from hfcompress.architectures.image import Block, Conv, ImageArchitecture, Part
from hfcompress.architectures.image_layers import layers_of_config
from hfcompress.architectures.layers import layers_of
from hfcompress.architectures.meta import meta_model
from hfcompress.architectures.native import config_changes
from hfcompress.architectures.patches import resizes
from hfcompress.compress.quantize.qat_images import prepare
from hfcompress.errors import UserError
from hfcompress.formats.onnx_images import export_images
from hfcompress.formats.runtimes.sessions import onnx_session
from hfcompress.ops.fake_quant import ActivationQuantizer
from hfcompress.planning.devices.mobilenet_graph import mobilenet_graph
from hfcompress.planning.image_graph import Writer
from hfcompress.planning.image_spec import ImageShape

LABELS, SIDE = 3, 24


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    """Return config.json's object of the smallest model."""
    config = AutoConfig.for_model(kind, num_labels=LABELS, **{**IMAGE_MODELS[kind].smallest, **changes})
    found: dict[str, Any] = json.loads(config.to_json_string())
    return found


def network_of(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    network = AutoModelForImageClassification.from_config(AutoConfig.for_model(**config)).eval()
    for module in network.modules():  # transformers' own start lets signals vanish on the way
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return network


def require_layers(config: dict[str, Any]) -> None:
    """The layers of the list are those that torch goes through, with their names, sizes and order."""
    network = meta_model(AutoModelForImageClassification, AutoConfig.for_model(**config))
    with torch.device("meta"):
        real = layers_of(network, {"pixel_values": torch.empty((1, 3, SIDE, SIDE))})
    found = layers_of_config(config, (SIDE, SIDE))
    # Beside the size of what is read: torch reads it with TensorFlow's padding around it.
    assert [(name, replace(layer, size=(1, 1))) for name, layer in found.items()] == [
        (name, replace(layer, size=(1, 1))) for name, layer in real.items()
    ]


def require_graph(config: dict[str, Any], folder: Path) -> None:
    """The graph that is timed has the operators of the exported one; it computes something."""
    export_images(network_of(config), folder, (SIDE, SIDE))
    layers = layers_of_config(config, (SIDE, SIDE))
    written = Writer(False).network(layers).save(folder / "written.onnx", 4)
    kinds = ("Conv", "Add", "MaxPool", "GlobalAveragePool", "Gemm", "Relu", "Clip")
    counts = [Counter(node.op_type for node in onnx.load(str(f)).graph.node) for f in (folder / "model.onnx", written)]
    real, found = ({kind: count[kind] for kind in kinds} for count in counts)
    assert found == real
    pixels = np.full((2, 3, SIDE, SIDE), 0.5, np.float32)
    assert onnx_session(written, 1).run(["z"], {"x": pixels})[0].shape == (2, LABELS)


def require_quantizers(config: dict[str, Any]) -> None:
    """Training in int8 quantizes the image, behind every convolution and sum, and behind the average pool."""
    network = network_of(config)
    architecture = IMAGE_MODELS[config["model_type"]]
    parts = architecture.parts(architecture.with_defaults(config))
    blocks = [part for part in parts if isinstance(part, Block)]
    convs = sum(isinstance(part, Conv) for part in parts) + sum(
        len(block.convs) + (block.shortcut is not None) for block in blocks
    )
    real = layers_of(network, {"pixel_values": torch.zeros(1, 3, SIDE, SIDE)}).values()
    assert convs == sum(layer.kind == "convolution" for layer in real)
    sums = Adds()
    with sums, torch.no_grad():
        network(torch.zeros(1, 3, SIDE, SIDE))
    prepare(network)
    assert len([m for m in network.quantizers if isinstance(m, ActivationQuantizer)]) == 2 + convs + sums.count


class Adds(torch.overrides.TorchFunctionMode):
    """Counts the sums of two images."""

    count = 0

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        tensors = [each for each in arguments if isinstance(each, torch.Tensor) and each.dim() == 4]
        self.count += function.__name__ in ("add", "add_", "__add__", "__iadd__") and len(tensors) == 2
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_the_list_of_blocks_has_the_layers_of_the_modules(kind: str) -> None:
    require_layers(config_of(kind))
    require_layers(json.loads(AutoConfig.for_model(kind).to_json_string()))
    network = meta_model(AutoModelForImageClassification, AutoConfig.for_model(**config_of(kind)))
    assert network.base_model_prefix == IMAGE_MODELS[kind].body
    shape = ImageShape(config_of(kind), (SIDE, SIDE))
    assert shape.network.parameters == sum(p.numel() for p in network.parameters())
    assert sorted(shape.network.names) == sorted(network.state_dict())


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_what_a_config_leaves_out_is_what_transformers_adds(kind: str) -> None:
    full = AutoConfig.for_model(kind).to_dict()
    assert {name: full[name] for name in IMAGE_MODELS[kind].defaults} == dict(IMAGE_MODELS[kind].defaults)


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_the_timed_graph_has_the_operators_of_the_exported_one(kind: str, tmp_path: Path) -> None:
    require_graph(config_of(kind), tmp_path)


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_int8_training_quantizes_behind_every_convolution_and_sum(kind: str) -> None:
    require_quantizers(config_of(kind))


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_a_chips_graph_has_the_work_of_the_layers_or_is_refused_in_a_line(kind: str) -> None:
    if IMAGE_MODELS[kind].on_chip:
        assert mobilenet_graph(config_of(kind), SIDE).macs == ImageShape(config_of(kind), (SIDE, SIDE)).macs
    else:
        with pytest.raises(UserError, match=rf"^a {kind} cannot be planned from its shape; only [^\n]* can$"):
            mobilenet_graph(config_of(kind), SIDE)


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_the_widths_of_a_whole_network_are_its_configs(kind: str) -> None:
    network = network_of(config_of(kind))
    changes = config_changes(network)
    again = AutoConfig.for_model(**{**config_of(kind), **(changes or {})})
    assert not resizes(AutoModelForImageClassification.from_config(again), network)


def changed(architecture: ImageArchitecture, **changes: Any) -> ImageArchitecture:
    """Return an architecture whose first residual block is another."""

    def parts(config: Any) -> tuple[Part, ...]:
        found = list(architecture.parts(config))
        at = next(i for i, part in enumerate(found) if isinstance(part, Block) and part.residual)
        found[at] = replace(found[at], **changes)
        return tuple(found)

    return replace(architecture, parts=parts)


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_a_wrong_list_of_blocks_is_seen(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, config = IMAGE_MODELS[kind], config_of(kind)
    monkeypatch.setitem(architectures.IMAGE_MODELS, kind, changed(right, residual=False, shortcut=None))
    with pytest.raises(AssertionError):
        require_graph(config, tmp_path)
    with pytest.raises(AssertionError):
        require_quantizers(config)
    monkeypatch.setitem(architectures.IMAGE_MODELS, kind, changed(right, convs=(Conv("somewhere", 8, 8, 3),)))
    with pytest.raises(AssertionError):
        require_layers(config)


def test_an_image_model_of_no_table_is_not_trained_in_int8() -> None:
    config = AutoConfig.for_model("convnext", depths=[1, 1], hidden_sizes=[8, 16], num_stages=2)
    with pytest.raises(
        UserError, match=r"^a convnext cannot be trained in int8 yet, only mobilenet_v2 and resnet can$"
    ):
        prepare(AutoModelForImageClassification.from_config(config))
