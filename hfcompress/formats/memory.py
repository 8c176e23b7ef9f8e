"""Memory and load time of a model alone: a fresh process that loads and runs it, and does nothing else.

`python -m hfcompress.formats.memory FOLDER LENGTH THREADS` prints one JSON line. An ONNX folder is served by
onnxruntime and tokenizers alone, a transformers folder by torch and transformers, as a lean server would.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hfcompress.architectures import models
from hfcompress.architectures.loading import load_whole
from hfcompress.architectures.pretrained import stock_tokenizer
from hfcompress.errors import UserError
from hfcompress.folders.foreign_files import read_object
from hfcompress.folders.guard import read_config
from hfcompress.formats import format_of, kind_of
from hfcompress.tasks.image_input import channels_of

TEXT = "Redistribution and use in source and binary forms are permitted under the terms of this agreement. "


def fresh_process(folder: Path, sequence_length: int, threads: int) -> dict[str, float]:
    """Measure a folder in a process of its own.

    Returns: peak_rss_mb, bare_rss_mb (after the imports, before the model), load_ms.
    """
    command = [sys.executable, "-m", "hfcompress.formats.memory", str(folder), str(sequence_length), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def rss_mb(now: bool = False) -> float:
    """The highest resident memory of this process, or what is resident now, in MB.

    (getrusage would count the parent's: it survives fork and exec.)
    """
    wanted = "VmRSS:" if now else "VmHWM:"
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {wanted}")


def serve_onnx(folder: Path, sequence_length: int, threads: int) -> dict[str, float]:
    """Load and run with onnxruntime and the tokenizers library alone."""
    import onnxruntime  # noqa: F401  (imported before `bare` is read, as it belongs to the bare runtime)
    from tokenizers import Tokenizer

    from hfcompress.architectures.text_inputs import complete
    from hfcompress.formats.runtimes.sessions import array_type, onnx_session

    bare = rss_mb()
    begun = time.perf_counter()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(sequence_length)
    session = onnx_session(folder / "model.onnx", threads)  # as it is timed: the options decide which weights unfold
    load_ms = (time.perf_counter() - begun) * 1e3
    encoded = tokenizer.encode(TEXT * (sequence_length // 8))
    arrays = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
    inputs = {entry.name: array_type(entry.type) for entry in session.get_inputs()}
    request = complete({name: [values] for name, values in arrays.items()}, inputs)
    for _ in range(3):
        session.run(None, {name: request[name].astype(kind, copy=False) for name, kind in inputs.items()})
    return {"peak_rss_mb": rss_mb(), "bare_rss_mb": bare, "load_ms": load_ms}


def serve_transformers(folder: Path, sequence_length: int, threads: int) -> dict[str, float]:
    """Load and run with torch and transformers; a model that no stock class has with `hfcompress.load`."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from hfcompress.architectures.text_inputs import inputs_of

    torch.set_num_threads(threads)
    bare = rss_mb()
    begun = time.perf_counter()
    tokenizer = stock_tokenizer(folder)
    if (folder / "surgery.json").is_file():  # from_pretrained would give it new weights
        model = models.load_classifier(folder)
    else:
        model = load_whole(AutoModelForSequenceClassification, folder).eval()
    load_ms = (time.perf_counter() - begun) * 1e3
    encoded: Any = tokenizer(
        TEXT * (sequence_length // 8), truncation=True, max_length=sequence_length, return_tensors="pt"
    )
    taken = inputs_of(model)
    with torch.inference_mode():
        for _ in range(3):
            model(**{name: values for name, values in encoded.items() if name in taken})
    return {"peak_rss_mb": rss_mb(), "bare_rss_mb": bare, "load_ms": load_ms}


def serve_clicks(folder: Path, rows: int, threads: int) -> dict[str, float]:
    """Load and run a click model on a slate of so many rows: with onnxruntime alone where the folder holds a graph."""
    import numpy as np

    format_of(folder).import_runtime("clicks", threads)
    from hfcompress.formats.runtimes.click_predictor import ClickPredictor

    bare = rss_mb()
    begun = time.perf_counter()
    predictor = ClickPredictor(folder, threads)
    load_ms = (time.perf_counter() - begun) * 1e3
    ids: dict[str, Any] = {name: np.arange(rows) for name in predictor.config["columns"]}
    for _ in range(3):
        predictor.run(ids | {"dense": np.zeros((rows, predictor.config["features"]), dtype=np.float32)})
    return {"peak_rss_mb": rss_mb(), "bare_rss_mb": bare, "load_ms": load_ms}


def serve_images(folder: Path, batch: int, threads: int) -> dict[str, float]:
    """Load and run an image classifier: with onnxruntime alone where the folder holds a graph."""
    import numpy as np

    found = format_of(folder)
    found.import_runtime("images", threads)
    import hfcompress.formats.runtimes.networks  # noqa: F401

    bare = rss_mb()
    begun = time.perf_counter()
    network = found.network(folder, threads)
    load_ms = (time.perf_counter() - begun) * 1e3
    pixels = np.zeros((batch, channels_of(read_config(folder)), *image_size(folder)), dtype=np.float32)
    for _ in range(3):
        network.run({"pixel_values": pixels})
    return {"peak_rss_mb": rss_mb(), "bare_rss_mb": bare, "load_ms": load_ms}


def image_size(folder: Path) -> tuple[int, int]:
    """Height and width that preprocessor_config.json makes of an image.

    Raises:
        UserError: it is damaged, or does not say them.
    """
    file = folder / "preprocessor_config.json"
    try:
        found = read_object(file)
        size: Any = found["crop_size"] if found.get("do_center_crop") else found["size"]
        size = {"shortest_edge": size} if isinstance(size, int) else size
        return int(size.get("height", size.get("shortest_edge"))), int(size.get("width", size.get("shortest_edge")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged, or does not say the size of an image ({error}); save it anew") from None


def pixels_read(folder: Path, config: Any) -> tuple[int, int]:
    """Height and width of a model's images, by its processor, else by its config.

    Raises:
        UserError: neither says them.
    """
    if (folder / "preprocessor_config.json").is_file():
        return image_size(folder)
    side = getattr(config, "image_size", None)
    if side is None:
        raise UserError(f"{folder} does not say the size of its images; save its preprocessor_config.json there")
    return (side, side) if isinstance(side, int) else (side[0], side[-1])


def serve(folder: Path, length: int, threads: int) -> dict[str, float]:
    """Load and run a classifier by its format; see `fresh_process`."""
    kind = kind_of(folder)
    return format_of(folder).serve(folder, "text" if kind == "language" else kind, length, threads)


if __name__ == "__main__":
    model_folder, length, thread_count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps({name: round(value, 1) for name, value in serve(model_folder, length, thread_count).items()}))
