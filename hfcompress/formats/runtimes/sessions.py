"""onnxruntime sessions of classifiers: how they are opened, what they take, and which output is the logits."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from hfcompress.errors import UserError

# Their ranges are found on a whole batch: what stands beside a text would change its answer.
RANGES_OF_A_BATCH = (b"DynamicQuantizeLinear", b"DynamicQuantizeMatMul", b"DynamicQuantizeLSTM")


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


def array_type(kind: str) -> Any:
    """The numpy type of a graph's integer input."""
    return {"tensor(int32)": np.int32}.get(kind, np.int64)


def output_name(session: Any, folder: Path) -> str:
    """The graph's output that holds the logits.

    Raises:
        UserError: it cannot be told.
    """
    names = [entry.name for entry in session.get_outputs()]
    if "logits" not in names and len(names) > 1:
        raise UserError(f"{folder / 'model.onnx'} has the outputs {', '.join(names)}, and none is called logits")
    return "logits" if "logits" in names else str(names[0])


def has_ranges_of_a_batch(file: Path) -> bool:
    """Whether a graph finds the ranges of its int8 activations while it runs, over all texts of a batch."""
    if not file.stat().st_size:
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(name) >= 0 for name in RANGES_OF_A_BATCH)
