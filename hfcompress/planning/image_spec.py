"""An image classifier's shape: its config.json and the size of its images, and what follows from them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.architectures import IMAGE_MODELS
from hfcompress.architectures.image_layers import Layers, layers_of_config, narrowed, resized, with_defaults
from hfcompress.architectures.layers import Layer, layers_of
from hfcompress.architectures.meta import meta_model
from hfcompress.architectures.patches import SURGERY, Edit, apply, read_edits
from hfcompress.errors import UserError
from hfcompress.folders.guard import read_config
from hfcompress.formats.memory import image_size
from hfcompress.tasks.image_input import channels_of

BLOCK = 4  # channels
PROCESSOR_BYTES = 450  # preprocessor_config.json
ADDED_BYTES = 120  # to a config.json, when it is saved: architectures, dtype, version
TENSOR_HEADER = 85  # of a safetensors file, beside the tensor's name
# Bytes of the graph a convolution, measured on exported MobileNetV2s and ResNets: nodes, names and small tensors. The
# torch exporter writes a padding that the model works out itself as a dozen nodes.
CONV_BYTES, CONV_PADDING_BYTES = 830, 3_600
QDQ_CONV_BYTES = 2_550  # 2,240 to 2,850, by the length of the modules' names
QDQ_CHANNEL_BYTES = 17  # weight's scale and zero point 5, bias as int32 4, bias's scale and zero point 8
TFLITE_CONV_BYTES = 4_360  # of a .tflite a convolution, measured on MobileNetV2s: operators, tensors and their names
TFLITE_CHANNEL_BYTES = 16  # bias as int32 4, weight's scale 4 and zero point 8
# Peak memory of a process that serves the graph, fitted to measured ones (within 11% of 0.2 to 45 MB, fp32 and int8).
BARE_MB = 49.1  # onnxruntime and numpy, imported
RUNTIME_MB = 63.2  # with a session
LOADED_COPIES = 3.5  # of the file: parsed, held, and packed for the kernels
EDIT_BYTES = 130  # of surgery.json for a layer that was cut, beside its name
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Network:
    """The layers of a network, and what its state dict holds."""

    layers: Layers
    """Convolutions, linear layers and batch norms, by their modules' names, in the order of their use."""
    parameters: int
    names: tuple[str, ...]
    """Of its state dict: parameters and statistics."""
    stored: int
    """Their elements."""

    @property
    def weighted(self) -> list[Layer]:
        """The layers with weights: convolutions and linear ones."""
        return [layer for layer in self.layers.values() if layer.kind != "norm"]

    @property
    def two_sided(self) -> list[Layer]:
        """Those whose weights shrink with what they read and with what they write: not a depthwise convolution, not
        the one that reads the image, not the classifier."""
        return [layer for layer in self.weighted[1:-1] if layer.groups == 1]

    @property
    def weights(self) -> int:
        """Elements of the weights of these layers; `parameters` has biases and norms too."""
        return sum(layer.weights for layer in self.weighted)

    @property
    def channels(self) -> int:
        """Outputs of these layers: biases, once batch norms are folded."""
        return sum(layer.outputs for layer in self.weighted)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return macs(self.weighted)

    @property
    def widest(self) -> int:
        """Elements that a convolution reads and writes, the most of all of them."""
        pixels = (x.inputs * x.size[0] * x.size[1] + x.outputs * x.positions for x in self.weighted)
        return max(pixels)


@dataclass(frozen=True)
class Left:
    """What pruning leaves: weights of the layers, and the share of everything that is there once a channel."""

    weights: float
    channel_share: float


