"""Streaming quantization: what is written, what a kill leaves, what calibration and allotment are worth."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hfcompress.architectures.quantized_model import PackedModel, load_simulated
from hfcompress.compress.quantize.bit_allocation import ALLOTMENT, Allot, knapsack
from hfcompress.compress.quantize.calibrate import CALIBRATION, Calibrate
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.engines.engine import Autoround
from hfcompress.errors import UserError
from hfcompress.ops.grid import Grid
from hfcompress.tasks.text_generation import CausalLM, strided
from tests.language_models import rewrite, train_llama, write_llama, write_task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return write_task(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, task: CausalLM) -> Path:
    """A Llama that has learned the texts."""
    return train_llama(tmp_path_factory.mktemp("lm"), task, steps=150, layers=2)


def made(stage, out: Path, **inputs):  # type: ignore[no-untyped-def]
    (out / "work").mkdir(parents=True, exist_ok=True)
    return stage(out, **inputs)


def kl(reference: Path, packed: Path, task: CausalLM) -> float:
    """Nats a token on the test texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    windows = task.test_windows(AutoTokenizer.from_pretrained(reference))
    models = [AutoModelForCausalLM.from_pretrained(reference).eval(), load_simulated(packed)]
    total = tokens = 0.0
    with torch.inference_mode():
        for window in windows:
            wanted, found = (model(torch.tensor([window.ids])).logits[0].log_softmax(-1) for model in models)
            total += float((wanted.exp() * (wanted - found)).sum())
            tokens += len(wanted)
    return total / tokens


@pytest.mark.parametrize("algorithm", ["rtn", "hqq", "gptq", "awq", "autoround"])
def test_every_algorithm_writes_a_model_near_the_original(
    tmp_path: Path, trained: Path, task: CausalLM, algorithm: str
) -> None:
    found = made(WeightOnly(algorithm, 8, 32, autoround=Autoround(10)), tmp_path / "out", model=trained, task=task)  # type: ignore[arg-type]
    assert kl(trained, tmp_path / "out", task) < 1e-3
    assert found["matrices"] == 15
    assert found["bits_per_weight"] == pytest.approx(8 + 16 / 32)


def test_gptq_beats_rounding_to_nearest_at_three_bits(tmp_path: Path, trained: Path, task: CausalLM) -> None:
    for algorithm in ("rtn", "gptq"):
        made(WeightOnly(algorithm, 3, 32), tmp_path / algorithm, model=trained, task=task)  # type: ignore[arg-type]
    assert kl(trained, tmp_path / "gptq", task) < 0.9 * kl(trained, tmp_path / "rtn", task)


def test_calibration_in_bf16_costs_nothing_that_can_be_seen(tmp_path: Path, trained: Path, task: CausalLM) -> None:
    """Beside what 3 bits cost at all, with either algorithm that reads the inputs' moments."""
    for algorithm in ("gptq", "awq"):
        found = {}
        for bf16 in ("yes", "no"):
            out = tmp_path / f"{algorithm}-{bf16}"
            told = made(WeightOnly(algorithm, 3, 32, bf16=bf16), out, model=trained, task=task)  # type: ignore[arg-type]
            found[bf16] = (kl(trained, out, task), sum(told["relative_errors"].values()))
        assert found["yes"] != found["no"], "the option does something"
        assert found["yes"][0] < 1.1 * found["no"][0]
        assert found["yes"][1] == pytest.approx(found["no"][1], rel=0.02)


def test_a_killed_run_goes_on_at_the_layer_and_ends_with_the_same_bytes(
    tmp_path: Path, trained: Path, task: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, layers = WeightOnly("gptq", 4, 32), []
    made(stage, tmp_path / "whole", model=trained, task=task)
    right = WeightOnly._layer

    def killed(self, stack, index, *rest):  # type: ignore[no-untyped-def]
        layers.append(index)
        if index == 1 and len(layers) == 2:
            raise KeyboardInterrupt
        right(self, stack, index, *rest)

    monkeypatch.setattr(WeightOnly, "_layer", killed)
    with pytest.raises(KeyboardInterrupt):
        made(stage, tmp_path / "cut", model=trained, task=task)
    made(stage, tmp_path / "cut", model=trained, task=task)
    assert layers == [0, 1, 1]
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "cut" / file.name).read_bytes()


def test_the_head_stays_tied_or_is_quantized_by_itself(tmp_path: Path, task: CausalLM) -> None:
    for tied in (True, False):
        model = write_llama(tmp_path / f"model-{tied}", tied=tied)
        made(WeightOnly("gptq", 4, 32), tmp_path / f"out-{tied}", model=model, task=task)
        packed = PackedModel(tmp_path / f"out-{tied}")
        assert packed.tied is tied
        assert ("lm_head" in packed.grids) is not tied


def test_a_matrix_that_the_group_does_not_divide_gets_whole_rows(tmp_path: Path, task: CausalLM) -> None:
    model = write_llama(tmp_path / "model", intermediate_size=96)
    made(WeightOnly("rtn", 4, 64), tmp_path / "out", model=model, task=task)
    grids = PackedModel(tmp_path / "out").grids
    assert grids["model.layers.0.mlp.down_proj"] == Grid(4, 0)
    assert grids["model.layers.0.mlp.up_proj"] == Grid(4, 64)


