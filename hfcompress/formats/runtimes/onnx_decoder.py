"""A decoder written for onnxruntime-genai, run by plain onnxruntime; its cache is one buffer, used in place."""

from pathlib import Path
from typing import Any

import numpy as np

from hfcompress.architectures.text_inputs import require_room, require_rows
from hfcompress.errors import UserError
from hfcompress.folders.foreign_files import read_object
from hfcompress.folders.guard import check_foreign

Array = np.ndarray[Any, Any]
CHUNK = 64  # tokens of a prompt read at once: more take more room for logits and activations, and no less time


class OnnxDecoder:
    """See formats/runtimes/decoder.py, Decoder.

    Args:
        folder: model.onnx, its data and genai_config.json; threads: intra-op threads; context: tokens that the cache
        has room for, at most (and if not given) those that genai_config.json names.
    """

    def __init__(self, folder: Path, threads: int, context: int | None = None) -> None:
        import onnxruntime

        check_foreign(folder)
        try:
            settings = read_object(folder / "genai_config.json")["model"]
            longest, decoder = int(settings["context_length"]), settings["decoder"]
            heads, size = int(decoder["num_key_value_heads"]), int(decoder["head_size"])
            self.rows = int(settings["vocab_size"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / 'genai_config.json'} is damaged ({error}); make the model again") from None
        self.context, self.length = min(longest, context or longest), 0
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False  # an arena keeps what a prompt took for ever
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise UserError(
                f"{folder / 'model.onnx'} cannot be run ({str(error).splitlines()[0][:160]}); make it again"
            ) from error
        release_mapped(folder)
        self.binding = self.session.io_binding()
        caches = [entry for entry in self.session.get_inputs() if entry.name.startswith("past_key_values")]
        shape = (1, heads, self.context, size)
        self.caches = {entry.name: np.zeros(shape, NUMPY[entry.type]) for entry in caches}

    def append(self, ids: list[int], all_logits: bool = False) -> Array:
        """Read tokens; logits after the last one [1, vocab], or after each of them.

        Raises:
            UserError: they are more than the context holds, or the model has no row for one.
        """
        require_room(ids, self.length, self.context)
        require_rows(ids, self.rows)
        found = [self._read(ids[start : start + CHUNK], all_logits) for start in range(0, len(ids), CHUNK)]
        return np.concatenate(found) if all_logits else found[-1]

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`; the cache is written over from there."""
        self.length = min(length, self.length)

    def _read(self, ids: list[int], all_logits: bool) -> Array:
        total = self.length + len(ids)
        self.binding.clear_binding_inputs()
        self.binding.clear_binding_outputs()
        self.binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        self.binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
        for name, cache in self.caches.items():
            self.binding.bind_input(name, "cpu", 0, cache.dtype, cache.shape, cache.ctypes.data)
            present = name.replace("past_key_values", "present")
            self.binding.bind_output(present, "cpu", 0, cache.dtype, cache.shape, cache.ctypes.data)
        self.binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(self.binding)
        self.length = total
        logits = self.binding.get_outputs()[-1].numpy()[0]
        return logits if all_logits else logits[-1:].copy()


def release_mapped(folder: Path) -> None:
    """Give pages of the data file back: loading read them all, and most were copied into the kernels' own order.

    What is still read, such as rows of an embedding, comes back from the page cache when it is touched. Linux only.
    """
    import ctypes

    maps, data = Path("/proc/self/maps"), str((folder / "model.onnx.data").resolve())
    if not maps.is_file():
        return
    advise = ctypes.CDLL(None, use_errno=True).madvise
    for line in maps.read_text(encoding="utf-8").splitlines():
        if line.endswith(data):
            start, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


MADV_DONTNEED = 4  # <sys/mman.h>, Linux
NUMPY = {"tensor(float)": np.float32, "tensor(int8)": np.int8}
