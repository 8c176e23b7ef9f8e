"""A decoder: a causal LM that reads tokens one after another, whatever runtime computes it."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hfcompress.errors import UserError
from hfcompress.folders.guard import check_foreign
from hfcompress.formats import FORMATS, format_of

Array = np.ndarray[Any, Any]


class Decoder(Protocol):
    """A model and the tokens that it has read so far (its key-value cache)."""

    @property
    def length(self) -> int:
        """Tokens read so far."""

    @property
    def context(self) -> int:
        """The most tokens that it can hold."""

    def append(self, ids: list[int], all_logits: bool = False) -> Array:
        """Read tokens; float32 logits after the last one [1, vocab], or after each of them [len(ids), vocab]."""

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`."""


def open_decoder(folder: Path, threads: int) -> Decoder:
    """The model of a folder, loaded by the runtime that its files are written for.

    Raises:
        UserError: the folder holds no causal LM that can be run, or its runtime is not installed.
    """
    check_foreign(folder)
    found = format_of(folder)
    if found is FORMATS["transformers"] and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no language model: neither config.json, nor genai_config.json, nor a .gguf file; give a "
            "model's folder"
        )
    decoder: Decoder = found.open(folder, "language", threads)
    return decoder
