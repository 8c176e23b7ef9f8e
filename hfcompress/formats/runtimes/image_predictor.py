"""ImagePredictor: logits of an image classifier's folder, whatever its format."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.architectures.models import load_image_processor
from hfcompress.architectures.text_inputs import full_config
from hfcompress.errors import UserError, needs
from hfcompress.formats import format_of
from hfcompress.formats.runtimes.answers import label_names, numbers, require_labels
from hfcompress.formats.runtimes.scores import Function, score_function
from hfcompress.tasks.image_input import channels_of, pixel_values

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, Any]


class ImagePredictor:
    """A model folder, loaded once by the runtime of its format.

    Args:
        folder: weights of any format beside config.json and preprocessor_config.json.
        threads: intra-op threads; None for all cores.

    Raises:
        UserError: the folder holds no model that can be run.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self.threads = threads or len(os.sched_getaffinity(0))
        config = full_config(folder)
        self.processor = load_image_processor(folder)
        self.channels = channels_of(config)
        if self.channels not in (1, 3):
            raise UserError(f"{folder} takes images of {self.channels} channels; images have 1 (gray) or 3 (RGB) here")
        self.labels = label_names(config, folder)
        self.function: Function = score_function(config, len(self.labels))
        self.network = format_of(folder).network(folder, self.threads)
        self.runtime = self.network.runtime

    def run(self, pixel_values: Array) -> Array:
        """Logits [batch, classes] of float32 [batch, channels, height, width]."""
        return np.asarray(self.network.run({"pixel_values": pixel_values}))

    def logits(self, images: "Iterable[Image]", max_length: int = 0, batch_size: int = 32) -> Array:
        """Logits [images, classes] in the order given (`max_length` is what other predictors need).

        Each image is processed when it is asked for, so that of many photographs one is held as it was decoded.

        Raises:
            UserError: there are no images, the model cannot be asked one, or it answers with nan.
        """
        parts = [self._ask(batch) for batch in same_shapes(map(self.processed, images), batch_size)]
        if not parts:
            raise UserError("there is no image to label")
        return numbers(np.concatenate(parts), self.folder)

    def _ask(self, batch: list[Array]) -> Array:
        """Logits [batch, classes] of arrays [channels, height, width].

        Raises:
            UserError: the runtime refuses them, or answers with other than a number for each label.
        """
        try:
            logits = self.run(np.stack(batch))
        except Exception as error:  # onnxruntime's exceptions share no public base class
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.folder} cannot label an image ({reason}); make the model again") from error
        require_labels(logits, self.labels, self.folder)
        return logits

    def processed(self, image: "Image") -> Array:
        """float32 [channels, height, width], by the model's own processor."""
        return np.asarray(self.pixels([image])[0])

    def pixels(self, images: "Sequence[Image]") -> Array:
        """float32 [images, channels, height, width], by the model's own processor."""
        return np.asarray(pixel_values(self.processor, images, self.channels))

    def request(self, sequence_length: int | None = None, batch: int = 1) -> Array:
        """A batch of noise in the size that the processor makes, for timing (images have no length)."""
        needs("PIL")
        from PIL import Image

        shape = self.pixels([Image.new("RGB", (64, 64))]).shape[1:]
        return np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)


def same_shapes(arrays: Iterable[Array], size: int) -> Iterator[list[Array]]:
    """Batches of at most `size` arrays of one shape, in order."""
    batch: list[Array] = []
    for array in arrays:
        if batch and (len(batch) == size or array.shape != batch[0].shape):
            yield batch
            batch = []
        batch.append(array)
    if batch:
        yield batch