def test_a_layer_of_zeros_stays_zero(tmp_path: Path, task: CausalLM) -> None:
    model, name = write_llama(tmp_path / "model"), "model.layers.0.mlp.down_proj"
    rewrite(model, f"{name}.weight", torch.zeros_like)
    made(WeightOnly("gptq", 4, 32), tmp_path / "out", model=model, task=task)
    assert not PackedModel(tmp_path / "out").quantized(name).dequantize().any()


@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, task: CausalLM, algorithm: str, value: float) -> None:
    model, name = write_llama(tmp_path / "model"), "model.layers.1.mlp.up_proj.weight"
    rewrite(model, name, lambda weight: weight.index_fill(0, torch.tensor([3]), value))
    with pytest.raises(UserError, match=name):
        made(WeightOnly(algorithm, 4, 32), tmp_path / "out", model=model, task=task)  # type: ignore[arg-type]


def test_a_limit_below_one_layer_is_refused_before_anything_is_written(tmp_path: Path, task: CausalLM) -> None:
    model = write_llama(tmp_path / "model")
    with pytest.raises(UserError, match=r"max_memory_gb 0\.1"):
        made(WeightOnly("gptq", max_memory_gb=0.1), tmp_path / "out", model=model, task=task)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_models_that_cannot_be_read_are_refused_in_a_sentence(tmp_path: Path, task: CausalLM) -> None:
    def refused(model: Path, match: str) -> None:
        with pytest.raises(UserError, match=match):
            made(WeightOnly("rtn"), tmp_path / "out", model=model, task=task)

    model = write_llama(tmp_path / "model")
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-100])
    refused(model, "cut short")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused(model, "is a pickle")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
    refused(model, "x.safetensors is missing")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    refused(model, "outside of its folder")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.py"}}))
    refused(model, "code of its own")
    shutil.rmtree(model)
    refused(write_llama(model, kind="Phi"), "PhiForCausalLM")


def test_a_disk_that_fills_up_loses_no_finished_layer(
    tmp_path: Path, trained: Path, task: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from hfcompress.architectures import checkpoint

    stage, right, written = WeightOnly("gptq", 4, 32), checkpoint.write_shard, list[str]()
    made(stage, tmp_path / "whole", model=trained, task=task)

    def full(file: Path, tensors: dict[str, torch.Tensor]) -> None:
        written.append(file.name)
        if len(written) == 3:  # the embedding, the first layer, and then
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        right(file, tensors)

    monkeypatch.setattr(checkpoint, "write_shard", full)
    with pytest.raises(OSError, match="No space left"):
        made(stage, tmp_path / "full", model=trained, task=task)
    made(stage, tmp_path / "full", model=trained, task=task)
    assert written[3] == written[2], "it goes on with the layer that could not be written"
    assert len(written) == len(set(written)) + 1
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "full" / file.name).read_bytes()


def test_text_that_is_too_short_to_calibrate_is_refused(tmp_path: Path, trained: Path, task: CausalLM) -> None:
    short = replace(task, calibration_windows=100_000)
    with pytest.raises(UserError, match="calibration_windows 100000"):
        made(WeightOnly("gptq"), tmp_path / "out", model=trained, task=short)


def test_a_knapsack_finds_what_trying_everything_finds() -> None:
    rows = [
        [(4.0, 5.0, 9.0), (8.0, 9.0, 2.0), (9.0, 10.5, 1.9)],
        [(4.0, 4.5, 3.0), (8.0, 12.0, 0.5)],
        [(2.0, 3.0, 7.0), (8.0, 8.0, 0.1), (4.0, 9.0, 3.0)],
    ]
    options = [[dict(zip(("bytes", "resident", "kl"), row, strict=True)) for row in found] for found in rows]

    def total(picks: tuple[int, ...], name: str) -> float:
        return sum(found[pick][name] for found, pick in zip(options, picks, strict=True))

    for stored, resident in ((10.0, 99.0), (14.0, 99.0), (17.0, 21.0), (20.0, 99.0), (30.0, 23.0), (30.0, 99.0)):
        limits = {"bytes": stored, "resident": resident}
        tried = [
            (total(picks, "kl"), picks)
            for picks in itertools.product(range(3), range(2), range(3))
            if all(total(picks, name) <= most for name, most in limits.items())
        ]
        assert knapsack(options, limits) == list(min(tried)[1])
    assert knapsack(options, {"bytes": 5.0}) is None
    assert knapsack(options, {"bytes": 30.0, "resident": -1.0}) is None