@dataclass(frozen=True)
class ImageShape:
    """What `plan` knows of an image classifier."""

    described_as: ClassVar[str] = "an image classifier"
    packages: ClassVar[tuple[str, ...]] = ("PIL",)
    """What a stage needs for it, see `errors.EXTRAS`."""
    config: dict[str, Any]
    size: tuple[int, int]
    """Height and width of the images that it reads."""
    format: str = "transformers"
    weight_bits: int = 32
    edits: tuple[Edit, ...] = ()
    """Of its surgery.json."""
    keep_flops: float = 1.0
    """Share of the FLOPs that pruning leaves."""
    uniform: bool = False
    """Whether every layer loses the same share of its channels. Otherwise the data decide which go, and an early layer
    has more FLOPs for its bytes than a late one: only bounds can be said."""
    round_to: int = 1
    """Pruned widths are multiples of this."""

    def with_(self, **changes: Any) -> "ImageShape":
        return replace(self, **changes)

    @classmethod
    def read(cls, folder: Path) -> "ImageShape":
        """The shape of a model's folder.

        Raises:
            UserError: config.json, preprocessor_config.json or surgery.json is missing or damaged.
        """
        try:
            config = read_config(folder)
            height, width = image_size(folder)
        except FileNotFoundError as error:
            name = Path(error.filename).name
            raise UserError(f"{folder} has no {name}: an image model is planned from both its configs") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"a config of {folder} is damaged ({error}); fetch or make the model again") from None
        if (channels := channels_of(config)) != 3:
            raise UserError(
                f"{folder} takes {channels} channel(s), and the images of a recipe have 3 (RGB); give a model of "
                "those (predict, profile and export take this one)"
            )
        edits = tuple(read_edits(folder))
        return cls(config, (int(height), int(width)), "surgery" if edits else "transformers", edits=edits)

    @property
    def labels(self) -> list[str]:
        """Of its classes, in order."""
        return list(self.config.get("id2label", {}).values())

    def with_labels(self, labels: list[str]) -> "ImageShape":
        """With a head for other classes."""
        named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        return self.with_(config=self.config | named)

    @property
    def network(self) -> Network:
        """Before it is pruned.

        Raises:
            UserError: transformers cannot build it, it cannot read images of this size, or surgery.json does not fit.
        """
        return network_of(json.dumps(self.config, sort_keys=True), json.dumps(self.edits), self.size)

    @property
    def is_pruned(self) -> bool:
        """Whether stages that are planned will prune it."""
        return self.keep_flops < 1

    @property
    def macs(self) -> float:
        """Multiply-accumulates for one image."""
        return self.keep_flops * self.network.macs

    @property
    def width_share(self) -> float:
        """Share of every layer's channels that leaves this share of the FLOPs: share^2 two-sided + share others."""
        network = self.network
        a = macs(network.two_sided)
        b = network.macs - a
        return float(((b * b + 4 * a * self.keep_flops * network.macs) ** 0.5 - b) / (2 * a))

    def same_share(self) -> Left:
        """What is left where every layer loses the same share of its channels."""
        share, two_sided = self.width_share, sum(layer.weights for layer in self.network.two_sided)
        return Left(share**2 * two_sided + share * (self.network.weights - two_sided), share)

    def at_least(self) -> Left:
        """No pruning to this share of the FLOPs leaves less: all that goes are weights that are used at few pixels.

        A layer keeps at least as large a share of its outputs as of its weights.
        """
        layers, shares = self.emptied(lambda layer: layer.positions)
        outputs = sum(share * layer.outputs for layer, share in zip(layers, shares, strict=True))
        weights = sum(share * layer.weights for layer, share in zip(layers, shares, strict=True))
        return Left(weights, outputs / self.network.channels)

    def at_most(self) -> Left:
        """And none leaves more: all that goes are weights that are used at many pixels, and hardly a channel."""
        layers, shares = self.emptied(lambda layer: -layer.positions)
        return Left(sum(share * layer.weights for layer, share in zip(layers, shares, strict=True)), 1.0)

    def emptied(self, order: Callable[[Layer], int]) -> tuple[list[Layer], list[float]]:
        """The layers in this order, and what each keeps when whole ones go, the last in part, until the FLOPs are met.

        A cut network has of each layer some share of its weights and the same share of its FLOPs, which are weights x
        positions: of all such choices this one, a fractional knapsack, leaves the fewest or the most weights.
        """
        layers, excess, kept = sorted(self.network.weighted, key=order), (1 - self.keep_flops) * self.network.macs, []
        for layer in layers:
            gone = min(1.0, excess / macs([layer]))
            kept.append(1 - gone)
            excess -= gone * macs([layer])
        return layers, kept

    @property
    def ranged(self) -> bool:
        """Whether only the most and the least can be said of what it takes."""
        return self.is_pruned and not self.uniform

    @property
    def timed(self) -> Layers | None:
        """The layers whose time is the model's; uncut where that is the most. None for a graph that is not known, and
        for widths between the blocks that onnxruntime's convolutions compute in: such a one takes longer than uncut.
        """
        if self.format != "onnx" or not is_known(self.config, self.edits):
            return None
        if self.is_pruned and self.round_to % BLOCK:
            return None
        return narrowed(self.network.layers, self.width_share if self.uniform else 1.0, self.round_to)

    def predicted(self, milliseconds: float | None = None, reference_ms: float | None = None) -> dict[str, Any]:
        """parameters, disk_mb and the rest as `plan` names them, and mmacs; memory and time of a graph alone.

        Where the data decide what is pruned, all but mmacs are the most that can be left; `at_least` has the least.

        Args:
            milliseconds: what an image takes (see image_graph.py); reference_ms: what the reference's does.
        """
        ratio = milliseconds / reference_ms if milliseconds and reference_ms else None
        row = self.sizes(self.at_most() if self.ranged else self.same_share()) | {
            "latency_ms": milliseconds,
            "latency_ratio": ratio,
            "mmacs": self.macs / 1e6,
        }
        return row | {"at_least": self.least()} if self.ranged else row

    def least(self) -> dict[str, Any]:
        """What pruning leaves at least, as a plan's limits are named; of time and memory nothing is sure."""
        unsure = dict.fromkeys(("latency_ms", "latency_ratio", "ram_mb", "peak_over_bare_mb", "sram_kb"), 0.0)
        return self.sizes(self.at_least()) | unsure

    def sizes(self, left: Left) -> dict[str, Any]:
        """parameters, disk_mb, and of a graph that is known ram_mb and peak_over_bare_mb."""
        others = self.network.parameters - self.network.weights
        disk_mb, ram_mb = self.disk_bytes(left) / 1e6, None
        if self.format == "onnx" and is_known(self.config, self.edits):
            pixels_mb = left.channel_share * self.network.widest * self.weight_bits / 8e6
            ram_mb = RUNTIME_MB + LOADED_COPIES * disk_mb + pixels_mb
        return {
            "parameters": round(left.weights + left.channel_share * others),
            "disk_mb": disk_mb,
            "ram_mb": ram_mb,
            "peak_over_bare_mb": None if ram_mb is None else ram_mb - BARE_MB,
        }

    def disk_bytes(self, left: Left) -> float:
        """All files that must be shipped."""
        found, files = self.network, PROCESSOR_BYTES + config_bytes(self.config)
        if self.format in ("transformers", "surgery"):
            header = sum(len(name) + TENSOR_HEADER for name in found.names)
            elements = left.weights + left.channel_share * (found.stored - found.weights)
            return files + header + 4 * elements + self.surgery_bytes()
        layers, biases = len(found.weighted), left.channel_share * found.channels
        pads = bool(with_defaults(self.config).get("tf_padding", False))
        if self.format == "litert":
            per_channel = TFLITE_CHANNEL_BYTES if self.weight_bits == 8 else 4
            return files + left.weights * self.weight_bits / 8 + per_channel * biases + layers * TFLITE_CONV_BYTES
        if self.weight_bits == 32:
            return files + 4 * (left.weights + biases) + layers * (CONV_BYTES + CONV_PADDING_BYTES * pads)
        return files + left.weights * self.weight_bits / 8 + QDQ_CHANNEL_BYTES * biases + layers * QDQ_CONV_BYTES

    def surgery_bytes(self) -> int:
        """surgery.json as it lies there, or what it will take when every layer is cut."""
        if self.is_pruned:
            return sum(len(name) + EDIT_BYTES for name in self.network.names if name.endswith(".weight"))
        return len(json.dumps({"edits": self.edits}, indent=1)) if self.edits else 0


