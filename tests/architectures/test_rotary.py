"""Scaled rotary embeddings and sliding windows: every decoder computes what transformers does, or plan refuses it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from hfcompress.architectures.checkpoint import Checkpoint
from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.architectures.decoder_stack import DecoderStack
from hfcompress.architectures.decoders import layer_windows, require_graph, rope_type
from hfcompress.architectures.quantized_model import load_simulated
from hfcompress.errors import UserError
from hfcompress.formats.genai import ExportGenai
from hfcompress.formats.gguf import ExportGguf
from hfcompress.formats.runtimes.onnx_decoder import OnnxDecoder
from hfcompress.formats.runtimes.torch_decoder import load
from hfcompress.ops.grid import Grid
from hfcompress.tasks.text_generation import CausalLM
from tests.cli.test_cli import refused
from tests.language_models import pack_model, write_llama, write_task

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
KINDS: dict[str, dict[str, Any]] = {
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "yarn-attention": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "beta_fast": 8.0}
    },
    "linear-old-key": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0} | LLAMA3},
    "mistral": {"kind": "Mistral", "sliding_window": 12},
    "qwen2-unused": {"kind": "Qwen2", "sliding_window": 8, "use_sliding_window": False, "max_window_layers": 1},
    "qwen2": {"kind": "Qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
}  # fmt: skip
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 320, 100)]


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return found


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return write_task(tmp_path_factory.mktemp("data") / "texts")


@pytest.mark.parametrize("name", KINDS)
def test_layers_and_the_graph_compute_the_stock_model(name: str, tmp_path: Path, task: CausalLM) -> None:
    model = write_llama(tmp_path / "model", **KINDS[name])
    stack = DecoderStack(Checkpoint(model))
    with torch.inference_mode():
        hidden = stack.embed(np.array([IDS]))
        for index in range(stack.layers):
            hidden = stack.run(stack.layer(index), hidden)
        found = stack.capped(stack.norm()(hidden) @ stack.head().T)[0].numpy()
    wanted = logits(load(model), IDS)
    assert off(found, wanted) < 1e-5
    packed = pack_model(model, tmp_path / "packed", Grid(8, 32))
    out = tmp_path / "onnx"
    (out / "work").mkdir(parents=True)
    ExportGenai("float32", accuracy_level=1, context=128)(out, model=packed, task=task)
    decoder = OnnxDecoder(out, 1)
    assert off(decoder.append(IDS, all_logits=True), logits(load_simulated(packed), IDS)) < 2e-3
    plain = write_llama(tmp_path / "plain", kind=KINDS[name].get("kind", "Llama"))
    if name != "qwen2-unused" and name != "dynamic":  # whose scaling begins beyond its positions
        assert off(logits(load(plain), IDS), wanted) > 0.01  # the field changes something


def planned(model: Path) -> LanguageShape:
    return LanguageShape.read(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"rope_type": "never", "factor": 2.0}}, "rope_type is never; known are default, linear"),
        ({"rope_scaling": [4.0]}, "rope_scaling is '[4.0]'; it must be an object"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling has no factor, which rope_type dynamic needs"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5: transformers' llama turns whole heads"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "names the class Qwen2ForCausalLM, and transformers loads Llama"),
        ({"hidden_act": "relu"}, "activation is relu"),
    ],
)
def test_what_is_not_computed_is_refused_by_the_plan(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = json.loads((write_llama(tmp_path / "model") / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    options = ("--base", tmp_path / "model", "--budget.context", "32")
    assert words in refused("plan", "summarize_7b", *options)
    assert words in refused("run", "summarize_7b", *options, "--run-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_part_of_a_head_that_onnxruntime_does_not_turn_is_refused(tmp_path: Path) -> None:
    config = planned(write_llama(tmp_path / "model", kind="Phi3", partial_rotary_factor=0.5)).config
    assert config is not None
    with pytest.raises(UserError, match="the model turns 8 numbers of a head, and onnxruntime's attention takes"):
        require_graph(config, 32)


def test_one_table_of_angles_holds_up_to_the_positions_of_dynamic_ntk(tmp_path: Path, task: CausalLM) -> None:
    model = write_llama(tmp_path / "model", **KINDS["dynamic"])
    config = planned(model).config
    assert config is not None
    require_graph(config, 128)
    with pytest.raises(UserError, match=r"context of 129: the model \(dynamic\) .*give --budget.context 128 or less"):
        require_graph(config, 129)


def test_gguf_of_a_scaling_that_llama_cpp_reads_otherwise_is_refused_by_the_plan(tmp_path: Path) -> None:
    for name, known in (("yarn", False), ("dynamic", False), ("linear-old-key", True), ("llama3", True)):
        shape = planned(write_llama(tmp_path / name, **KINDS[name]))
        if known:
            ExportGguf().predict(model=shape)
        else:
            with pytest.raises(UserError, match="GGUF export of a LlamaForCausalLM knows default, linear, llama3"):
                ExportGguf().predict(model=shape)


def test_windows_are_those_of_the_class_also_where_a_config_leaves_them_out(tmp_path: Path) -> None:
    layers = {"num_hidden_layers": 30}
    for config in (
        {"model_type": "qwen2", "sliding_window": 40},  # not used: the class wants to be told
        {"model_type": "qwen3", "sliding_window": 40, "use_sliding_window": True},
        {"model_type": "qwen3", "use_sliding_window": True},
        {"model_type": "gemma2"},
        {"model_type": "mistral", "sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"] * 15},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | layers), encoding="utf-8")
        made = AutoConfig.from_pretrained(tmp_path)
        wanted = tuple(made.sliding_window if kind == "sliding_attention" else None for kind in made.layer_types)
        assert layer_windows(config | layers) == wanted, config
    assert layer_windows({"model_type": "llama", "sliding_window": 8} | layers) == (None,) * 30
    assert layer_windows({"model_type": "mistral"} | layers) == (4096,) * 30
    assert layer_windows({"model_type": "phi3"} | layers) == (None,) * 30


def test_the_older_key_is_read(tmp_path: Path) -> None:
    assert rope_type({"rope_scaling": {"type": "linear", "factor": 2.0}}) == "linear"
    assert rope_type({"rope_scaling": None}) == "default"
