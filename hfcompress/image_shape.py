"""An image classifier's shape: its config.json and the size of its images, and what follows from them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError

PROCESSOR_BYTES = 450  # preprocessor_config.json
TENSOR_HEADER = 85  # of a safetensors file, beside the tensor's name
# Bytes of the graph a convolution, measured on exported MobileNetV2s and ResNets: nodes, names and small tensors. The
# torch exporter writes a padding that the model works out itself as a dozen nodes.
CONV_BYTES, CONV_PADDING_BYTES = 830, 3_600
QDQ_CONV_BYTES = 2_550  # 2,240 to 2,850, by the length of the modules' names
QDQ_CHANNEL_BYTES = 17  # weight's scale and zero point 5, bias as int32 4, bias's scale and zero point 8


@dataclass(frozen=True)
class Counts:
    """Of a network: elements, and multiply-accumulates for one image."""

    parameters: int
    stored: int
    """Elements of its state dict: parameters and statistics."""
    header: int
    """Bytes of a safetensors file's header."""
    two_sided: int
    """Weights of the convolutions and linear layers that shrink with what they read and with what they write."""
    one_sided: int
    """Weights of the others: depthwise ones, the one that reads the image, the classifier."""
    channels: int
    """Outputs of all these layers: biases, once batch norms are folded."""
    layers: int
    two_sided_macs: int
    one_sided_macs: int


@dataclass(frozen=True)
class ImageShape:
    """What `plan` knows of an image classifier."""

    config: dict[str, Any]
    size: tuple[int, int]
    """Height and width of the images that it reads."""
    format: str = "transformers"
    weight_bits: int = 32
    keep_flops: float = 1.0
    """Share of the FLOPs that pruning leaves. Its sizes are those of a network that lost the same share of the
    channels of every layer: which ones go is decided by the data, and an early layer has more FLOPs for its bytes
    than a late one."""

    def with_(self, **changes: Any) -> "ImageShape":
        return replace(self, **changes)

    @classmethod
    def read(cls, folder: Path) -> "ImageShape":
        """The shape of a model's folder.

        Raises:
            UserError: config.json or preprocessor_config.json is missing or damaged.
        """
        from hfcompress.evaluation.memory import image_size

        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            height, width = image_size(folder)
        except FileNotFoundError as error:
            name = Path(error.filename).name
            raise UserError(f"{folder} has no {name}: an image model is planned from both its configs") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"a config of {folder} is damaged ({error}); fetch or make the model again") from None
        return cls(config, (int(height), int(width)))

    @property
    def counts(self) -> Counts:
        """Of the unpruned network, built without memory.

        Raises:
            UserError: transformers cannot build it, or it cannot read images of this size.
        """
        return count(json.dumps(self.config, sort_keys=True), self.size)

    @property
    def width_share(self) -> float:
        """Share of the channels that leaves this share of the FLOPs: share^2 two-sided + share one-sided = kept."""
        a, b = self.counts.two_sided_macs, self.counts.one_sided_macs
        wanted = self.keep_flops * (a + b)
        return float(((b * b + 4 * a * wanted) ** 0.5 - b) / (2 * a))

    @property
    def macs(self) -> float:
        """Multiply-accumulates for one image."""
        return self.keep_flops * (self.counts.two_sided_macs + self.counts.one_sided_macs)

    def predicted(self) -> dict[str, Any]:
        """parameters, disk_mb and the rest as `plan` names them, and mmacs; time and memory are not predicted.

        A MAC of a depthwise convolution takes many times as long as one of a dense one: no rate holds for both.
        """
        found, share = self.counts, self.width_share
        weights = share**2 * found.two_sided + share * found.one_sided
        fixed = found.parameters - found.two_sided - found.one_sided
        return {
            "parameters": round(weights + share * fixed),
            "disk_mb": self.disk_bytes(weights, share) / 1e6,
            "ram_mb": None,
            "latency_ms": None,
            "latency_ratio": None,
            "mmacs": self.macs / 1e6,
        }

    def disk_bytes(self, weights: float, share: float) -> float:
        """All files that must be shipped.

        Args:
            weights: elements of the weights that are left; share: of the channels.
        """
        found, files = self.counts, PROCESSOR_BYTES + config_bytes(self.config)
        if self.format == "transformers":
            return files + found.header + 4 * (weights + share * (found.stored - found.two_sided - found.one_sided))
        biases, pads = share * found.channels, bool(self.config.get("tf_padding", False))
        if self.weight_bits == 32:
            return files + 4 * (weights + biases) + found.layers * (CONV_BYTES + CONV_PADDING_BYTES * pads)
        return files + weights * self.weight_bits / 8 + QDQ_CHANNEL_BYTES * biases + found.layers * QDQ_CONV_BYTES


