"""ImagePredictor: logits of an image classifier's folder, whatever its format."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.errors import UserError
from hfcompress.evaluation.predictor import label_names, numbers, onnx_session

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, Any]


class ImagePredictor:
    """A model folder, loaded once: safetensors (with surgery.json or without) run in torch, model.onnx in onnxruntime.

    Args:
        folder: `save_pretrained` layout, or model.onnx beside config.json and preprocessor_config.json.
        threads: intra-op threads; None for all cores.

    Raises:
        UserError: the folder holds no model that can be run.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        from hfcompress.guard import read_config
        from hfcompress.models import load_image_processor

        self.folder = folder
        self.threads = threads or len(os.sched_getaffinity(0))
        config = read_config(folder)
        self.processor = load_image_processor(folder)
        self.labels = label_names(config, folder)
        self.session: Any = None
        self.network: Any = None
        if (folder / "model.onnx").is_file():
            self.runtime = "onnxruntime"
            self.session = onnx_session(folder / "model.onnx", self.threads)
        else:
            from hfcompress.models import load_classifier

            self.runtime = "torch"
            self.network = load_classifier(folder)

    def run(self, pixel_values: Array) -> Array:
        """Logits [batch, classes] of float32 [batch, 3, height, width]."""
        if self.session is not None:
            return np.asarray(self.session.run(["logits"], {"pixel_values": pixel_values})[0])
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                return np.asarray(self.network(torch.from_numpy(pixel_values)).logits.float().numpy())
        finally:
            torch.set_num_threads(before)

    def logits(self, images: "Sequence[Image]", max_length: int = 0, batch_size: int = 32) -> Array:
        """Logits [images, classes] of RGB images, in the order given (`max_length` is what other predictors need)."""
        if not len(images):
            raise UserError("there is no image to label")
        parts = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
        return numbers(np.concatenate([self.run(self.pixels(part)) for part in parts]), self.folder)

    def pixels(self, images: "Sequence[Image]") -> Array:
        """float32 [images, 3, height, width], by the model's own processor."""
        # Of a very small image the processor would take the height for the channels.
        found = self.processor(list(images), return_tensors="np", input_data_format="channels_last")
        return np.asarray(found["pixel_values"], dtype=np.float32)

    def request(self, batch: int = 1) -> Array:
        """A batch of noise in the size that the processor makes, for timing."""
        from PIL import Image

        shape = self.pixels([Image.new("RGB", (64, 64))]).shape[1:]
        return np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
