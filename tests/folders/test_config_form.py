"""A config of transformers 4 and the same model's of transformers 5 make one config object, and one plan."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.architectures.decoders import require_supported
from hfcompress.architectures.meta import meta_model
from hfcompress.architectures.pretrained import stock_config
from hfcompress.errors import UserError
from hfcompress.folders.config_form import normalized
from hfcompress.formats.runtimes.torch_decoder import load
from hfcompress.planning.profile import profile
from tests.language_models import write_llama

FIVE = transformers.__version__.startswith("5.")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
GEMMA5 = {
    "full_attention": {"rope_theta": 50_000.0, "rope_type": "linear", "factor": 2.0},
    "sliding_attention": {"rope_theta": 100.0, "rope_type": "default"},
}
# Model type, the rotary fields as version 4 writes them, and as version 5 does.
SAME: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
    "yarn": ("qwen2", {"rope_theta": 1e6, "rope_scaling": YARN}, {"rope_parameters": {"rope_theta": 1e6} | YARN}),
    "old key": (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}},
    ),
    "gemma 3": (
        "gemma3_text",
        {"rope_theta": 5e4, "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": GEMMA5},
    ),
    "phi 3": (
        "phi3",
        {
            "rope_scaling": {"type": "longrope"} | LONG, "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": 64,
        },
        {
            "rope_parameters": {
                "rope_theta": 1e4, "rope_type": "longrope", "partial_rotary_factor": 1.0,
                "original_max_position_embeddings": 64,
            } | LONG,
        },
    ),
    "gpt neox": (
        "gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 500.0},
        {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5, "rope_type": "default"}},
    ),
    "modernbert": (
        "modernbert", {"global_rope_theta": 9e4, "local_rope_theta": 50.0, "global_attn_every_n_layers": 2},
        {
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_theta": 9e4, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 50.0, "rope_type": "default"},
            },
        },
    ),
}  # fmt: skip
SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip


def made(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found: dict[str, Any] = rotary_by_one_name(stock_config(folder).to_dict())
    return {k: v for k, v in found.items() if k not in ("transformers_version", "layer_types")}


def rotary_by_one_name(config: dict[str, Any]) -> dict[str, Any]:
    """Without the older `type` beside `rope_type`, and nothing for an object that says nothing."""
    found = {k: rotary_by_one_name(v) if isinstance(v, dict) else v for k, v in config.items()}
    if "type" in found:
        kind = found.pop("type")
        found.setdefault("rope_type", kind)
    return found | ({"rope_scaling": found["rope_scaling"] or None} if "rope_scaling" in found else {})


@pytest.mark.parametrize("name", SAME)
def test_both_versions_say_the_same(name: str, tmp_path: Path) -> None:
    kind, four, five = SAME[name]
    base = SIZES | {"model_type": kind}
    old = made(tmp_path / "a", base | four | {"torch_dtype": "float16"})
    new = made(tmp_path / "a", base | five | {"dtype": "float16", "transformers_version": "5.2.0"})
    assert old == new


def test_a_model_saved_by_either_version_answers_alike(tmp_path: Path) -> None:
    model, ids = write_llama(tmp_path / "model", rope_theta=500.0), torch.arange(3, 60)[None]
    with torch.inference_mode():
        wanted = load(model)(ids).logits
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    bare = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling", "dtype")}
    for rope, alike in ((500.0, True), (10_000.0, False)):
        told = {"rope_parameters": {"rope_theta": rope, "rope_type": "default"}, "transformers_version": "5.2.0"}
        (model / "config.json").write_text(json.dumps(bare | told), encoding="utf-8")
        with torch.inference_mode():
            assert torch.allclose(load(model)(ids).logits, wanted, atol=1e-5) == alike


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta itself is 10000.0"),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": GEMMA5 | {"sliding_attention": {"rope_theta": 1.0, "rope_type": "yarn"}},
            },
            "rope_parameters of sliding_attention are scaled",
        ),
        (
            {"model_type": "modernbert", "layer_types": ["full_attention", "sliding_attention", "full_attention"] * 2},
            "at uneven distances",
        ),
    ],
)
def test_what_version_4_cannot_say_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        normalized(changes)
    with pytest.raises(UserError, match=r"config\.json: .*" + words):
        made(tmp_path, SIZES | {"model_type": "llama"} | changes)


BY_LAYER = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}


def test_rotary_numbers_that_version_4_has_no_field_for_are_never_left_unread(tmp_path: Path) -> None:
    """Version 5's classes are handed them as they are; version 4's, and what turns heads here, refuse them."""
    config = SIZES | {"model_type": "llama", "rope_parameters": BY_LAYER, "layer_types": ["full_attention"] * 4}
    assert normalized(config)["rope_parameters"] == BY_LAYER
    with pytest.raises(UserError, match="differ by layer type, which is not known here"):
        require_supported("a model", normalized(config))
    if FIVE:
        assert made(tmp_path, config)["rope_parameters"]["full_attention"]["rope_theta"] == 1e6
    else:
        for written in (config, {"model_type": "llava", "text_config": config}):
            with pytest.raises(UserError, match=r"config\.json: rope_parameters differ by layer type, .* newer trans"):
                made(tmp_path, written)


def test_an_unused_window_of_version_5_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen2_moe", "sliding_window": 0, "use_sliding_window": False}), encoding="utf-8"
    )
    assert not stock_config(tmp_path).sliding_window


# As transformers 5.24 wrote them, the sizes made small: model type, and what its config.json says beside SIZES.
NEW_WITH_FIVE: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {
        "architectures": ["Qwen3_5ForCausalLM"], "head_dim": 16, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_value_head_dim": 16,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10000.0, "rope_type": "default"},
    },
    "gemma4_text": {
        "architectures": ["Gemma4ForCausalLM"], "head_dim": 16, "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 320, "final_logit_softcapping": None, "sliding_window": 512,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"], "per_layer_config": {"3": {"head_dim": 32}},
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    },
    "ministral3": {
        "architectures": ["Ministral3ForCausalLM"], "head_dim": 16, "rms_norm_eps": 1e-05, "sliding_window": None,
        "rope_parameters": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0,
            "max_position_embeddings": 128, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384,
            "rope_theta": 1e6, "rope_type": "yarn", "type": "yarn",
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", NEW_WITH_FIVE)
def test_models_that_came_with_version_5_are_read_whole_or_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    config = SIZES | NEW_WITH_FIVE[kind] | {"model_type": kind, "dtype": "float32", "transformers_version": "5.24.0"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if not FIVE:
        with pytest.raises(UserError, match=f"model_type '{kind}' needs a newer transformers .* saved by 5.24.0"):
            stock_config(tmp_path)
        return
    network = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    network.save_pretrained(tmp_path)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        assert torch.equal(load(tmp_path)(ids).logits, network.eval()(ids).logits)
    found = profile(tmp_path, batch=1, length=8, threads=1, runs=1, timed=False)
    stored = {tensor.data_ptr(): tensor.numel() for tensor in network.state_dict().values()}  # a tied head once
    assert found.parameters == sum(stored.values())
    with pytest.raises(UserError, match=f"a {kind} is no model whose shape is known"):
        LanguageShape.read(tmp_path)


def test_a_config_is_left_as_it_was() -> None:
    config = {"torch_dtype": "torch.float16", "rope_parameters": {"rope_theta": 2.0}, "x": {"__float__": "Infinity"}}
    kept = json.dumps(config)
    assert normalized(config) == {"dtype": "float16", "rope_theta": 2.0, "x": float("inf")}
    assert json.dumps(config) == kept


BASE = SIZES | {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6}
COUNTED = {
    "Llama": ({}, {"attention_bias": True}, {"mlp_bias": True, "tie_word_embeddings": True, "head_dim": 32}),
    "Mistral": ({}, {"head_dim": 8}, {"attention_bias": True}, {"mlp_bias": True}),
    "Qwen2": ({}, {"tie_word_embeddings": True}, {"attention_bias": True}),
    "Qwen3": ({}, {"attention_bias": True}, {"mlp_bias": True}),
    "Phi3": ({}, {"attention_bias": True}, {"mlp_bias": True}),
    "Gemma": ({}, {"attention_bias": True}),
    "Gemma2": ({}, {"attention_bias": True}),
    "Gemma3Text": ({}, {"tie_word_embeddings": False}),
}


@pytest.mark.parametrize(("name", "changes"), [(name, row) for name, rows in COUNTED.items() for row in rows])
@pytest.mark.parametrize("left_out", [(), ("num_key_value_heads", "head_dim", "tie_word_embeddings")])
def test_the_plan_counts_as_torch_does(name: str, changes: dict[str, Any], left_out: tuple[str, ...]) -> None:
    """Also where the config leaves a field to its class's default, which is another one in each class."""
    kind = getattr(transformers, f"{name}Config")
    given = {k: v for k, v in (BASE | {"bos_token_id": 1, "eos_token_id": 2} | changes).items() if k not in left_out}
    given |= {"num_attention_heads": 64, "hidden_size": 256} if left_out else {}
    model = meta_model(transformers.AutoModelForCausalLM, kind(**given))
    planned = LanguageShape.from_config(given | {"model_type": kind.model_type})
    assert planned.parameters == sum(parameter.numel() for parameter in model.parameters())