def is_image_model(file: Path) -> bool:
    """Whether a config.json is of an image classifier; of a damaged one nothing is said."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if "vocab_size" in config:  # before transformers is imported
            return False
        from hfcompress.models import is_vision

        return is_vision(config.get("model_type"))
    except (OSError, ValueError, AttributeError, TypeError):
        return False


@cache
def count(text: str, size: tuple[int, int]) -> Counts:
    """Build the network of a config.json on torch's meta device and show it an image without pixels.

    Raises:
        UserError: transformers cannot build it, or it cannot read images of this size.
    """
    import torch
    from torch import nn

    config = json.loads(text)
    try:
        network = on_meta(config)
        pixels = torch.empty((1, config.get("num_channels", 3), *size), device="meta")
        with layers_seen(network) as layers, torch.inference_mode():
            network(pixel_values=pixels)
    except (KeyError, ValueError, RuntimeError, NotImplementedError, TypeError) as error:
        line = str(error).splitlines()[0][:120]
        raise UserError(f"a {config.get('model_type')} cannot be planned for {size[0]}x{size[1]} ({line})") from None
    state = network.state_dict()
    inner = layers[1:-1]
    two_sided = [entry for entry in inner if not isinstance(entry[0], nn.Conv2d) or entry[0].groups == 1]
    one_sided = [entry for entry in layers if entry not in two_sided]
    return Counts(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        stored=sum(tensor.numel() for tensor in state.values()),
        header=sum(len(name) + TENSOR_HEADER for name in state),
        two_sided=sum(layer.weight.numel() for layer, _ in two_sided),
        one_sided=sum(layer.weight.numel() for layer, _ in one_sided),
        channels=sum(layer.weight.shape[0] for layer, _ in layers),
        layers=len(layers),
        two_sided_macs=sum(layer.weight.numel() * positions for layer, positions in two_sided),
        one_sided_macs=sum(layer.weight.numel() * positions for layer, positions in one_sided),
    )


def on_meta(config: dict[str, Any]) -> Any:
    """transformers' classifier of a config, its weights without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    with torch.device("meta"):
        return AutoModelForImageClassification.from_config(known_config(config, AutoConfig)).eval()


def known_config(config: dict[str, Any], auto: Any) -> Any:
    """The config's own class, with defaults for what it does not say."""
    return auto.for_model(**{"model_type": config["model_type"]} | config)


def config_bytes(config: dict[str, Any]) -> int:
    """config.json as `save_pretrained` writes it."""
    from transformers import AutoConfig

    return len(known_config(config, AutoConfig).to_json_string().encode("utf-8"))


@contextmanager
def layers_seen(network: Any) -> Iterator[list[tuple[Any, int]]]:
    """The convolutions and linear layers of a forward pass of one image, and the positions that each is applied at."""
    from torch import nn

    seen: list[tuple[Any, int]] = []

    def note(layer: Any, _: Any, output: Any) -> None:
        seen.append((layer, output.numel() // layer.weight.shape[0]))

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
