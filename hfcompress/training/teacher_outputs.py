"""The teacher's outputs over the training data: computed once, in order of the data, memory-mapped."""

import hashlib
import json
import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hfcompress.architectures import encoders
from hfcompress.architectures.kinds import is_image_folder
from hfcompress.architectures.models import load_classifier, load_image_processor, load_tokenizer
from hfcompress.architectures.pretrained import stock_config
from hfcompress.errors import Reason, UserError, needs
from hfcompress.folders.record import sha256, write_json
from hfcompress.ops.precision import use_bf16
from hfcompress.stage import TENSORS, folder_hash, library_versions
from hfcompress.tasks.image_data import pixel_values
from hfcompress.training.trainer import progress_wanted

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

VERSION = 1  # raised by one when the outputs that are kept change for the same teacher and tokens
CHUNK = 512  # rows between two entries of the journal
BATCH = 64
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Wanted:
    """What is kept beside the logits; layers are numbered as hidden_states is (0: embeddings, i: after layer i)."""

    hidden_layers: tuple[int, ...] = ()
    attention_layers: tuple[int, ...] = ()
    relation_layer: int | None = None
    states: bool = False
    """Of an image classifier: all hidden states, each under its own name, since their shapes differ."""


class Teacher(Protocol):
    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs in fp32 for a padded batch: logits [batch, classes] and, as wanted, hidden [batch, tokens, layers,
        size], attention [batch, tokens, tokens, layers] (mean over heads), relations [batch, tokens, 3 (Q, K, V),
        size]. What stands at padding tokens has no meaning."""


class LiveTeacher:
    """Recomputes the outputs for every batch: no disk, more time."""

    def __init__(self, folder: Path, wanted: Wanted, bf16: str = "auto") -> None:
        self.network = load_classifier(folder)
        if wanted.attention_layers:
            self.network = encoders.with_attention_maps(self.network)
        self.wanted = wanted
        self.in_bf16 = use_bf16(bf16)

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = next(batch[name] for name in INPUTS if name in batch).device
        if self.network.device != device:
            self.network.to(device)
        autocast = torch.autocast(device.type, torch.bfloat16) if self.in_bf16 else nullcontext()
        with torch.no_grad(), autocast:
            outputs = forward(self.network, batch, self.wanted)
        return {name: tensor.float() for name, tensor in outputs.items()}


def forward(model: "PreTrainedModel", batch: dict[str, Tensor], wanted: Wanted) -> dict[str, Tensor]:
    """A forward pass that returns what is wanted (see `Teacher`); gradients flow where they are on."""
    captured: dict[str, Tensor] = {}
    hooks = []
    if wanted.relation_layer is not None:
        encoder, network = encoders.encoder_of(model), encoders.unwrapped(model)
        layer = encoders.layers(network)[wanted.relation_layer - 1]
        for name, path in (("query", encoder.query), ("key", encoder.key), ("value", encoder.value)):
            hook = layer.get_submodule(path).register_forward_hook(
                lambda module, inputs, output, name=name: captured.__setitem__(name, output)
            )
            hooks.append(hook)
    try:
        more = {
            "output_hidden_states": wanted.hidden_layers or wanted.states,
            "output_attentions": wanted.attention_layers,
        }
        result = model(
            **{name: batch[name] for name in INPUTS if name in batch},
            **{name: True for name, layers in more.items() if layers},
        )
    finally:
        for hook in hooks:
            hook.remove()
    outputs = {"logits": result.logits}
    if wanted.hidden_layers:
        outputs["hidden"] = torch.stack([result.hidden_states[i] for i in wanted.hidden_layers], dim=2)
    if wanted.states:
        outputs |= {f"state-{i}": state for i, state in enumerate(result.hidden_states)}
    if wanted.attention_layers:
        maps = [result.attentions[i - 1].mean(dim=1) for i in wanted.attention_layers]
        outputs["attention"] = torch.stack(maps, dim=-1)
    if captured:
        outputs["relations"] = torch.stack([captured[name] for name in ("query", "key", "value")], dim=2)
    return outputs


class CachedTeacher:
    """Outputs on disk, read by the batch's `index`: logits in fp32, all else in fp16, only for real tokens.

    Args:
        lengths: tokens of each row, in the order that `index` counts in.
        classes, size: the teacher's number of labels and its hidden size.

    Raises:
        OSError: there is no room on the disk for what is wanted.
    """

    def __init__(self, folder: Path, lengths: Array, classes: int, size: int, wanted: Wanted) -> None:
        self.folder = folder
        self.journal = folder / "journal.json"
        self.wanted = wanted
        self.lengths = lengths.astype(np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.square_starts = np.concatenate([[0], np.cumsum(self.lengths**2)])
        tokens, pairs = int(self.starts[-1]), int(self.square_starts[-1])
        self.arrays = {"logits": self._open("logits", (len(lengths), classes), np.float32)}
        if wanted.hidden_layers:
            self.arrays["hidden"] = self._open("hidden", (tokens, len(wanted.hidden_layers), size), np.float16)
        if wanted.attention_layers:
            self.arrays["attention"] = self._open("attention", (pairs, len(wanted.attention_layers)), np.float16)
        if wanted.relation_layer is not None:
            self.arrays["relations"] = self._open("relations", (tokens, 3, size), np.float16)

    def _open(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Map a file, made anew when it is not there in the right size; then nothing in the journal holds any more."""
        file = self.folder / f"{name}.bin"
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not file.is_file() or file.stat().st_size != size:
            self.journal.unlink(missing_ok=True)
            allocate(file, size)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)

    def _state(self) -> dict[str, Any]:
        return {"wanted": json.loads(json.dumps(asdict(self.wanted))), "rows": len(self.lengths)}

    def done(self) -> int:
        """How many rows, in order of length, are there; 0 when the journal is missing, torn or of other outputs.

        Logits that are complete are read by later stages and runs: their bytes must be those that were written.
        """
        try:
            found = json.loads(self.journal.read_text(encoding="utf-8"))
            if {name: found[name] for name in self._state()} != self._state():
                return 0
            intact = found.get("sha256") in (None, sha256(self.folder / "logits.bin"))
            return int(found["done"]) if intact else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def mark(self, done: int) -> None:
        """Bring what was stored to the disk, then say so in the journal."""
        for array in self.arrays.values():
            array.flush()  # type: ignore[attr-defined]
        complete = done == len(self.lengths)
        hashed = {"sha256": sha256(self.folder / "logits.bin")} if complete else {}
        write_json(self.journal, self._state() | {"done": done} | hashed)

    def store(self, rows: list[int], outputs: dict[str, Tensor]) -> None:
        """Write the outputs of a padded batch to their rows."""
        values = {name: tensor.cpu().numpy() for name, tensor in outputs.items()}
        for i, row in enumerate(rows):
            length = self.lengths[row]
            self.arrays["logits"][row] = values["logits"][i]
            for name in ("hidden", "relations"):
                if name in values:
                    self.arrays[name][self.starts[row] : self.starts[row + 1]] = values[name][i, :length]
            if "attention" in values:
                square = values["attention"][i, :length, :length].reshape(length * length, -1)
                self.arrays["attention"][self.square_starts[row] : self.square_starts[row + 1]] = square

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


