"""Scaled rotary embeddings and sliding windows: every decoder computes what transformers does, or plan refuses it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfcompress.architectures import DECODERS
from hfcompress.architectures.checkpoint import Checkpoint
from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.architectures.decoder_stack import DecoderStack
from hfcompress.architectures.decoders import require_graph, rope_type
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
LONGROPE = {"type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [4.0] * 8}
KINDS: dict[str, dict[str, Any]] = {
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "yarn-attention": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "beta_fast": 8.0}
    },
    "linear-old-key": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0} | LLAMA3},
    "longrope": {
        "kind": "Phi3", "tied": False, "rope_scaling": LONGROPE,
        "max_position_embeddings": 512, "original_max_position_embeddings": 128,
    },
    "qwen2-unused": {"kind": "Qwen2", "sliding_window": 8, "use_sliding_window": False, "max_window_layers": 1},
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


def test_one_table_of_angles_holds_up_to_the_positions_of_dynamic_ntk(tmp_path: Path, task: CausalLM) -> None:
    model = write_llama(tmp_path / "model", **KINDS["dynamic"])
    config = planned(model).config
    assert config is not None
    require_graph(config, 128)
    with pytest.raises(UserError, match=r"context of 129: the model \(dynamic\) .*give --budget.context 128 or less"):
        require_graph(config, 129)


def test_long_contexts_of_longrope_are_refused(tmp_path: Path) -> None:
    config = planned(write_llama(tmp_path / "model", **KINDS["longrope"])).config
    assert config is not None
    with pytest.raises(UserError, match=r"context of 256: .*give --budget.context 128 or less"):
        require_graph(config, 256)


def test_gguf_of_a_scaling_that_llama_cpp_reads_otherwise_is_refused_by_the_plan(tmp_path: Path) -> None:
    for name, known in (("yarn", False), ("dynamic", False), ("linear-old-key", True), ("llama3", True)):
        shape = planned(write_llama(tmp_path / name, **KINDS[name]))
        if known:
            ExportGguf().predict(model=shape)
        else:
            with pytest.raises(UserError, match="GGUF export of a LlamaForCausalLM knows default, linear, llama3"):
                ExportGguf().predict(model=shape)


def test_a_mistral_with_layer_types_has_windows_where_they_say(tmp_path: Path) -> None:
    """transformers makes a Ministral of it."""
    config = {"sliding_window": 40, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    assert DECODERS["mistral"].windows(config) == (40, None) * 2


def test_the_older_key_is_read(tmp_path: Path) -> None:
    assert rope_type({"rope_scaling": {"type": "linear", "factor": 2.0}}) == "linear"
    assert rope_type({"rope_scaling": None}) == "default"
