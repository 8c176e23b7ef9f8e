"""The teacher's outputs: the same from disk as live, and never computed twice, whatever is killed."""

import errno
import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hfcompress.architectures.models import load_tokenizer
from hfcompress.errors import UserError
from hfcompress.recipes import tiny
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training import teacher_outputs as module
from hfcompress.training.teacher_outputs import CachedTeacher, Wanted, fill, require_same_task, teacher_outputs
from tests.fork_server import ForkServer
from tests.image_models import write_mobilenet

ALL = Wanted(hidden_layers=(0, 2, 4), attention_layers=(1, 4), relation_layer=4)


def work(folder: Path, stage: str = "stage") -> Path:
    """A stage's own folder in its Artifact's in the run's."""
    return folder / "run" / stage / "work"


def padded(task: TextClassification, model: Path, rows: list[int]) -> dict[str, Tensor]:
    """A batch as the Trainer makes it: with `index`, and wider than the longest text."""
    from transformers import DataCollatorWithPadding

    tokenizer = load_tokenizer(model)
    data = task.data.encode(tokenizer, task.max_length, "train")
    batch = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)(data[rows])
    return dict(batch)


def test_the_cache_gives_what_the_live_teacher_gives(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    data = tiny_task.data.encode(load_tokenizer(tiny_model), 32, "train")
    cached = teacher_outputs(work(tmp_path), tiny_model, data, ALL, bf16="no")
    live = teacher_outputs(work(tmp_path), tiny_model, data, ALL, cache=False, bf16="no")
    batch = padded(tiny_task, tiny_model, [7, 0, 239, 100])
    found, expected = cached(batch), live(batch)
    mask = batch["attention_mask"].bool()
    pairs = mask[:, :, None] & mask[:, None, :]
    assert set(found) == set(expected) == {"logits", "hidden", "attention", "relations"}
    assert all(found[name].shape == expected[name].shape for name in found)
    assert {tensor.dtype for tensor in [*found.values(), *expected.values()]} == {torch.float32}
    torch.testing.assert_close(found["logits"], expected["logits"], atol=1e-5, rtol=1e-5)  # fp32 on disk
    for name in ("hidden", "relations"):
        torch.testing.assert_close(found[name][mask], expected[name][mask], atol=4e-3, rtol=2e-3)  # fp16
    torch.testing.assert_close(found["attention"][pairs], expected["attention"][pairs], atol=1e-3, rtol=2e-3)


def test_only_what_is_wanted_is_on_disk(tmp_path: Path, tiny_model: Path, tiny_task: TextClassification) -> None:
    data = tiny_task.data.encode(load_tokenizer(tiny_model), 32, "train")
    teacher_outputs(work(tmp_path), tiny_model, data, Wanted())
    (logits,) = (tmp_path / "run" / "teacher-logits").iterdir()
    assert {f.name for f in logits.iterdir()} == {"logits.bin", "journal.json"}
    assert not work(tmp_path).exists()
    teacher_outputs(work(tmp_path), tiny_model, data, ALL)
    sizes = {f.stem: f.stat().st_size for f in (work(tmp_path) / "teacher").glob("*.bin")}
    tokens, pairs = sum(data["length"]), sum(n * n for n in data["length"])
    assert sizes == {
        "logits": 240 * 3 * 4,
        "hidden": tokens * 3 * 64 * 2,
        "attention": pairs * 2 * 2,
        "relations": tokens * 3 * 64 * 2,
    }


def test_kept_logits_with_a_flipped_bit_are_computed_again(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    data = tiny_task.data.encode(load_tokenizer(tiny_model), 32, "train")
    teacher_outputs(work(tmp_path), tiny_model, data, Wanted(), bf16="no")
    (file,) = (tmp_path / "run" / "teacher-logits").glob("*/logits.bin")
    written = file.read_bytes()
    file.write_bytes(bytes([written[0] ^ 64]) + written[1:])
    teacher_outputs(work(tmp_path), tiny_model, data, Wanted(), bf16="no")
    assert file.read_bytes() == written


class Counting:
    """A teacher whose answer is made of the tokens, so that it is known; it counts rows, and dies when told to."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.rows, self.dies_after = 0, dies_after

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.dies_after is not None and self.rows >= self.dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        ids = batch["input_ids"].float() * batch["attention_mask"]
        self.rows += len(ids)
        return {
            "logits": ids.sum(dim=1, keepdim=True).repeat(1, 3),
            "hidden": ids[:, :, None, None].repeat(1, 1, 1, 64),
        }


WANTED = Wanted(hidden_layers=(1,))


def run_fill(folder: Path, data: Any, tokenizer: Any, live: Counting) -> CachedTeacher:
    """What teacher_outputs does, with a teacher that counts."""
    folder.mkdir(exist_ok=True)
    cached = CachedTeacher(folder, np.array(data["length"]), 3, 64, WANTED)
    fill(cached, live, tokenizer, data)
    return cached


def check_contents(cached: CachedTeacher, data: Any) -> None:
    sums = [sum(ids) for ids in data["input_ids"]]
    assert cached.arrays["logits"][:, 0].tolist() == sums
    flat = [token for ids in data["input_ids"] for token in ids]
    assert cached.arrays["hidden"][:, 0, 5].tolist() == flat


KILLED = """
import sys
from contextlib import nullcontext
from pathlib import Path
from hfcompress.training import teacher_outputs
from hfcompress.architectures.models import load_tokenizer
from hfcompress.tasks.text_classification import TextClassification
from tests.training.test_teacher_outputs import Counting, run_fill
teacher_outputs.CHUNK, teacher_outputs.BATCH = 40, 8
task, tokenizer = TextClassification(dataset=sys.argv[1], max_length=32), load_tokenizer(Path(sys.argv[2]))
run_fill(Path(sys.argv[3]), task.data.encode(tokenizer, 32, "train"), tokenizer, Counting(dies_after=100))
"""


def test_a_killed_computation_goes_on_after_the_last_journalled_chunk(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification, fork_server: ForkServer
) -> None:
    killed = fork_server.code(KILLED, tiny_task.dataset, str(tiny_model), str(tmp_path / "teacher"))
    assert killed.code == -signal.SIGKILL, killed.err
    assert json.loads((tmp_path / "teacher" / "journal.json").read_text())["done"] == 80
    tokenizer = load_tokenizer(tiny_model)
    data = tiny_task.data.encode(tokenizer, 32, "train")
    live = Counting()
    cached = run_fill(tmp_path / "teacher", data, tokenizer, live)
    assert live.rows == len(data) - 80
    check_contents(cached, data)


def test_a_finished_cache_does_not_even_load_the_teacher(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_task.data.encode(load_tokenizer(tiny_model), 32, "train")
    teacher_outputs(work(tmp_path), tiny_model, data, Wanted())
    monkeypatch.setattr(module, "LiveTeacher", None)
    teacher_outputs(work(tmp_path), tiny_model, data, Wanted())
    with pytest.raises(TypeError):
        teacher_outputs(work(tmp_path), tiny_model, data, WANTED)  # other outputs are computed


def test_all_stages_of_a_run_share_the_logits_of_one_teacher_on_one_text(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_task.data.encode(load_tokenizer(tiny_model), 32, "train")
    teacher_outputs(work(tmp_path, "distill"), tiny_model, data, Wanted(), bf16="no")
    other = tiny.write_model(tmp_path / "other", seed=1)
    monkeypatch.setattr(module, "LiveTeacher", None)
    teacher_outputs(work(tmp_path, "prune"), tiny_model, data, Wanted(), bf16="no")
    for model, texts, bf16 in (
        (other, data, "no"),
        (tiny_model, data.select(range(9)), "no"),
        (tiny_model, data, "yes"),
    ):
        with pytest.raises(TypeError):
            teacher_outputs(work(tmp_path, "prune"), model, texts, Wanted(), bf16=bf16)


@pytest.mark.parametrize("damage", ["torn journal", "missing file", "short file", "other outputs", "other data"])
def test_what_does_not_fit_together_is_computed_anew(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification, damage: str
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    data = tiny_task.data.encode(tokenizer, 32, "train")
    cached = run_fill(tmp_path, data, tokenizer, Counting())
    journal = tmp_path / "journal.json"
    if damage == "torn journal":
        journal.write_text(journal.read_text()[:20])
    elif damage == "missing file":
        (tmp_path / "hidden.bin").unlink()
    elif damage == "short file":
        os.truncate(tmp_path / "logits.bin", 100)
    elif damage == "other outputs":
        journal.write_text(journal.read_text().replace('"relation_layer": null', '"relation_layer": 3'))
    else:
        data = data.select(range(100))
    del cached
    live = Counting()
    check_contents(run_fill(tmp_path, data, tokenizer, live), data)
    assert live.rows == len(data)


def test_a_full_disk_is_an_error_before_anything_is_computed(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write to a mapped hole on a full disk would be SIGBUS: the room is taken first."""

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    data = tiny_task.data.encode(load_tokenizer(tiny_model), 32, "train")
    with pytest.raises(OSError, match=r"No space left"):
        teacher_outputs(work(tmp_path), tiny_model, data, Wanted())


def test_the_file_really_takes_its_room(tmp_path: Path) -> None:
    module.allocate(tmp_path / "a.bin", 1_000_000)
    assert (tmp_path / "a.bin").stat().st_blocks * 512 >= 1_000_000


def test_a_teacher_with_another_vocabulary_or_other_labels_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    require_same_task(tiny_model, tiny_model)
    other = tiny.write_model(tmp_path / "labels", labels=["x", "y", "z"])
    with pytest.raises(UserError, match=r"has other labels"):
        require_same_task(tiny_model, other)
    renamed = tiny.write_model(tmp_path / "words")
    vocabulary = json.loads((renamed / "tokenizer.json").read_text())
    numbers = vocabulary["model"]["vocab"]
    numbers["river"], numbers["iron"] = numbers["iron"], numbers["river"]
    (renamed / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UserError, match=r"another vocabulary"):
        require_same_task(tiny_model, renamed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"size": {"shortest_edge": 9}, "crop_size": {"height": 9, "width": 9}}, "images of 9x9 pixels, not 16x16"),
        ({"image_mean": [0.0] * 3}, "images normalized or cropped otherwise"),
        ({"do_center_crop": False}, "images of 16x25 pixels, not 16x16"),
        ({"do_flip_channel_order": True}, None),  # another processor's option, which this one does not read
    ],
)
def test_an_image_teacher_that_sees_other_pixels_is_refused(
    tmp_path: Path, changed: dict[str, Any], said: str | None
) -> None:
    model = write_mobilenet(tmp_path / "model", ["a", "b"], side=16, width=0.1)
    teacher = write_mobilenet(tmp_path / "teacher", ["a", "b"], side=16, width=0.1)
    file = teacher / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(UserError, match=said) if said else nullcontext():
        require_same_task(model, teacher)


@pytest.mark.parametrize("labels", [["b", "a"], ["a", "c"], ["a", "b", "c"]])
def test_an_image_teacher_with_other_labels_or_another_order_is_refused(tmp_path: Path, labels: list[str]) -> None:
    model = write_mobilenet(tmp_path / "model", ["a", "b"], side=16, width=0.1)
    teacher = write_mobilenet(tmp_path / "teacher", labels, side=16, width=0.1)
    with pytest.raises(UserError, match=r"has other labels .*, or the same in another order"):
        require_same_task(model, teacher)
