"""Limits of the budget, of the runtimes and of this machine: they enter decisions, or are refused before any work."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.compress.quantize.bit_allocation import ALLOTMENT, Allot, onnx_file_bytes
from hfcompress.compress.quantize.calibrate import Calibrate
from hfcompress.compress.quantize.linears import QuantizeLinears
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.errors import CheckFailed, UserError
from hfcompress.evaluation.summaries import sentence_ends, sentences
from hfcompress.folders import memory
from hfcompress.formats.genai import ExportGenai
from hfcompress.formats.onnx import ExportOnnx
from hfcompress.formats.size import sizes
from hfcompress.ops.grid import Grid
from hfcompress.planning.decoders import beside_matrices, disk_bytes
from hfcompress.tasks.tabular_classification import Clicks
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.tasks.text_generation import CausalLM
from hfcompress.training.pretrain import Pretrain
from hfcompress.training.reporters import REPORTERS
from hfcompress.training.train_clicks import TrainClicks
from hfcompress.training.trainer import Train
from tests.language_models import write_llama, write_task


def made(stage: Any, out: Path, **inputs: Any) -> Path:
    (out / "work").mkdir(parents=True)
    stage(out, **inputs)
    return out


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return write_task(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, task: CausalLM) -> tuple[Path, Path]:
    """A model whose matrices are most of its bytes, and its calibration."""
    folder = tmp_path_factory.mktemp("wide")
    model = write_llama(folder / "model", hidden_size=128, intermediate_size=512)
    return model, made(Calibrate(windows=2), folder / "calibration", model=model, task=task)


def test_a_smaller_disk_gets_fewer_bits_and_a_file_that_holds(
    wide: tuple[Path, Path], task: CausalLM, tmp_path: Path
) -> None:
    model, calibration = wide
    allot, shape = Allot(bits_per_weight=9, group_sizes=(32, 64)), LanguageShape.read(model)
    folders, chosen = {}, {}
    free = made(allot, tmp_path / "free", model=model, calibration=calibration, context=64)
    most = json.loads((free / ALLOTMENT).read_text())["file_bytes"] + beside_matrices(shape, 64)
    for share in (1.0, 0.75):
        limits = {"disk_mb": share * most / 1e6, "context": 64}
        allotment = made(allot, tmp_path / f"allotment-{share}", model=model, calibration=calibration, **limits)
        chosen[share] = json.loads((allotment / ALLOTMENT).read_text())
        inputs = {"model": model, "task": task, "allotment": allotment}
        packed = made(WeightOnly("rtn"), tmp_path / f"packed-{share}", **inputs)
        folders[share] = made(ExportGenai(context=64, windows=2), tmp_path / f"onnx-{share}", model=packed, task=task)
        assert sizes(folders[share])["bytes"] <= 1e6 * limits["disk_mb"]
        data = (folders[share] / "model.onnx.data").stat().st_size
        assert data == pytest.approx(chosen[share]["file_bytes"], abs=3 * 4096), "to the rotary tables' pages"
    assert sizes(folders[0.75])["bytes"] < 0.8 * sizes(folders[1.0])["bytes"]
    assert chosen[0.75]["predicted_kl"] > chosen[1.0]["predicted_kl"]


def test_a_disk_that_holds_not_even_the_fewest_bits_is_refused_by_the_plan_and_by_the_stage(
    wide: tuple[Path, Path], tmp_path: Path
) -> None:
    model, calibration = wide
    shape = LanguageShape.read(model)
    limits: dict[str, Any] = {"ram_gb": None, "context": 64, "kv_bits": 8}
    with pytest.raises(UserError, match=r"budget\.disk_mb 0\.05: .* take 0\.\d+ MB at the least \(2 bits\)"):
        Allot().predict(shape, calibration=None, disk_mb=0.05, **limits)
    with pytest.raises(UserError, match="take in the file"):
        made(Allot(), tmp_path / "allotment", model=model, calibration=calibration, disk_mb=0.05)


def test_the_plan_predicts_the_bits_that_the_disk_leaves(wide: tuple[Path, Path], task: CausalLM) -> None:
    shape = replace(LanguageShape.read(wide[0]), tokenizer_bytes=0)
    limits: dict[str, Any] = {"calibration": None, "ram_gb": None, "context": 64, "kv_bits": 8}
    free = Allot(bits_per_weight=8).predict(shape, **limits, disk_mb=None)
    assert free.weight_bits == 8
    room = (beside_matrices(shape, 64) + 5 * (shape.parameters - shape.plain_parameters) / 8) / 1e6
    tight = Allot(bits_per_weight=8).predict(shape, **limits, disk_mb=room)
    assert tight.weight_bits == pytest.approx(5 - 16 / 128)
    onnx = ExportGenai().predict(tight, task=task)
    assert disk_bytes(onnx) / 1e6 <= room
    assert disk_bytes(replace(onnx, tied=True)) == disk_bytes(onnx), "a tied head is stored once"


def test_a_matrix_in_the_file_by_hand() -> None:
    """1,000 rows of 256 columns in 4 bits, groups of 64: codes of 128,000 bytes, 4,000 scales of 4, on pages."""
    assert onnx_file_bytes(Grid(4, 64), 1000, 256, "lm_head") == 32 * 4096 + 4 * 4096
    assert onnx_file_bytes(Grid(2, 64), 1000, 256, "model.embed_tokens") == 32 * 4096 + 4 * 4096, "no lookup of 2 bits"
    assert onnx_file_bytes(Grid(4, 64, False), 1000, 256, "lm_head") == (32 + 4 + 1) * 4096


def test_the_linear_layers_of_any_model_are_held_against_the_disk_before_they_are_rounded(
    wide: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"budget\.disk_mb 0\.2: 4 bits make .* MB are no linear layers"):
        made(QuantizeLinears(), tmp_path / "out", model=wide[0], disk_mb=0.2)
    assert not list((tmp_path / "out").glob("*.safetensors"))
    made(QuantizeLinears(), tmp_path / "holds", model=wide[0], disk_mb=5)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"hidden_size": 400}, r"head_dim \(hidden_size / num_attention_heads\) is 100, "),
        ({"head_dim": 18, "hidden_size": 72}, r"head_dim .* is 18, "),
        ({"intermediate_size": 100}, "row of down_proj is 100, "),
        ({"hidden_size": 72, "head_dim": 16}, "row of embed_tokens is 72, "),
    ],
)
def test_sizes_that_no_operator_takes_are_refused_from_the_config_alone(
    changes: dict[str, int], line: str, task: CausalLM
) -> None:
    config = {
        "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    ExportGenai().predict(LanguageShape.from_config(config), task=task)
    with pytest.raises(UserError, match=f"the model's {line}.*multiples of 16; .*any_causal_lm"):
        ExportGenai().predict(LanguageShape.from_config(config | changes), task=task)


def test_a_million_dots_have_their_ends_found() -> None:
    """Each character is looked at once: a pattern that goes back would look at each dot for every dot before it."""
    assert sentence_ends("." * 1_000_000 + "x").tolist() == []
    assert sentence_ends("." * 1_000_000).tolist() == [1_000_000]
    assert sentence_ends(".)" * 500_000 + "x. y").tolist() == [1_000_002]
    assert len(sentence_ends("。" * 1_000_000)) == 1
    assert len(sentence_ends("a" + " " * 1_000_000 + "\n" + " " * 1_000_000 + "b")) == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('He said: "No." Then (why?) he left... 5.', ['He said: "No."', "Then (why?)", "he left...", "5."]),
        ("3.14 is example.org!", ["3.14 is example.org!"]),
        ("一。二！」三", ["一。", "二！」", "三"]),
        ("one\n\ntwo ?!?! three", ["one", "two ?!?!", "three"]),
        (".) . x.).", [".)", ".", "x.)."]),
    ],
)
def test_sentences_are_what_they_were(text: str, found: list[str]) -> None:
    assert sentences(text) == found


def test_reporters_are_named_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^report_to bogus: choose from none, all, azure_ml, .*wandb$"):
        Train(report_to="bogus")
    monkeypatch.setattr("hfcompress.training.reporters.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^report_to wandb: pip install wandb, or leave the option out$"):
        Train(report_to="wandb")
    Train(report_to="none")


def test_the_reporters_are_those_of_transformers() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    of_a_server = {"kubeflow"}  # of version 5: no package, but an address that Kubeflow's trainer sets
    assert set(INTEGRATION_TO_CALLBACK) - of_a_server <= set(REPORTERS)


def test_sizes_beyond_this_machine_are_refused_with_what_they_would_take() -> None:
    clicks = Clicks(users=100, items=100, categories=5, requests=200)
    with pytest.raises(UserError, match=r"^dim 1000000000: .* GB of memory, and this machine has \d+ GB"):
        TrainClicks(dim=1_000_000_000).predict(task=clicks)
    with pytest.raises(UserError, match=r"^hidden_size 4000000: "):
        Pretrain(hidden_size=4_000_000).predict(task=CausalLM())
    for option in ("users", "items", "categories", "requests"):
        with pytest.raises(UserError, match=rf"^{option} 10000000000000: "):
            Clicks(**{option: 10**13})
    TrainClicks().predict(task=clicks)


def test_the_machines_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        total = 1e9

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    memory.require_machine_memory(0.99e9, "x", 1)
    with pytest.raises(UserError, match=r"^x 1: what is made of it takes 2 GB of memory, and this"):
        memory.require_machine_memory(2e9, "x", 1)


@pytest.mark.parametrize(
    ("distance", "largest", "holds"), [(5e-4, 10.0, True), (5e-4, 1.0, False), (5e-3, 10.0, False)]
)
def test_an_export_is_held_against_its_largest_logit_and_fails_in_a_line(
    distance: float,
    largest: float,
    holds: bool,
    tiny_model: Path,
    tiny_task: TextClassification,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Large weights have large logits, and float32 sums of another order differ by a share of them."""
    monkeypatch.setattr("hfcompress.formats.onnx_export.export", lambda network, out: None)
    monkeypatch.setattr("hfcompress.formats.onnx_export.parity", lambda *arguments: (distance, largest))
    if holds:
        assert ExportOnnx()(tmp_path, model=tiny_model, task=tiny_task)["largest_logit_difference"] == distance
        return
    with pytest.raises(CheckFailed, match=r"differ by 0\.\d+ .*of the largest, .*: give another model$") as failed:
        ExportOnnx()(tmp_path, model=tiny_model, task=tiny_task)
    assert isinstance(failed.value, UserError)
    assert "\n" not in str(failed.value)
