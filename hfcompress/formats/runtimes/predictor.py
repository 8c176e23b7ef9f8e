"""Predictor: logits of a text classifier's folder, whatever its format."""

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hfcompress.architectures import text_inputs
from hfcompress.architectures.kinds import classifies_texts, is_click_model, is_image_model
from hfcompress.architectures.models import load_tokenizer
from hfcompress.architectures.text_inputs import complete, full_request
from hfcompress.errors import UserError
from hfcompress.folders.guard import read_config
from hfcompress.formats import format_of
from hfcompress.formats.runtimes.answers import label_names, numbers, require_labels
from hfcompress.formats.runtimes.scores import Function, score_function
from hfcompress.tasks.cutting import beginning

Array = np.ndarray[Any, Any]


class Answers(Protocol):
    """What record, shadow and replay need of a model."""

    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def function(self) -> Function:
        """What turns logits into scores (see formats/runtimes/scores.py)."""
        ...

    def logits(self, texts: list[str], max_length: int) -> Array:
        """[texts, labels]."""
        ...


class Predictor:
    """A model folder, loaded once by the runtime of its format.

    Args:
        folder: `save_pretrained` layout, or model.onnx beside config.json and the tokenizer.
        threads: intra-op threads; None for all cores.

    Raises:
        UserError: the folder holds no model that can be run.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self.threads = threads or len(os.sched_getaffinity(0))
        config = text_inputs.full_config(folder)
        self.tokenizer = load_tokenizer(folder)
        if (made_for := config.get("architectures")) and not classifies_texts(config):
            raise UserError(f"{folder} is a {made_for[0]}, which labels no texts; give a sequence classifier")
        self.labels = label_names(config, folder)
        self.function: Function = score_function(config, len(self.labels))
        self.positions = text_inputs.usable_positions(config)
        self.rows: int | None = config.get("vocab_size")
        self.network = format_of(folder).network(folder, self.threads)
        self.runtime, self.inputs, self.alone = self.network.runtime, self.network.inputs, self.network.alone

    def run(self, batch: dict[str, Array]) -> Array:
        """Logits [batch, classes] of int64 arrays [batch, tokens], named as the model's inputs are."""
        feed = {name: batch[name].astype(kind, copy=False) for name, kind in self.inputs.items()}
        return np.asarray(self.network.run(feed))

    def logits(self, texts: list[str], max_length: int, batch_size: int = 32) -> Array:
        """Logits [texts, classes] in the order given.

        Only texts of equally many tokens share a batch: nothing is padded, and a text's answer is the one that it
        gets alone, whatever side the tokenizer pads on and whether or not the model has a padding token.

        Args:
            max_length: tokens that a text is cut to; never more than the model has positions for. What stands behind
                them is not tokenized.

        Raises:
            UserError: there are no texts, the model cannot be asked one, or it answers with nan.
        """
        if not texts:
            raise UserError("there is no text to label")
        length = min(max_length, self.positions or max_length)
        read = [beginning(self.tokenizer, text, length) for text in texts]
        encoded = dict(self.tokenizer(read, truncation=True, max_length=length))
        self._give_empty_texts_a_token(encoded)
        result = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for rows in batches([len(ids) for ids in encoded["input_ids"]], 1 if self.alone else batch_size):
            result[rows] = self._ask({name: [values[i] for i in rows] for name, values in encoded.items()})
        return numbers(result, self.folder)

    def _give_empty_texts_a_token(self, encoded: dict[str, list[list[int]]]) -> None:
        """Put one token into texts that have none, as an empty line has without [CLS]: the model's end or start.

        Raises:
            UserError: the tokenizer has neither.
        """
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        token = next((token for token in known if token is not None), None)
        for row in [row for row, ids in enumerate(encoded["input_ids"]) if not ids]:
            if token is None:
                raise UserError(f"an empty text has no token for {self.folder.name} to read; leave such texts out")
            for name, values in encoded.items():
                values[row] = [token if name == "input_ids" else int(name == "attention_mask")]

    def _ask(self, encoded: dict[str, list[list[int]]]) -> Array:
        """Logits [texts, classes] of texts of equally many tokens.

        Raises:
            UserError: the runtime refuses them, or answers with other than a number for each label.
        """
        try:
            logits = self.run(complete(encoded, self.inputs))
        except UserError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no public base class
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.folder} cannot label a text ({reason}); fetch or make the model again") from error
        require_labels(logits, self.labels, self.folder)
        return logits

    def request(self, sequence_length: int, batch: int = 1) -> dict[str, Array]:
        """A batch of full length, for timing: ordinary word pieces, no padding.

        Raises:
            UserError: the model has fewer positions than that.
        """
        if self.positions is not None and sequence_length > self.positions:
            raise UserError(
                f"--measure.sequence-length {sequence_length}: {self.folder.name} has {self.positions} "
                "positions; give no more than that"
            )
        return complete(full_request(self.tokenizer, sequence_length, batch, self.rows), self.inputs)


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices of equal lengths, at most `size` at a time, the shortest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for _, same in groupby(order, key=lengths.__getitem__):
        rows = list(same)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def open_predictor(folder: Path, threads: int | None = None) -> Any:
    """What can be asked for labels: a `Predictor` of texts, or what config.json says the folder is.

    Raises:
        UserError: the folder holds no classifier that can be run.
    """
    config, found = read_config(folder), format_of(folder)
    if is_click_model(config):
        return found.open(folder, "clicks", threads)
    return found.open(folder, "images" if is_image_model(config) else "text", threads)
