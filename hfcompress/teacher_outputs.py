"""The teacher's outputs over the training data: computed once, in order of the data, memory-mapped."""

import json
import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hfcompress import bert
from hfcompress.models import load_classifier, load_tokenizer
from hfcompress.record import write_json
from hfcompress.training import progress_wanted, use_bf16

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

CHUNK = 512  # rows between two entries of the journal
BATCH = 64


@dataclass(frozen=True)
class Wanted:
    """What is kept beside the logits; layers are numbered as hidden_states is (0: embeddings, i: after layer i)."""

    hidden_layers: tuple[int, ...] = ()
    attention_layers: tuple[int, ...] = ()
    relation_layer: int | None = None


class Teacher(Protocol):
    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs for a padded batch: logits [batch, classes] and, as wanted, hidden [batch, tokens, layers, size],
        attention [batch, tokens, tokens, layers] (mean over heads), relations [batch, tokens, 3 (Q, K, V), size]."""


class LiveTeacher:
    """Recomputes the outputs for every batch: no disk, more time."""

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        self.network = load_classifier(folder)
        if wanted.attention_layers:
            self.network.set_attn_implementation("eager")
        self.wanted = wanted

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = batch["input_ids"].device
        if next(self.network.parameters()).device != device:
            self.network.to(device)
        autocast = torch.autocast(device.type, torch.bfloat16) if use_bf16("auto") else nullcontext()
        with torch.no_grad(), autocast:
            return forward(self.network, batch, self.wanted)


def forward(network: "PreTrainedModel", batch: dict[str, Tensor], wanted: Wanted) -> dict[str, Tensor]:
    """A forward pass that returns what is wanted (see `Teacher`); gradients flow where they are on."""
    captured: dict[str, Tensor] = {}
    hooks = []
    if wanted.relation_layer is not None:
        attention = bert.layers(network)[wanted.relation_layer - 1].attention.self
        for name in ("query", "key", "value"):
            hook = getattr(attention, name).register_forward_hook(
                lambda module, inputs, output, name=name: captured.__setitem__(name, output)
            )
            hooks.append(hook)
    try:
        result = network(
            **{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch},
            output_hidden_states=bool(wanted.hidden_layers),
            output_attentions=bool(wanted.attention_layers),
        )
    finally:
        for hook in hooks:
            hook.remove()
    outputs = {"logits": result.logits}
    if wanted.hidden_layers:
        outputs["hidden"] = torch.stack([result.hidden_states[i] for i in wanted.hidden_layers], dim=2)
    if wanted.attention_layers:
        maps = [result.attentions[i - 1].mean(dim=1) for i in wanted.attention_layers]
        outputs["attention"] = torch.stack(maps, dim=-1)
    if captured:
        outputs["relations"] = torch.stack([captured[name] for name in ("query", "key", "value")], dim=2)
    return outputs


class CachedTeacher:
    """Outputs read from disk by the batch's `index`: logits in fp32, all else in fp16, only for real tokens."""

    def __init__(self, folder: Path, lengths: "np.ndarray[Any, Any]", classes: int, size: int, wanted: Wanted) -> None:
        self.folder = folder
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.square_starts = np.concatenate([[0], np.cumsum(lengths.astype(np.int64) ** 2)])
        self.lengths = lengths
        tokens, pairs = int(self.starts[-1]), int(self.square_starts[-1])
        self.arrays = {"logits": self._open("logits", (len(lengths), classes), np.float32)}
        if wanted.hidden_layers:
            self.arrays["hidden"] = self._open("hidden", (tokens, len(wanted.hidden_layers), size), np.float16)
        if wanted.attention_layers:
            self.arrays["attention"] = self._open("attention", (pairs, len(wanted.attention_layers)), np.float16)
        if wanted.relation_layer is not None:
            self.arrays["relations"] = self._open("relations", (tokens, 3, size), np.float16)

    def _open(self, name: str, shape: tuple[int, ...], dtype: Any) -> "np.ndarray[Any, Any]":
        file = self.folder / f"{name}.bin"
        mode = (
            "r+" if file.is_file() and file.stat().st_size == int(np.prod(shape)) * np.dtype(dtype).itemsize else "w+"
        )
        return np.memmap(file, np.dtype(dtype), mode, shape=shape)  # type: ignore[call-overload]

    def store(self, rows: list[int], outputs: dict[str, Tensor]) -> None:
        """Write the outputs of a padded batch to their rows."""
        values = {name: tensor.float().cpu().numpy() for name, tensor in outputs.items()}
        for i, row in enumerate(rows):
            length = self.lengths[row]
            self.arrays["logits"][row] = values["logits"][i]
            for name in ("hidden", "relations"):
                if name in values:
                    self.arrays[name][self.starts[row] : self.starts[row + 1]] = values[name][i, :length]
            if "attention" in values:
                square = values["attention"][i, :length, :length].reshape(length * length, -1)
                self.arrays["attention"][self.square_starts[row] : self.square_starts[row + 1]] = square

    def flush(self) -> None:
        for array in self.arrays.values():
            array.flush()  # type: ignore[attr-defined]

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        rows, width = batch["index"].tolist(), batch["input_ids"].shape[1]
        outputs = {"logits": torch.from_numpy(self.arrays["logits"][rows])}
        for name in ("hidden", "relations"):
            if name in self.arrays:
                array = self.arrays[name]
                padded = np.zeros((len(rows), width, *array.shape[1:]), dtype=np.float32)
                for i, row in enumerate(rows):
                    padded[i, : self.lengths[row]] = array[self.starts[row] : self.starts[row + 1]]
                outputs[name] = torch.from_numpy(padded)
        if "attention" in self.arrays:
            array = self.arrays["attention"]
            maps = np.zeros((len(rows), width, width, array.shape[1]), dtype=np.float32)
            for i, row in enumerate(rows):
                length = self.lengths[row]
                flat = array[self.square_starts[row] : self.square_starts[row + 1]]
                maps[i, :length, :length] = flat.reshape(length, length, -1)
            outputs["attention"] = torch.from_numpy(maps)
        return {name: tensor.to(batch["input_ids"].device) for name, tensor in outputs.items()}


