"""ImageArchitecture: an image classifier of convolutions as one list of blocks, worked out from its config.json."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Activation = Literal["relu", "relu6"]


@dataclass(frozen=True)
class Conv:
    """A module with `convolution` (odd kernel, no bias) and `normalization`, and what follows.

    It is padded so that it reads each stride once: its output has ceil(side / stride) pixels, with TensorFlow's
    padding as with torch's.
    """

    name: str
    """Of the classifier's module."""
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    activation: Activation | None = None


@dataclass(frozen=True)
class MaxPool:
    """A max pool of a square kernel, padded by half of it."""

    kernel: int
    stride: int


@dataclass(frozen=True)
class Block:
    """Convolutions one after another, and where `residual` a sum of their output and the input, or its shortcut."""

    name: str
    """Of the classifier's module, whose output is the sum."""
    convs: tuple[Conv, ...]
    residual: bool
    shortcut: Conv | None = None
    """Of the block's input, where it has another shape than the output."""
    activation: Activation | None = None
    """Behind the sum."""


Part = Conv | MaxPool | Block


@dataclass(frozen=True)
class ImageArchitecture:
    """An architecture of transformers: convolutions, an average pool and a Linear.

    Whoever needs its layers reads this one list of blocks: sizes and work of a plan, the graph that is timed, what a
    microcontroller computes, and where training in int8 quantizes. `tests/contracts/test_image_models.py` holds the
    list against the modules, their ONNX and their state dict.
    """

    model_types: tuple[str, ...]
    """config.model_type of its classes."""
    body: str
    """Of the classifier: `base_model_prefix` in transformers."""
    classifier: str
    """Of the classifier: the Linear that gives the logits."""
    defaults: Mapping[str, Any]
    """What a config.json may leave out, as transformers 4.57 has it."""
    parts: Callable[[Mapping[str, Any]], tuple[Part, ...]]
    """The blocks of a config with all fields, in the order of their use."""
    config_changes: Callable[[Any], dict[str, Any] | None]
    """The config's fields that come nearest to the widths of a network that was cut in place; None where no config can
    say them."""
    smallest: Mapping[str, Any]
    """Fields of a config that make a model of it which the contract tests can afford."""
    on_chip: bool = False
    """Whether its int8 graph can be planned for a microcontroller: it has no max pool and no shortcut."""

    def with_defaults(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config with what transformers adds to it."""
        return {**self.defaults, **config}

    def blocks(self, config: Mapping[str, Any]) -> list[Block]:
        """Return the blocks of a config.json that end in a sum."""
        return [p for p in self.parts(self.with_defaults(config)) if isinstance(p, Block) and p.residual]