def allocate(file: Path, size: int) -> None:
    """A file with room for `size` bytes: on a full disk this raises OSError, where a mapped write would get SIGBUS."""
    with file.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)


def teacher_outputs(
    work: Path, teacher: Path, data: "Dataset", wanted: Wanted, *, cache: bool = True, bf16: str = "auto"
) -> Teacher:
    """The teacher as a function of a batch: cached, or live.

    A killed computation goes on after the last journalled chunk. Of several processes the main one computes. Logits
    alone are small, and distilling, pruning and quantizing want the same ones: they are kept in the run's folder.
    What else is wanted can be gigabytes and goes with the stage.

    Args:
        work: the stage's own folder in its Artifact's, which lies in the run's.
        data: rows with input_ids, attention_mask and length, in the order that the batches' `index` counts in.
        bf16: as in `Train`.
    """
    if not cache:
        return LiveTeacher(teacher, wanted, bf16)
    from accelerate import PartialState

    config = stock_config(teacher)
    folder = work / "teacher"
    if wanted == Wanted():
        folder = work.parents[1] / "teacher-logits" / identity(teacher, data, bf16)
    folder.mkdir(parents=True, exist_ok=True)
    with PartialState().main_process_first():
        cached = CachedTeacher(folder, np.array(data["length"]), config.num_labels, config.hidden_size, wanted)
        if PartialState().is_main_process and cached.done() < len(data):
            fill(cached, LiveTeacher(teacher, wanted, bf16), load_tokenizer(teacher), data)
    if cached.done() < len(data):  # of ranks on unlike machines: bf16 on one, not on the other
        reason = Reason("the main process keeps the teacher's outputs elsewhere; set {bf16} yes or no for all ranks")
        raise UserError(reason)
    return cached


