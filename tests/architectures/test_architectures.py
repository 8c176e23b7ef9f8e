"""Phi-3 and Gemma: every stage and every format computes what the stock classes compute with the same weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfcompress.architectures.checkpoint import Checkpoint
from hfcompress.architectures.decoder_stack import DecoderStack
from hfcompress.architectures.decoders import kind_of, layer_windows
from hfcompress.architectures.models import load_tokenizer
from hfcompress.architectures.quantized_model import PackedModel, load_simulated
from hfcompress.cli import dispatch
from hfcompress.compress.quantize.calibrate import CALIBRATION, Calibrate
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.errors import UserError
from hfcompress.formats.compressed_tensors import ExportTransformers
from hfcompress.formats.genai import ExportGenai
from hfcompress.formats.runtimes.onnx_decoder import OnnxDecoder
from hfcompress.formats.runtimes.torch_decoder import load
from hfcompress.ops.grid import Grid
from hfcompress.tasks.text_generation import CausalLM
from tests.language_models import pack_model, rewrite, write_llama, write_task

LONGROPE = {"type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [4.0] * 8}
KINDS: dict[str, dict[str, Any]] = {
    "phi3": {"kind": "Phi3", "tied": False, "sliding_window": 40},
    "phi3-partial": {"kind": "Phi3", "tied": True, "partial_rotary_factor": 0.5, "hidden_size": 128},
    "phi3-longrope": {
        "kind": "Phi3", "tied": False, "rope_scaling": LONGROPE,
        "max_position_embeddings": 512, "original_max_position_embeddings": 128,
    },
    "gemma": {"kind": "Gemma", "head_dim": 32},
    "gemma2": {
        "kind": "Gemma2", "head_dim": 32, "sliding_window": 40, "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0,
    },
    "gemma3": {
        "kind": "Gemma3Text", "head_dim": 32, "sliding_window": 40, "query_pre_attn_scalar": 24,
        "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_theta": 50_000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_local_base_freq": 100.0,
    },
}  # fmt: skip
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 320, 60)]


def write(folder: Path, name: str) -> Path:
    """A random model with norms of its own."""
    changes = KINDS[name]
    model = write_llama(folder, **changes)
    for tensor in Checkpoint(model).places:
        if "norm" in tensor:
            rewrite(model, tensor, lambda weight: weight + torch.linspace(-0.3, 0.5, len(weight)))
    return model


@pytest.fixture(scope="module", params=list(KINDS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def packed(model: Path) -> Path:
    return pack_model(model, model.parent / "packed", Grid(4, 32, symmetric=False))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return replace(write_task(tmp_path_factory.mktemp("data") / "texts"), calibration_windows=12)


def made(stage: Any, out: Path, **inputs: Any) -> Path:
    (out / "work").mkdir(parents=True)
    stage(out, **inputs)
    return out


def logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_layer_by_layer_is_the_whole_model(model: Path) -> None:
    stack, ids = DecoderStack(Checkpoint(model)), IDS  # longer than the windows
    with torch.inference_mode():
        hidden = stack.embed(np.array([ids]))
        for index in range(stack.layers):
            hidden = stack.run(stack.layer(index), hidden)
        found = stack.capped(stack.norm()(hidden) @ stack.head().T)[0].numpy()
    assert off(found, logits(load(model), ids)) < 1e-5


def test_the_simulation_has_the_packed_weights_in_the_stock_class(model: Path, packed: Path) -> None:
    wanted, stored = load(model), PackedModel(packed)
    assert set(stored.grids) >= {f"model.layers.1.{name}" for name in kind_of(stored.config).linears}
    state = {f"{name}.weight": stored.quantized(name).dequantize() for name in stored.grids}
    wanted.load_state_dict(state, strict=False)
    assert off(logits(load_simulated(packed), IDS), logits(wanted, IDS)) < 1e-5


@pytest.mark.parametrize("kv_cache", ["float32", "int8"])
def test_onnx_computes_what_the_integers_stand_for(
    tmp_path: Path, packed: Path, task: CausalLM, kv_cache: Any
) -> None:
    out = made(ExportGenai(kv_cache, accuracy_level=1, context=128), tmp_path / "onnx", model=packed, task=task)
    # Windows that set no scale of an int8 cache.
    ids = task.calibration(load_tokenizer(packed))[9:11].flatten().tolist()
    decoder, wanted = OnnxDecoder(out, 1), logits(load_simulated(packed), ids)
    whole = decoder.append(ids, all_logits=True)
    decoder.rewind(50)
    single = np.concatenate([decoder.append([token]) for token in ids[50:]])
    for found, like in ((whole, wanted), (single, wanted[50:])):
        if kv_cache == "float32":
            assert off(found, like) < 2e-3
        else:
            assert np.sqrt(np.mean((found - like) ** 2)) < 0.015 * np.abs(wanted).max()


def test_genai_generates_what_plain_onnxruntime_does(tmp_path: Path, packed: Path, task: CausalLM) -> None:
    import onnxruntime_genai as genai

    out = made(ExportGenai(context=128), tmp_path / "onnx", model=packed, task=task)
    decoder = OnnxDecoder(out, 1)
    wanted, said = list(IDS[:12]), decoder.append(IDS[:12])
    for _ in range(8):
        wanted.append(int(said[-1].argmax()))
        said = decoder.append(wanted[-1:])
    loaded = genai.Model(str(out))
    parameters = genai.GeneratorParams(loaded)
    parameters.set_search_options(max_length=20)
    generator = genai.Generator(loaded, parameters)
    generator.append_tokens(np.array(IDS[:12], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)]
    assert found == wanted[: len(found)]
    assert len(found) > 12


def test_stock_classes_load_the_transformers_folder(tmp_path: Path, packed: Path, task: CausalLM) -> None:
    out = made(ExportTransformers(), tmp_path / "transformers", model=packed, task=task)
    assert off(logits(load(out), IDS), logits(load_simulated(packed), IDS)) < 2e-3
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == ("float32" if "gemma" in config["model_type"] else "float16")


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
def test_calibrated_algorithms_stay_near_the_original(
    tmp_path: Path, model: Path, task: CausalLM, algorithm: Any
) -> None:
    """At 8 bits nothing may be lost: a scale folded into the wrong place would be seen."""
    out = made(WeightOnly(algorithm, 8, 32), tmp_path / "packed", model=model, task=task)
    wanted, found = (torch.from_numpy(logits(m, IDS)).log_softmax(-1) for m in (load(model), load_simulated(out)))
    assert float((wanted.exp() * (wanted - found)).sum(-1).mean()) < 5e-3


def test_calibration_is_the_gradients_square_of_the_whole_model(tmp_path: Path, model: Path, task: CausalLM) -> None:
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from hfcompress.ops.sensitivity import sampled_loss

    found = load_file(made(Calibrate(windows=2), tmp_path / "calibration", model=model, task=task) / CALIBRATION)
    whole = load(model).requires_grad_(True)
    ids = torch.from_numpy(task.calibration(AutoTokenizer.from_pretrained(model))[:2])
    seen: dict[str, torch.Tensor] = {}

    def see(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            output.retain_grad()
            seen[name] = output

        return hook

    name = f"model.layers.0.{kind_of(Checkpoint(model).config).groups[2][0]}"
    whole.get_submodule(name).register_forward_hook(see(name))
    head = "lm_head"
    whole.lm_head.register_forward_hook(see(head))
    looked_up: list[torch.Tensor] = []
    whole.model.embed_tokens.register_forward_hook(lambda *a: (a[2].retain_grad(), looked_up.append(a[2]))[0])
    sampled_loss(whole(ids).logits.flatten(0, 1), 0).backward()
    for module in (name, head):
        wanted = seen[module].grad.flatten(0, 1).square().mean(0)
        assert torch.allclose(found[f"{module}.rows"], wanted, rtol=1e-2, atol=1e-9), module
    # Gemma 3's embedding scales the rows itself, the others' models do behind it: both are the row's own gradient
    # once the scale is counted in.
    scale = kind_of(Checkpoint(model).config).embedding_scale if "Gemma3" in type(whole).__name__ else 1.0
    wanted = looked_up[0].grad.flatten(0, 1).square().mean(0) * scale**2
    assert torch.allclose(found["model.embed_tokens.columns"], wanted, rtol=1e-2, atol=1e-9)


def test_long_contexts_of_longrope_are_refused(tmp_path: Path, task: CausalLM) -> None:
    packed = pack_model(write(tmp_path / "model", "phi3-longrope"), tmp_path / "packed", Grid(4, 32))
    with pytest.raises(UserError, match=r"context of 256: .*give --budget.context 128 or less"):
        made(ExportGenai(context=256), tmp_path / "onnx", model=packed, task=task)


def test_an_activation_that_nothing_computes_is_refused(tmp_path: Path, task: CausalLM) -> None:
    model = write_llama(tmp_path / "model", hidden_act="relu")
    with pytest.raises(UserError, match="activation is relu; known are silu"):
        made(WeightOnly("rtn"), tmp_path / "out", model=model, task=task)


def test_windows_are_those_that_transformers_makes_of_a_config(tmp_path: Path) -> None:
    from transformers import AutoConfig

    layers = {"num_hidden_layers": 7, "sliding_window": 40}
    for config in (
        {"model_type": "gemma2"},
        {"model_type": "gemma3_text"},
        {"model_type": "gemma3_text", "sliding_window_pattern": 3},
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 3},
        {"model_type": "qwen2", "use_sliding_window": False},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | layers))
        kinds = AutoConfig.from_pretrained(tmp_path).layer_types
        wanted = tuple(40 if kind == "sliding_attention" else None for kind in kinds)
        assert layer_windows(config | layers) == wanted, config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi3", "gemma2", "gemma3"])
def test_the_recipe_takes_each_to_its_verdicts(tmp_path: Path, task: CausalLM, name: str) -> None:
    model = write(tmp_path / "base", name)
    options = {
        "task.window": 32, "task.stride": 16, "task.calibration-windows": 8, "task.test-tokens": 400,
        "calibrate.windows": 4, "allot.group-sizes": 32, "budget.context": 64, "measure.new-tokens": 4,
        "measure.runs": 2, "measure.resamples": 200, "base": model, "task.dataset": task.dataset,
    }  # fmt: skip
    folder = tmp_path / "run"
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    code = dispatch(["run", "summarize_7b", "--run-dir", str(folder), *given])
    report = json.loads((folder / "report.json").read_text())
    assert code == (0 if report["ok"] else 1)
    assert [row["format"] for row in report["models"]][-2:] == ["onnx-genai", "transformers"]
    runtimes = json.loads((folder / "details.json").read_text())["runtimes"]
    assert runtimes["transformers"]["agreement"] >= 0.99
    # Random weights: many tokens are nearly as likely, and rounded inputs decide between them.
    assert runtimes["onnx"]["agreement"] >= 0.9
    assert runtimes["onnx"]["kl"] < 0.02
