"""What goes wrong with a causal LM: killed processes, damaged checkpoints, full disks, text that is too short."""

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hfcompress.architectures.decoder_stack import HiddenStates
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.errors import UserError
from hfcompress.runs.run import Run
from hfcompress.tasks.text_generation import CausalLM
from tests.language_models import rewrite, texts, write_llama, write_task

LAYERS, MATRICES = 3, 7
KILLED = """
import os, signal, sys
from pathlib import Path
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.tasks.text_generation import CausalLM
calls, right = 0, WeightOnly.calibrated

def calibrated(self, *arguments):
    global calls
    calls += 1
    if calls == {calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    return right(self, *arguments)

WeightOnly.calibrated = calibrated
task = CausalLM(dataset={data!r}, window=32, stride=16, calibration_windows=8)
WeightOnly("gptq", 4, 32)(Path({out!r}), model=Path({model!r}), task=task)
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return write_task(tmp_path_factory.mktemp("data") / "texts")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("lm") / "model", tied=False, num_hidden_layers=LAYERS)


def made(stage: Any, out: Path, **inputs: Any) -> Path:
    (out / "work").mkdir(parents=True, exist_ok=True)
    stage(out, **inputs)
    return out


def sharded(folder: Path, **changes: Any) -> Path:
    """A model in three shards with an index."""
    from transformers import AutoModelForCausalLM

    write_llama(folder, **changes)
    network = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    network.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@pytest.mark.slow
def test_a_process_killed_within_a_layer_ends_with_the_same_bytes(
    tmp_path: Path, model: Path, task: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = WeightOnly("gptq", 4, 32)
    whole = made(stage, tmp_path / "whole", model=model, task=task)
    out = tmp_path / "killed"
    (out / "work").mkdir(parents=True)
    code = KILLED.format(calls=MATRICES + 4, data=task.dataset, out=str(out), model=str(model))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.returncode == -signal.SIGKILL
    shards = sorted((out / "work").glob("*.safetensors"))
    assert [file.name[:11] for file in shards] == ["model-00001", "model-00002"]
    layers, right = [], WeightOnly._layer
    monkeypatch.setattr(WeightOnly, "_layer", lambda *a: (layers.append(a[2]), right(*a))[1])
    made(stage, out, model=model, task=task)
    assert layers == [1, 2], "the layer that was cut off, from its beginning, and those behind it"
    for file in sorted(whole.glob("*.safetensors")):
        assert file.read_bytes() == (out / file.name).read_bytes(), file.name


def test_shards_that_are_missing_cut_short_or_not_what_the_index_says(tmp_path: Path, task: CausalLM) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            made(WeightOnly("rtn", 4, 32), tmp_path / "out", model=folder, task=task)

    folder = sharded(tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    written = index.read_text()
    places = json.loads(written)["weight_map"]
    names = sorted(set(places.values()))
    name = next(name for name, file in places.items() if file == names[1])

    index.write_text(json.dumps({"weight_map": places | {name: names[0]}}))
    refused(f"places {name} in {names[0]}, where it is not")
    index.write_text(json.dumps({"weight_map": places | {"model.layers.7.mlp.up_proj.weight": names[0]}}))
    refused("model.layers.7.mlp.up_proj.weight")
    index.write_text(written[:-20])
    refused("index.json is damaged")
    index.write_text(written)
    bytes_of = (folder / names[1]).read_bytes()
    (folder / names[1]).write_bytes(bytes_of[:-8])
    refused(rf"{names[1]} is damaged or cut short")
    (folder / names[1]).write_bytes(b"")
    refused(rf"{names[1]} is damaged or cut short")
    (folder / names[1]).unlink()
    refused(rf"{names[1]} is missing")


@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.1.input_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_a_value_that_is_no_number_is_named_wherever_it_is(
    tmp_path: Path, task: CausalLM, algorithm: Any, name: str
) -> None:
    folder = write_llama(tmp_path / "model", tied=False)
    rewrite(folder, name, lambda weight: weight.index_fill(0, torch.tensor([3]), float("nan")))
    with pytest.raises(UserError, match=f"{name} holds NaN or Inf"):
        made(WeightOnly(algorithm, 4, 32), tmp_path / "out", model=folder, task=task)


def test_text_that_is_empty_or_shorter_than_a_window_is_refused(tmp_path: Path, model: Path, task: CausalLM) -> None:
    from datasets import Dataset

    for name, train, match in (
        ("empty", ["", "  \n"], "the train split holds no text"),
        ("short", ["the licence"], r"train has \d+ tokens: 0 windows of 32; give more text, or fewer or shorter"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for split, found in (("train", train), ("validation", texts(2, 0)), ("test", texts(2, 1))):
            Dataset.from_dict({"text": found}).to_parquet(folder / f"{split}.parquet")
        with pytest.raises(UserError, match=match):
            made(WeightOnly("gptq"), tmp_path / "out", model=model, task=replace(task, dataset=str(folder)))


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, model: Path, task: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 50_000))
    with pytest.raises(UserError, match=r"0 MB free, and 0 MB are to be written|MB free, and .* MB are to be written"):
        made(WeightOnly("rtn"), tmp_path / "out", model=model, task=task)
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which refuses every byte, on this system")
def test_a_disk_that_fills_up_is_told_in_a_sentence_and_the_run_goes_on(
    tmp_path: Path, model: Path, task: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the second layer hands on goes to a device that is really full."""
    right, written = HiddenStates.write, list[str]()

    def onto_a_full_disk(self: HiddenStates, batches: Any) -> None:
        written.append(self.file.name)
        part = self.file.with_name(self.file.name + ".part")
        if len(written) == 3:
            part.symlink_to("/dev/full")
        try:
            right(self, batches)
        finally:
            if part.is_symlink():
                part.unlink()

    monkeypatch.setattr(HiddenStates, "write", onto_a_full_disk)
    run, stage = Run(tmp_path / "run", "test", "small"), WeightOnly("gptq", 4, 32)
    with pytest.raises(UserError, match=r"the disk that holds .* is full .*run the same command again"):
        run(stage, model=model, task=task, name="packed")
    found = run(stage, model=model, task=task, name="packed")
    assert written[2] == written[3] == "hidden-2", "it goes on with the layer that could not be written"
    whole = made(stage, tmp_path / "whole", model=model, task=task)
    for file in sorted(whole.glob("*.safetensors")):
        assert file.read_bytes() == (found.path / file.name).read_bytes(), file.name
