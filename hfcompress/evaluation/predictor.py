"""Predictor: logits of a classifier folder, whatever its format."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hfcompress.errors import UserError

Array = np.ndarray[Any, Any]
DEFAULT_LABELS = {"0": "LABEL_0", "1": "LABEL_1"}  # transformers' own, which it leaves out of config.json


class Answers(Protocol):
    """What record, shadow and replay need of a model."""

    @property
    def labels(self) -> Sequence[str]: ...
    def logits(self, texts: list[str], max_length: int) -> Array:
        """[texts, labels]."""
        ...


class Predictor:
    """A model folder, loaded once: safetensors run in torch, model.onnx in plain onnxruntime.

    Args:
        folder: `save_pretrained` layout, or model.onnx beside config.json and the tokenizer.
        threads: intra-op threads; None for all cores.

    Raises:
        UserError: the folder holds no model that can be run.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        from hfcompress.guard import read_config
        from hfcompress.models import load_tokenizer

        self.folder = folder
        self.threads = threads or len(os.sched_getaffinity(0))
        config = read_config(folder)
        self.tokenizer = load_tokenizer(folder)
        made_for = config.get("architectures") or ["ForSequenceClassification"]
        if not any(name.endswith("ForSequenceClassification") for name in made_for):
            raise UserError(f"{folder} is a {made_for[0]}, which labels no texts; give a sequence classifier")
        self.labels = label_names(config, folder)
        self.positions: int = config["max_position_embeddings"]
        self.session: Any = None
        self.network: Any = None
        if (folder / "model.onnx").is_file():
            self.runtime = "onnxruntime"
            self.session = onnx_session(folder / "model.onnx", self.threads)
            self.inputs = [entry.name for entry in self.session.get_inputs()]
        else:
            from hfcompress.models import load_classifier

            self.runtime = "torch"
            self.network = load_classifier(folder)

    def run(self, batch: dict[str, Array]) -> Array:
        """Logits [batch, classes] of padded int64 arrays [batch, tokens]."""
        if self.session is not None:
            return np.asarray(self.session.run(["logits"], {name: batch[name] for name in self.inputs})[0])
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
                return np.asarray(self.network(**tensors).logits.float().numpy())
        finally:
            torch.set_num_threads(before)

    def logits(self, texts: list[str], max_length: int, batch_size: int = 32) -> Array:
        """Logits [texts, classes] in the order given; batched by length, so that little is padded.

        Raises:
            UserError: there are no texts, or the model answers with nan.
        """
        if not texts:
            raise UserError("there is no text to label")
        encoded = self.tokenizer(texts, truncation=True, max_length=max_length)
        order = sorted(range(len(texts)), key=lambda i: len(encoded["input_ids"][i]))
        result: Array | None = None
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            padded = self.tokenizer.pad(
                {name: [values[i] for i in rows] for name, values in encoded.items()}, return_tensors="np"
            )
            logits = self.run({name: np.asarray(array, dtype=np.int64) for name, array in padded.items()})
            if result is None:
                result = np.empty((len(texts), logits.shape[1]), dtype=np.float32)
            result[rows] = logits
        assert result is not None
        return numbers(result, self.folder)

    def request(self, sequence_length: int, batch: int = 1) -> dict[str, Array]:
        """A batch of full length, for timing: ordinary word pieces, no padding.

        Raises:
            UserError: the model has fewer positions than that.
        """
        if sequence_length > self.positions:
            raise UserError(
                f"--measure.sequence-length {sequence_length}: {self.folder.name} has {self.positions} "
                "positions; give no more than that"
            )
        pieces = len(self.tokenizer)
        ids = np.random.default_rng(0).integers(pieces // 2, pieces, (batch, sequence_length))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def label_names(config: dict[str, Any], folder: Path) -> list[str]:
    """What config.json calls the labels, by their numbers.

    Raises:
        UserError: its id2label has no number for each.
    """
    names = config.get("id2label", DEFAULT_LABELS)
    try:
        return [names[key] for key in sorted(names, key=int)]
    except (ValueError, TypeError):
        raise UserError(f"{folder / 'config.json'}: its id2label does not give a name to each number") from None


def numbers(logits: Array, folder: Path) -> Array:
    """The logits as they are.

    Raises:
        UserError: some are nan.
    """
    if np.isnan(logits).any():
        raise UserError(f"{folder} answers with no numbers (nan): its weights are damaged; fetch or make it again")
    return logits


def open_predictor(folder: Path, threads: int | None = None) -> Any:
    """What can be asked for labels: a `Predictor` of texts, or what config.json says the folder is."""
    from hfcompress.evaluation.click_predictor import ClickPredictor
    from hfcompress.evaluation.image_predictor import ImagePredictor
    from hfcompress.guard import read_config
    from hfcompress.models import is_vision

    kind = read_config(folder).get("model_type")
    if kind == "clicks":
        return ClickPredictor(folder, threads)
    return (ImagePredictor if is_vision(kind) else Predictor)(folder, threads)


def onnx_session(path: Path, threads: int) -> Any:
    """An onnxruntime session on the CPU; symmetric int8 graphs get the option that makes their kernels integer.

    Raises:
        UserError: the file is not a model that onnxruntime runs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # on shared cores spinning is far slower
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise UserError(f"{path} cannot be run ({str(error).splitlines()[0][:160]}); make it again") from error