def macs(layers: list[Layer]) -> int:
    return sum(layer.weights * layer.positions for layer in layers)


def is_known(config: dict[str, Any], edits: Sequence[Edit]) -> bool:
    """Whether the table of image models has the network, and its edits only change widths."""
    return config.get("model_type") in IMAGE_MODELS and all(edit.get("edit") == "resize" for edit in edits)


@cache
def network_of(config_text: str, edits_text: str, size: tuple[int, int]) -> Network:
    """The network of a config.json and the edits of a surgery.json, without weights.

    Raises:
        UserError: see `ImageShape.network`.
    """
    config, edits = json.loads(config_text), json.loads(edits_text)
    try:
        if not is_known(config, edits):
            return traced(config, edits, size)
        layers = layers_of_config(config, size)
    except (KeyError, ValueError, RuntimeError, NotImplementedError, TypeError, ZeroDivisionError) as error:
        line = str(error).splitlines()[0][:120]
        raise UserError(f"a {config.get('model_type')} cannot be planned for {size[0]}x{size[1]} ({line})") from None
    try:
        layers = resized(layers, edits)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{SURGERY} does not fit a {config['model_type']} ({error}); make the model again") from None
    names, stored = [], 0
    for name, layer in layers.items():
        ends = ["weight", "bias"] if layer.kind == "norm" or layer.bias else ["weight"]
        names += [f"{name}.{end}" for end in (*ends, *(STATISTICS if layer.kind == "norm" else ()))]
        stored += layer.parameters + (2 * layer.outputs + 1 if layer.kind == "norm" else 0)
    parameters = sum(layer.parameters for layer in layers.values())
    return Network(layers, parameters, tuple(names), stored)


def traced(config: dict[str, Any], edits: list[Edit], size: tuple[int, int]) -> Network:
    """Any network of transformers: built on torch's meta device, edited, and shown an image without pixels."""
    import torch

    network = on_meta(config)
    apply(network, edits)
    pixels = torch.empty((1, config.get("num_channels", 3), *size), device="meta")
    layers = layers_of(network, {"pixel_values": pixels})
    state = network.state_dict()
    return Network(
        Layers(layers),
        sum(parameter.numel() for parameter in network.parameters()),
        tuple(state),
        sum(tensor.numel() for tensor in state.values()),
    )


def on_meta(config: dict[str, Any]) -> Any:
    """transformers' classifier of a config, its weights without memory."""
    from transformers import AutoConfig, AutoModelForImageClassification

    return meta_model(AutoModelForImageClassification, known_config(config, AutoConfig)).eval()


def known_config(config: dict[str, Any], auto: Any) -> Any:
    """The config's own class, with defaults for what it does not say."""
    return auto.for_model(**{"model_type": config["model_type"]} | config)


def config_bytes(config: dict[str, Any]) -> int:
    """config.json as `save_pretrained` writes it."""
    added = 0 if "transformers_version" in config else ADDED_BYTES
    return len(json.dumps(with_defaults(config), indent=2)) + added
