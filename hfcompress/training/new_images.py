"""new_images: a small image classifier of random weights, for the first stage to train from nothing."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.architectures.models import save
from hfcompress.architectures.pretrained import image_processor_class
from hfcompress.errors import OptionError, Reason, UserError
from hfcompress.planning.image_spec import ImageShape
from hfcompress.stage import TENSORS
from hfcompress.tasks.image_classification import ImageClassification

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor

NEW = "new"  # instead of a base's name
SEED = 0


@dataclass(frozen=True)
class NewImages(ABC):
    """What both kinds share: a config as data, so that it can be planned without torch."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TENSORS

    side: int = 48
    """Height and width of the images."""

    def __post_init__(self) -> None:
        if self.side < 1:
            raise OptionError("side", "at least 1", self.side)

    def config(self, labels: list[str]) -> dict[str, Any]:
        """Its config.json."""
        return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}

    @abstractmethod
    def network(self, config: dict[str, Any]) -> "PreTrainedModel":
        """The model of that config with its weights."""

    @abstractmethod
    def processor(self) -> "BaseImageProcessor":
        """What makes its pixels."""

    def __call__(self, out: Path, *, task: ImageClassification) -> dict[str, Any]:
        import torch

        torch.manual_seed(SEED)
        save(self.network(self.config(task.data.labels)), self.processor(), out)
        return {}

    def predict(self, *, task: ImageClassification) -> ImageShape:
        """Its shape."""
        return ImageShape(self.config(task.known_labels or task.data.labels), (self.side, self.side))


@dataclass(frozen=True)
class NewMobileNet(NewImages):
    """A narrow MobileNetV2."""

    width: float = 0.35
    """Its depth_multiplier."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.width < math.inf:
            raise OptionError("width", "above 0 and finite", self.width)

    def config(self, labels: list[str]) -> dict[str, Any]:
        return super().config(labels) | {
            "model_type": "mobilenet_v2",
            "image_size": self.side,
            "depth_multiplier": self.width,
            "min_depth": 8,
            # a last convolution of 1,280 channels would be most of so small a model
            "finegrained_output": False,
            "classifier_dropout_prob": 0.0,
        }

    def network(self, config: dict[str, Any]) -> "PreTrainedModel":
        import torch
        from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

        network = MobileNetV2ForImageClassification(MobileNetV2Config.from_dict(config))
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):  # transformers' own start lets signals vanish on the way
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
        return network

    def processor(self) -> "BaseImageProcessor":
        processor: BaseImageProcessor = image_processor_class("MobileNetV2ImageProcessor")(
            size={"shortest_edge": self.side},
            crop_size={"height": self.side, "width": self.side},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        return processor


@dataclass(frozen=True)
class NewResNet(NewImages):
    """A ResNet of a few blocks."""

    side: int = 32
    """Height and width of the images."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of its stages."""
    blocks: int = 2
    """Of each stage."""
    layer_type: Literal["basic", "bottleneck"] = "basic"
    """Two convolutions a block, or three around a narrow middle."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or min(*self.widths, self.blocks) < 1:
            raise UserError(Reason("{widths} and {blocks}: a stage and a block at least, and numbers above 0"))

    def config(self, labels: list[str]) -> dict[str, Any]:
        return super().config(labels) | {
            "model_type": "resnet",
            "embedding_size": self.widths[0],
            "hidden_sizes": list(self.widths),
            "depths": [self.blocks] * len(self.widths),
            "layer_type": self.layer_type,
        }

    def network(self, config: dict[str, Any]) -> "PreTrainedModel":
        from transformers import ResNetConfig, ResNetForImageClassification

        return ResNetForImageClassification(ResNetConfig.from_dict(config))

    def processor(self) -> "BaseImageProcessor":
        processor: BaseImageProcessor = image_processor_class("ConvNextImageProcessor")(
            size={"shortest_edge": self.side},
            crop_pct=1.0,
            resample=2,  # bilinear: the default is another one in transformers 5
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        return processor