def identity(teacher: Path, data: "Dataset", bf16: str) -> str:
    """Return a hash of the teacher, of the tokens it reads, of the precision it computes in, and of the libraries."""
    made_by = f"{VERSION} {library_versions(TENSORS)}"
    digest = hashlib.sha256(f"{folder_hash(teacher)} {use_bf16(bf16)} {made_by}".encode())
    for ids in data["input_ids"]:
        digest.update(np.array([len(ids), *ids]).tobytes())
    return digest.hexdigest()[:16]


def fill(cached: CachedTeacher, live: Teacher, tokenizer: Any, data: "Dataset") -> None:
    """Run the teacher over the rows that are not there yet, batched by length, with a journal entry every CHUNK."""
    from tqdm.auto import tqdm
    from transformers import DataCollatorWithPadding

    order = sorted(range(len(data)), key=lambda row: (cached.lengths[row], row))
    inputs = data.select_columns([name for name in INPUTS if name in data.column_names])
    pad = DataCollatorWithPadding(tokenizer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    done = cached.done()
    with tqdm(total=len(order), initial=done, desc="teacher", disable=not progress_wanted()) as bar:
        for start in range(done, len(order), CHUNK):
            rows = order[start : start + CHUNK]
            for first in range(0, len(rows), BATCH):
                part = rows[first : first + BATCH]
                batch = pad(inputs[part])
                cached.store(part, live({name: tensor.to(device) for name, tensor in batch.items()}))
                bar.update(len(part))
            cached.mark(start + len(rows))


def require_same_task(model: Path, teacher: Path) -> None:
    """Refuse a teacher that would misread what the model is given, or answer with other labels.

    Raises:
        UserError: with what differs: the vocabulary (of images, the pixels), or the labels and their order.
    """
    config = stock_config(model)
    if is_image_folder(model):
        require_same_pixels(model, teacher)
    elif load_tokenizer(model).get_vocab() != load_tokenizer(teacher).get_vocab():
        raise UserError(
            f"the teacher {teacher} has another vocabulary than {model}, so it would misread its tokens; "
            "give the teacher that this model was made from"
        )
    if config.id2label != stock_config(teacher).id2label:
        raise UserError(
            f"the teacher {teacher} has other labels than {model}, or the same in another order; "
            "give a teacher of the same task"
        )


def require_same_pixels(model: Path, teacher: Path) -> None:
    """Refuse a teacher whose processor makes other pixels of an image: it sees those that are made for the model.

    The processors are tried on a wide and on a tall image of noise: other options may still mean the same pixels.

    Raises:
        UserError: with what differs: the size, or the values.
    """
    needs("PIL")
    from PIL import Image

    random = np.random.default_rng(0)
    for shape in ((50, 80, 3), (80, 50, 3)):
        image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
        ours, theirs = (pixel_values(load_image_processor(folder), [image]) for folder in (model, teacher))
        if ours.shape == theirs.shape and np.allclose(ours, theirs, atol=1e-3):
            continue
        sizes = ["x".join(map(str, pixels.shape[2:])) for pixels in (theirs, ours)]
        how = f"of {sizes[0]} pixels, not {sizes[1]}" if sizes[0] != sizes[1] else "normalized or cropped otherwise"
        raise UserError(
            f"the teacher {teacher} reads images {how}, and would misread those made for {model}; "
            "give the teacher that this model was made from"
        )
