"""Network: what computes a classifier's logits from arrays, whatever its runtime; predictors ask it."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hfcompress.architectures.text_inputs import inputs_of
from hfcompress.formats import kind_of
from hfcompress.formats.runtimes.sessions import array_type, has_ranges_of_a_batch, onnx_session, output_name

Array = np.ndarray[Any, Any]
TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


class Network(Protocol):
    """A classifier, loaded once."""

    @property
    def runtime(self) -> str:
        """What computes it, as reports say it."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Name -> numpy type of the integer inputs that it takes."""

    @property
    def alone(self) -> bool:
        """Whether an example must be asked alone, since others beside it would change its answer."""

    def run(self, feed: dict[str, Array]) -> Array:
        """Return logits [batch, classes] of arrays [batch, ...], by the names of the inputs."""


class OnnxNetwork:
    """model.onnx in plain onnxruntime.

    Raises:
        UserError: the file cannot be run, or no output is called logits.
    """

    runtime = "onnxruntime"

    def __init__(self, folder: Path, threads: int) -> None:
        self._file = folder / "model.onnx"
        self._session = onnx_session(self._file, threads)
        self._output = output_name(self._session, folder)
        self.inputs = {entry.name: array_type(entry.type) for entry in self._session.get_inputs()}

    @cached_property
    def alone(self) -> bool:
        return has_ranges_of_a_batch(self._file)

    def run(self, feed: dict[str, Array]) -> Array:
        return np.asarray(self._session.run([self._output], feed)[0])


class TorchNetwork:
    """A module of transformers, whose output has `logits`."""

    runtime = "torch"

    def __init__(self, folder: Path, threads: int) -> None:
        from hfcompress.architectures.models import load_classifier

        self._module, self._threads = load_classifier(folder), threads
        self.inputs = dict.fromkeys(sorted(inputs_of(self._module) & TEXT_INPUTS), np.int64)
        padding = getattr(self._module.config, "pad_token_id", None)  # transformers 5 gives images' configs none
        self.alone = padding is None  # decoders then refuse more than one text

    def run(self, feed: dict[str, Array]) -> Array:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
                return np.asarray(self._module(**tensors).logits.float().numpy())
        finally:
            torch.set_num_threads(before)


class ClickNetwork:
    """A click model in torch."""

    runtime = "torch"
    inputs: Mapping[str, Any] = {}
    alone = False

    def __init__(self, folder: Path) -> None:
        from hfcompress.architectures.click_model import load_click_model

        self._module = load_click_model(folder)

    def run(self, feed: dict[str, Array]) -> Array:
        import torch

        with torch.inference_mode():
            return np.asarray(self._module(**{name: torch.from_numpy(array) for name, array in feed.items()}))


def torch_network(folder: Path, threads: int) -> Network:
    """Return the classifier of a folder of safetensors."""
    return ClickNetwork(folder) if kind_of(folder) == "clicks" else TorchNetwork(folder, threads)