def test_the_allotment_keeps_its_bytes_and_beats_every_uniform_choice_of_its_size(
    tmp_path: Path, trained: Path, task: CausalLM
) -> None:
    made(Calibrate(windows=8), tmp_path / "calibration", model=trained, task=task)
    made(Allot(bits=(2, 3, 4, 8), group_sizes=(32, 64), bits_per_weight=4.5), tmp_path / "allotment",
         model=trained, calibration=tmp_path / "calibration")  # fmt: skip
    chosen = json.loads((tmp_path / "allotment" / ALLOTMENT).read_text())
    assert chosen["bytes"] <= chosen["allowed_bytes"]
    made(WeightOnly("rtn"), tmp_path / "chosen", model=trained, task=task, allotment=tmp_path / "allotment")
    made(WeightOnly("rtn", 4, 32), tmp_path / "uniform", model=trained, task=task)  # 4.5 bits with its scales
    found = kl(trained, tmp_path / "chosen", task)
    assert found < kl(trained, tmp_path / "uniform", task)
    assert 0.5 < found / chosen["predicted_kl"] < 2  # from 256 tokens of calibration text


def test_too_few_bytes_for_any_choice_are_refused(tmp_path: Path, trained: Path, task: CausalLM) -> None:
    made(Calibrate(windows=2), tmp_path / "calibration", model=trained, task=task)
    with pytest.raises(UserError, match="at the least"):
        made(Allot(bits_per_weight=1), tmp_path / "allotment", model=trained, calibration=tmp_path / "calibration")
    with pytest.raises(UserError, match="bits_per_weight 0"):
        Allot(bits_per_weight=0)
    with pytest.raises(UserError, match="take in memory"):
        made(Allot(), tmp_path / "memory", model=trained, calibration=tmp_path / "calibration", ram_gb=0.06)


def test_a_budget_of_memory_takes_bits_away(tmp_path: Path, trained: Path, task: CausalLM) -> None:
    """What onnxruntime keeps is counted: 64 bits more a block, and a tied embedding twice."""
    from hfcompress.architectures.decoder_spec import LanguageShape
    from hfcompress.planning.devices.memory import matrices_allowed, resident_bytes

    made(Calibrate(windows=2), tmp_path / "calibration", model=trained, task=task)

    def chosen(ram_gb: float | None) -> dict[str, Any]:
        out = tmp_path / f"allotment-{ram_gb}"
        made(Allot(bits_per_weight=8.5, group_sizes=(32,)), out, model=trained,
             calibration=tmp_path / "calibration", ram_gb=ram_gb, context=64, kv_bits=8)  # fmt: skip
        return json.loads((out / ALLOTMENT).read_text())

    free = chosen(None)
    assert free["allowed_resident_bytes"] is None
    weights = {name: found["weights"] for name, found in free["modules"].items()}
    bits = {name: grid["bits"] for name, grid in free["grids"].items()}
    rows = max(bits.pop("model.embed_tokens"), 4)  # what no lookup has 2 bits for
    by_hand = weights["model.embed_tokens"] * ((rows + 32 / 32) + (rows + 64 / 32)) / 8
    assert free["resident_bytes"] == by_hand + sum(weights[name] * (b + 64 / 32) / 8 for name, b in bits.items())
    shape = replace(LanguageShape.read(trained), kv_bits=8)
    others = 1e9 - matrices_allowed(shape, 64, 1e9)
    assert others == pytest.approx(sum(resident_bytes(replace(shape, weight_bits=0), 64).values())), (
        "all that is no matrix: norms, cache, activations, runtime and interpreter"
    )
    tight = chosen((others + 0.8 * free["resident_bytes"]) / 1e9)
    assert tight["resident_bytes"] <= tight["allowed_resident_bytes"] < free["resident_bytes"]
    assert tight["predicted_kl"] > free["predicted_kl"]


def test_calibration_is_the_gradients_square_of_the_whole_model(tmp_path: Path, trained: Path, task: CausalLM) -> None:
    """Layer by layer from disk gives what autograd gives on the model in memory."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hfcompress.ops.sensitivity import sampled_loss

    made(Calibrate(windows=2), tmp_path / "calibration", model=trained, task=task)
    found = load_file(tmp_path / "calibration" / CALIBRATION)
    model = AutoModelForCausalLM.from_pretrained(trained).eval()
    ids = torch.from_numpy(task.calibration(AutoTokenizer.from_pretrained(trained))[:2])
    seen: dict[str, torch.Tensor] = {}
    linear = model.model.layers[0].mlp.up_proj

    def see(module, inputs, output) -> None:  # type: ignore[no-untyped-def]
        output.retain_grad()
        seen.update(inputs=inputs[0].detach(), output=output)

    linear.register_forward_hook(see)
    sampled_loss(model(ids).logits.flatten(0, 1), 0).backward()
    rows, columns = seen["output"].grad.flatten(0, 1), seen["inputs"].flatten(0, 1)
    assert torch.allclose(found["model.layers.0.mlp.up_proj.rows"], rows.square().mean(0), rtol=1e-3)
    assert torch.allclose(found["model.layers.0.mlp.up_proj.columns"], columns.square().mean(0), rtol=1e-4)


def test_every_token_but_the_first_is_scored_once() -> None:
    for length in (5, 32, 33, 48, 100, 101):
        ids, scored = list(range(length)), []
        for window in strided(ids, 32, 16, "a"):
            assert len(window.ids) <= 32
            scored += window.ids[window.first :]
        assert scored == ids[1:]
