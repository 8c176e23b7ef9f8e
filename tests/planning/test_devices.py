import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.architectures.meta import meta_model
from hfcompress.errors import UserError
from hfcompress.planning.devices import memory as devices
from hfcompress.planning.devices.memory import DEVICES, NUMBERS, Device

MISTRAL: dict[str, Any] = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768, "max_position_embeddings": 32768,
    "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip
TINY: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 128,
}  # fmt: skip
PI = next(device for device in DEVICES if device.name == "raspberry-pi-5")


def real(config: dict[str, Any]) -> Any:
    """The stock model of a config, without memory for its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    return meta_model(AutoModelForCausalLM, AutoConfig.for_model(**config))


@pytest.mark.parametrize(
    "config",
    [
        MISTRAL,
        TINY | {"model_type": "llama"},
        TINY | {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 24},
        TINY | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        TINY | {"model_type": "mistral", "sliding_window": 32},
        TINY | {"model_type": "qwen2", "tie_word_embeddings": True},
        TINY | {"model_type": "qwen3", "head_dim": 32},
        TINY | {"model_type": "phi3", "pad_token_id": 0},
        TINY | {"model_type": "gemma"},
        TINY | {"model_type": "gemma2", "head_dim": 32, "sliding_window": 32},
        TINY | {"model_type": "gemma3_text", "head_dim": 32, "sliding_window": 32},
    ],
)
def test_parameters_are_the_real_models(config: dict[str, Any]):
    import torch

    shape, model = LanguageShape.from_config(config), real(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    matrices = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding)
    }
    if shape.tied:
        matrices.pop("lm_head")
    assert {name: (rows, columns) for name, rows, columns in shape.linears()} == matrices


def test_mistral_7b():
    assert LanguageShape.from_config(MISTRAL).parameters == 7_248_023_552


def test_config_of_a_model_in_memory_is_read(tmp_path: Path):
    from transformers import LlamaConfig

    config = LlamaConfig(**TINY, dtype="float32")
    assert LanguageShape.from_config(config.to_dict()).weight_bits == 32
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"model_type": "llama"}))
    assert LanguageShape.read(tmp_path).weight_bits == 16


@pytest.mark.parametrize(
    ("config", "match"), [({"model_type": "gpt2"}, "gpt2"), ({"model_type": "llama"}, "hidden_size")]
)
def test_other_configs_are_refused(config: dict[str, Any], match: str):
    with pytest.raises(UserError, match=match):
        LanguageShape.from_config(config)


def test_missing_or_damaged_config_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        LanguageShape.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        LanguageShape.read(tmp_path)


def test_window_that_is_not_used():
    config = TINY | {"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": False}
    assert LanguageShape.from_config(config).sliding_window is None


def test_kv_cache_by_hand():
    """Mistral-7B: 32 layers, keys and values, 8 heads of 128, two bytes: 131,072 bytes a token."""
    shape = LanguageShape.from_config(MISTRAL)
    assert devices.kv_cache_bytes(shape, 2048) == 2048 * 131_072
    assert devices.kv_cache_bytes(dataclasses.replace(shape, kv_bits=8), 2048) == 1024 * 131_072
    windowed = dataclasses.replace(shape, sliding_window=1024)
    assert devices.kv_cache_bytes(windowed, 2048) == 1024 * 131_072


def test_resident_bytes_by_hand():
    shape = dataclasses.replace(LanguageShape.from_config(MISTRAL), weight_bits=4.5)
    found = devices.resident_bytes(shape, 2048)
    matrix = 32_768 * 4096
    plain = (2 * 32 + 1) * 4096
    assert found["embedding"] == matrix * 4.5 / 8
    assert found["weights"] == (7_248_023_552 - matrix - plain) * 4.5 / 8 + 4 * plain
    assert devices.resident_bytes(shape, 2048, interpreter=False)["interpreter"] == 0
    repacked = dataclasses.replace(shape, resident_bits=5.0)
    assert devices.resident_bytes(repacked, 2048)["weights"] == (7_248_023_552 - matrix - plain) * 5 / 8 + 4 * plain
    tied = devices.resident_bytes(dataclasses.replace(repacked, tied=True), 2048)
    assert tied["weights"] == devices.resident_bytes(repacked, 2048)["weights"], "the head is repacked beside its rows"
    assert 4.0e9 < found["weights"] + found["embedding"] < 4.2e9  # llama.cpp's Q4_0 file of this shape: 4.11 GB


def test_token_reads_the_matrices_but_not_the_embedding():
    shape = LanguageShape.from_config(MISTRAL)
    plain = (2 * 32 + 1) * 4096
    matrices = 7_248_023_552 - 32_768 * 4096 - plain
    assert devices.token_bytes(shape, 0) == 2 * matrices + 4 * plain
    tied = dataclasses.replace(shape, tied=True, embedding_bits=8)
    assert devices.token_bytes(tied, 0) == 2 * (matrices - 32_768 * 4096) + 32_768 * 4096 + 4 * plain


def test_pairs_of_a_window():
    assert devices.sum_of_pairs(4, 9) == 1 + 2 + 3 + 4
    assert devices.sum_of_pairs(5, 2) == 1 + 2 + 2 + 2 + 2


@pytest.mark.parametrize("known", [*DEVICES], ids=lambda known: known.name)
def test_more_costs_more(known: Device):
    shape = LanguageShape.from_config(MISTRAL)
    small = dataclasses.replace(shape, weight_bits=4.25)
    assert devices.decode_ms(small, known, 128) < devices.decode_ms(small, known, 2048)
    assert devices.decode_ms(small, known, 128) < devices.decode_ms(shape, known, 128)
    assert devices.first_token_ms(small, known, 128) < devices.first_token_ms(small, known, 1024)
    wider = dataclasses.replace(known, memory_bandwidth=2 * known.memory_bandwidth)
    assert devices.decode_ms(small, wider, 128) == devices.decode_ms(small, known, 128) / 2
    assert not devices.fits(shape, known, 2048)
    totals = [sum(devices.resident_bytes(small, n).values()) for n in (128, 1024, 4096)]
    assert totals == sorted(totals)


@pytest.mark.parametrize("known", [*DEVICES], ids=lambda known: known.name)
def test_every_number_has_a_source(known: Device):
    assert set(known.sources) == set(NUMBERS)
    assert all(source.startswith("https://") for source in known.sources.values())
    assert set(known.estimated) <= set(NUMBERS)
    assert all(getattr(known, number) > 0 for number in NUMBERS)
    assert known.sustained <= 1


def test_measured_pi_is_predicted():
    """Llama-3-8B in 4 bits on a Raspberry Pi 5: 2.05 to 2.5 tokens/s (llama.cpp issue 9774), no source here."""
    shape = LanguageShape.from_config(MISTRAL | {"model_type": "llama", "vocab_size": 128_256})
    assert 2.0 <= 1e3 / devices.decode_ms(dataclasses.replace(shape, weight_bits=4.5), PI, 128) <= 2.6


def test_unknown_device_names_the_known():
    with pytest.raises(UserError, match="raspberry-pi-5"):
        devices.device("toaster")
    assert devices.device("raspberry-pi-5") is PI


def test_here_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "READ_BYTES", 8_000_000)
    monkeypatch.setattr(devices, "GEMM_SIZE", 128)
    here = devices.device("here", threads=1)
    assert here.memory_bandwidth > 0.1
    assert here.compute > 0.1
    assert here.usable_memory > 0.1


def test_behind_a_long_text_an_int8_cache_costs_arithmetic():
    shape = dataclasses.replace(LanguageShape.from_config(MISTRAL), weight_bits=4, kv_bits=8)
    assert devices.attention_operations(shape, 1984) == 4 * 32 * 32 * 128 * 1984
    floats, slower = dataclasses.replace(shape, kv_bits=16), dataclasses.replace(PI, compute=PI.compute / 2)
    more = {
        depth: devices.decode_ms(shape, PI, depth) - devices.decode_ms(shape, slower, depth) for depth in (64, 1984)
    }
    assert more[1984] == pytest.approx(31 * more[64]), "what is computed grows with the text, and halves the rate"
    assert devices.decode_ms(floats, PI, 1984) == devices.decode_ms(floats, slower, 1984), "bytes alone"
    windowed = dataclasses.replace(shape, sliding_window=64)
    assert devices.decode_ms(windowed, PI, 1984) == devices.decode_ms(windowed, PI, 64)
