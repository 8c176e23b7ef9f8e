"""A decoder: a causal LM that reads tokens one after another, whatever runtime computes it."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hfcompress.errors import UserError, needs
from hfcompress.folders.guard import check_foreign

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

    genai_config.json: onnxruntime-genai; a .gguf file: llama.cpp; everything else: torch, where packed integers
    (surgery.json) are simulated in float32.

    Raises:
        UserError: the folder holds no causal LM that can be run, or its runtime is not installed.
    """
    check_foreign(folder)
    if (folder / "genai_config.json").is_file():
        from hfcompress.formats.runtimes.onnx_decoder import OnnxDecoder

        return OnnxDecoder(folder, threads)
    if any(folder.glob("*.gguf")):
        from hfcompress.formats.runtimes.llama_decoder import LlamaDecoder

        return LlamaDecoder(folder, threads)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no language model: neither config.json, nor genai_config.json, nor a .gguf file; give a "
            "model's folder"
        )
    from hfcompress.formats.runtimes.torch_decoder import TorchDecoder

    return TorchDecoder(folder, threads)


def import_runtime(folder: Path) -> None:
    """Import what `open_decoder` will need, so that its memory can be told from the model's."""
    if (folder / "genai_config.json").is_file():
        needs("onnxruntime_genai")
        import onnxruntime_genai  # noqa: F401
    elif any(folder.glob("*.gguf")):
        from hfcompress.formats.runtimes.llama_decoder import import_llama

        import_llama()
    else:
        import hfcompress.formats.runtimes.torch_decoder  # noqa: F401
