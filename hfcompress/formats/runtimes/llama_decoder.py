"""A GGUF file in llama.cpp, token by token, through llama-cpp-python's low-level functions (llama.h's, by name)."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hfcompress.architectures.text_inputs import require_room, require_rows
from hfcompress.errors import UserError, needs

Array = np.ndarray[Any, Any]

BATCH = 512  # tokens that llama.cpp computes at once; logits are kept for each of them
FIRST_ROOM = 512  # tokens that the first key-value cache holds
KEPT: list[Any] = []  # what C calls back, which must not be collected


def import_llama() -> Any:
    """llama_cpp's low-level module, with its log silenced.

    Raises:
        UserError: llama-cpp-python is not installed, or its library does not load.
    """
    try:
        from llama_cpp import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        needs("llama_cpp", str(error))
        raise
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    KEPT[:] = [silent]
    return llama_cpp


class LlamaDecoder:
    """The model of a folder with one .gguf file.

    llama.cpp allots its key-value cache when a context is made, so the cache starts small and is doubled when tokens
    outgrow it: then all tokens so far are computed again, once.

    Args:
        threads: for the prompt and for single tokens alike.

    Raises:
        UserError: llama-cpp-python is not installed, or llama.cpp cannot load the file.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self._llama = llama = import_llama()
        files = sorted(folder.glob("*.gguf"))
        if len(files) != 1:
            raise UserError(f"{folder} has {len(files)} .gguf files; one is wanted")
        self.threads = threads
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        # Read, not mapped: llama.cpp rearranges most weights for its kernels, and a mapping would stay beside them
        # (a 7B in Q4_0: 4.3 GB resident, mapped 8.2).
        params.load_mode = llama.LLAMA_LOAD_MODE_NONE
        self._model = llama.llama_model_load_from_file(str(files[0]).encode(), params)
        if not self._model:
            raise UserError(f"llama.cpp cannot load {files[0]}; make it again")
        self.vocabulary = int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model)))
        self.context = int(llama.llama_model_n_ctx_train(self._model))
        self._ids: list[int] = []
        self._room, self._state = 0, None
        self._batch = llama.llama_batch_init(BATCH, 0, 1)

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return len(self._ids)

    def append(self, ids: list[int], all_logits: bool = False) -> Array:
        """Read tokens.

        Returns: float32 logits after the last one [1, vocab], or after each of them [len(ids), vocab].

        Raises:
            UserError: no token, or more than the context has room for; or the model has no row for one.
        """
        require_room(ids, self.length, self.context)
        require_rows(ids, self.vocabulary)
        if self.length + len(ids) > self._room:
            self._enlarge(self.length + len(ids))
        found = []
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            logits = self._decode(part, len(self._ids), all_logits)
            self._ids += part
            found.append(logits)
        return np.concatenate(found) if all_logits else found[-1]

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind to {length} of {self.length} tokens")
        del self._ids[length:]
        if self._state is not None:
            memory = self._llama.llama_get_memory(self._state)
            self._llama.llama_memory_seq_rm(memory, 0, length, -1)

    def _decode(self, ids: list[int], position: int, all_logits: bool) -> Array:
        """At most BATCH tokens from a position on; their logits, or the last one's."""
        llama, batch = self._llama, self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = all_logits or i == len(ids) - 1
        if (status := llama.llama_decode(self._state, batch)) != 0:
            raise RuntimeError(f"llama_decode gave {status} for {len(ids)} tokens at {position}")
        rows = len(ids) if all_logits else 1
        logits = np.ctypeslib.as_array(llama.llama_get_logits(self._state), (rows, self.vocabulary))
        return logits.astype(np.float32)  # a copy: llama.cpp writes the next ones over it

    def _enlarge(self, tokens: int) -> None:
        """A context with room for so many tokens, with those read so far in it."""
        llama = self._llama
        room = FIRST_ROOM
        while room < tokens:
            room *= 2
        self._free_state()
        params = llama.llama_context_default_params()
        params.n_ctx = self._room = min(room, self.context)
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = self.threads
        self._state = llama.llama_init_from_model(self._model, params)
        if not self._state:
            raise MemoryError(f"llama.cpp has no memory for a context of {self._room} tokens")
        for start in range(0, self.length, BATCH):
            self._decode(self._ids[start : start + BATCH], start, False)

    def _free_state(self) -> None:
        if self._state is not None:
            self._llama.llama_free(self._state)
        self._state = None

    def close(self) -> None:
        """Give the memory back; the decoder cannot be used after."""
        self._free_state()
        if self._model:
            self._llama.llama_batch_free(self._batch)
            self._llama.llama_model_free(self._model)
        self._model = None

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if getattr(self, "_model", None) and not ending():  # when Python ends, llama_cpp's functions are gone already
            self.close()
