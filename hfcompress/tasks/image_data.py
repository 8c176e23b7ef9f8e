"""Images as a model is trained and asked: decoded, checked, processed, and varied while training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfcompress.errors import OptionError
from hfcompress.tasks.image_input import decode as decode
from hfcompress.tasks.image_input import pixel_values as pixel_values

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict
    from PIL.Image import Image
    from transformers.image_processing_utils import BaseImageProcessor

KEPT_BYTES = 2_000_000_000  # of processed pixels a split; what is beyond is processed anew each time


@dataclass(frozen=True)
class Augment:
    """How a training image is varied, anew in each epoch; the same after a kill as without one."""

    flip: bool = False
    """Left and right, for every second image."""
    shift: float = 0.0
    """By up to this share of height and width; the border is mirrored."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.shift <= 0.5:
            raise OptionError("shift", "a share of the image, from 0 to 0.5", self.shift)

    def __call__(self, pixels: "torch.Tensor", epoch: int, index: int) -> "torch.Tensor":
        """Return an image [channels, height, width] in the same size, varied by seed, epoch and its row alone.

        Draws from torch's own generator would depend on how many images were fetched ahead before a kill.
        """
        import torch

        drawn = torch.Generator().manual_seed(hash((self.seed, epoch, index)) % 2**63)
        if self.flip and torch.rand((), generator=drawn) < 0.5:
            pixels = pixels.flip(-1)
        height, width = pixels.shape[-2:]
        down, right = round(self.shift * height), round(self.shift * width)
        if down or right:
            padded = torch.nn.functional.pad(pixels[None], (right, right, down, down), mode="reflect")[0]
            top = int(torch.randint(2 * down + 1, (), generator=drawn))
            left = int(torch.randint(2 * right + 1, (), generator=drawn))
            pixels = padded[:, top : top + height, left : left + width]
        return pixels


class Images(Sequence["Image"]):
    """The images of a split, in RGB, decoded when they are asked for."""

    def __init__(self, rows: "Dataset") -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return decode(self.rows[index]["image"])

    def __iter__(self) -> "Iterator[Image]":
        return (decode(row["image"]) for row in self.rows)


class Examples:
    """What the Trainer reads: pixel_values float32 [3, height, width], labels and index, an image a row."""

    def __init__(
        self, images: Images, labels: list[int], processor: "BaseImageProcessor", augment: Augment | None
    ) -> None:
        self.images, self.labels, self.processor, self.augment = images, labels, processor, augment
        self.epoch = 0
        self.kept: dict[int, Any] = {}
        self.room = KEPT_BYTES

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """Vary the images as in this pass over them, counted from 0."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        if (pixels := self.kept.get(index)) is None:
            pixels = torch.from_numpy(pixel_values(self.processor, [self.images[index]])[0])
            if (size := pixels.numel() * pixels.element_size()) <= self.room:
                self.kept[index], self.room = pixels, self.room - size
        if self.augment is not None:
            pixels = self.augment(pixels, self.epoch, index)
        return {"pixel_values": pixels, "labels": self.labels[index], "index": index}


@dataclass(frozen=True)
class ImageData:
    """A loaded task: splits train, validation and test with the columns image (stored), label (int), group (str)."""

    splits: "DatasetDict"
    labels: list[str]
    fingerprint: str
    skipped: dict[str, int]
    """Split -> images that could not be decoded and were left out."""
    notes: tuple[str, ...] = ()
    """What a reader of the report must know of the data: images that stand in two splits, or were left out."""

    def images(self, split: str) -> Images:
        return Images(self.splits[split])

    def inputs(self, split: str, first: int | None = None) -> "Sequence[Image]":
        """The images, or the first so many, as a predictor takes them."""
        return self.images(split) if first is None else self.images(split)[:first]

    def label_ids(self, split: str) -> list[int]:
        return list(self.splits[split]["label"])

    def groups(self, split: str) -> list[str]:
        return list(self.splits[split]["group"])

    def examples(self, processor: "BaseImageProcessor", split: str, augment: Augment | None = None) -> Examples:
        """The split as a model is trained on it; `processor` is the model's own."""
        return Examples(self.images(split), self.label_ids(split), processor, augment)