def teacher_outputs(work: Path, teacher: Path, data: "Dataset", wanted: Wanted, *, cache: bool = True) -> Teacher:
    """The teacher as a function of a batch: cached under `work`, or live.

    A killed computation goes on after the last journalled chunk. Of several processes the main one computes.

    Args:
        data: rows with input_ids, attention_mask and length, in the order that the batches' `index` counts in.
    """
    live = LiveTeacher(teacher, wanted)
    if not cache:
        return live
    from accelerate import PartialState

    config = live.network.config
    folder = work / "teacher"
    folder.mkdir(parents=True, exist_ok=True)
    lengths = np.array(data["length"])
    with PartialState().main_process_first():
        cached = CachedTeacher(folder, lengths, config.num_labels, config.hidden_size, wanted)
        if PartialState().is_main_process:
            fill(cached, live, load_tokenizer(teacher), data, wanted)
    return cached


def fill(cached: CachedTeacher, live: LiveTeacher, tokenizer: Any, data: "Dataset", wanted: Wanted) -> None:
    """Run the teacher over all rows, batched by length, with a journal entry every CHUNK rows."""
    from tqdm.auto import tqdm

    journal = cached.folder / "journal.json"
    state = {"wanted": json.loads(json.dumps(asdict(wanted))), "rows": len(data)}
    try:
        found = json.loads(journal.read_text(encoding="utf-8"))
        done = found["done"] if {k: found[k] for k in state} == state else 0
    except (OSError, ValueError, KeyError):
        done = 0
    order = sorted(range(len(data)), key=lambda row: (cached.lengths[row], row))
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in data.column_names]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tqdm(total=len(order), initial=done, desc="teacher", disable=not progress_wanted()) as bar:
        for start in range(done, len(order), CHUNK):
            rows = order[start : start + CHUNK]
            for first in range(0, len(rows), BATCH):
                part = rows[first : first + BATCH]
                examples = data[part]
                batch = tokenizer.pad({name: examples[name] for name in names}, return_tensors="pt")
                cached.store(part, live({name: batch[name].to(device) for name in names}))
                bar.update(len(part))
            cached.flush()
            write_json(journal, state | {"done": min(start + CHUNK, len(order)), "pid": os.getpid()})
