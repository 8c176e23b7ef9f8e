"""The ONNX decoder computes what the packed integers stand for, in plain onnxruntime and in onnxruntime-genai."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import DynamicCache

from hfcompress.architectures.models import load_tokenizer
from hfcompress.architectures.quantized_model import PackedModel, load_simulated
from hfcompress.errors import UserError
from hfcompress.formats import format_of, onnx_decoders
from hfcompress.formats.genai import ExportGenai
from hfcompress.formats.int8_cache import cache_scales
from hfcompress.formats.runtimes.onnx_decoder import OnnxDecoder
from hfcompress.formats.size import sizes
from hfcompress.ops.grid import Grid
from hfcompress.tasks.text_generation import CausalLM
from tests.language_models import pack_model, write_llama, write_task

IDS = [int(i) for i in np.random.default_rng(1).integers(3, 320, 60)]


def export(
    tmp_path: Path, grid: Grid, accuracy_level: int = 1, kv_cache: Any = "float32", **changes: object
) -> tuple[Path, Path]:
    model = write_llama(tmp_path / "model", **changes)  # type: ignore[arg-type]
    packed = pack_model(model, tmp_path / "packed", grid)
    (tmp_path / "onnx").mkdir()
    stage = ExportGenai(kv_cache=kv_cache, accuracy_level=accuracy_level, context=128)
    stage(tmp_path / "onnx", model=packed, task=task(tmp_path))
    return packed, tmp_path / "onnx"


def task(tmp_path: Path) -> CausalLM:
    folder = tmp_path / "data"
    written = write_task(folder) if not folder.is_dir() else CausalLM(dataset=str(folder))
    return replace(written, window=32, stride=16, calibration_windows=12)


def simulated(packed: Path, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return load_simulated(packed)(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_the_simulation(tmp_path: Path, bits: int, symmetric: bool, tied: bool) -> None:
    packed, onnx = export(tmp_path, Grid(bits, 32, symmetric), tied=tied)
    found, wanted = OnnxDecoder(onnx, 1).append(IDS, all_logits=True), simulated(packed, IDS)
    assert np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_inputs_rounded_to_int8_say_nearly_the_same_with_scales_of_both_signs(tmp_path: Path, bits: int) -> None:
    packed, onnx = export(tmp_path, Grid(bits, 32), accuracy_level=4)
    scales = PackedModel(packed).tensor("model.layers.0.mlp.up_proj.scales")
    assert (scales < 0).any()
    assert (scales > 0).any()
    found, wanted = OnnxDecoder(onnx, 1).append(IDS, all_logits=True), simulated(packed, IDS)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.01 * np.abs(wanted).max()


@pytest.mark.parametrize("group_size", [64, 0])
def test_groups_of_any_size_are_expressed(tmp_path: Path, group_size: int) -> None:
    packed, onnx = export(tmp_path, Grid(4, group_size), kind="Mistral")
    wanted = simulated(packed, IDS)
    assert np.abs(OnnxDecoder(onnx, 1).append(IDS, all_logits=True) - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_two_bits_get_blocks_that_have_a_kernel(tmp_path: Path) -> None:
    """onnxruntime computes 2 bits in blocks of 256 without one, 250 times as slowly."""
    packed, folder = export(tmp_path, Grid(2, 256), hidden_size=256)
    wanted = simulated(packed, IDS)
    assert np.abs(OnnxDecoder(folder, 1).append(IDS, all_logits=True) - wanted).max() < 2e-3 * np.abs(wanted).max()
    nodes = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.node
    blocks = {(a["bits"], a["block_size"]) for a in ({x.name: x.i for x in n.attribute} for n in nodes) if "K" in a}
    assert (2, 128) in blocks
    assert (2, 256) not in blocks


def test_a_sliding_window_is_respected(tmp_path: Path) -> None:
    packed, onnx = export(tmp_path, Grid(8, 32), kind="Mistral", sliding_window=16)
    wanted = simulated(packed, IDS)
    assert np.abs(OnnxDecoder(onnx, 1).append(IDS, all_logits=True) - wanted).max() < 2e-3 * np.abs(wanted).max()
    changed = [7, *IDS[1:]]  # further back than two layers of such windows reach
    assert np.allclose(simulated(packed, changed)[-1], wanted[-1], atol=1e-4)


def test_tokens_one_by_one_and_after_a_rewind_give_the_same(tmp_path: Path) -> None:
    _, onnx = export(tmp_path, Grid(4, 32))
    decoder = OnnxDecoder(onnx, 1)
    whole = decoder.append(IDS, all_logits=True)
    decoder.rewind(10)
    single = np.concatenate([decoder.append([token]) for token in IDS[10:]])
    assert np.allclose(single, whole[10:], atol=1e-3)
    with pytest.raises(UserError, match="context of 128"):
        decoder.append([3] * 100)


class RoundedCache(DynamicCache):
    """Keys and values as an int8 cache holds them, with the scales that model.onnx in `folder` has."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        tensors = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.initializer
        scales = [tensor for tensor in tensors if tensor.name.endswith((".key.scale", ".value.scale"))]
        self.scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in scales}

    def update(self, keys: Any, values: Any, layer: int, *rest: Any, **more: Any) -> Any:
        return self.rounded(keys, f"{layer}.key"), self.rounded(values, f"{layer}.value")

    def rounded(self, x: torch.Tensor, part: str) -> torch.Tensor:
        scale = torch.tensor(self.scales[f"past_key_values.{part}.scale"]).view(1, x.shape[1], 1, -1)
        return (x / scale).round().clamp(-128, 127) * scale


@pytest.mark.parametrize("changes", [{}, {"kind": "Mistral", "sliding_window": 16}])
def test_an_int8_cache_says_what_rounded_keys_and_values_do_and_nearly_the_same(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    packed, folder = export(tmp_path, Grid(8, 32), kv_cache="int8", **changes)
    decoder = OnnxDecoder(folder, 1)
    assert {cache.dtype for cache in decoder.caches.values()} == {np.dtype(np.int8)}
    ids = task(tmp_path).calibration(load_tokenizer(packed))[9:11].flatten().tolist()  # windows that set no scale
    exact = simulated(packed, ids)
    with torch.inference_mode():
        network = load_simulated(packed)
        wanted = network(torch.tensor([ids]), past_key_values=RoundedCache(folder), use_cache=True).logits[0].numpy()
    found = decoder.append(ids, all_logits=True)
    assert np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()
    assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.01 * np.abs(exact).max()
    decoder.rewind(10)
    single = np.concatenate([decoder.append([token]) for token in ids[10:]])
    assert np.abs(single - wanted[10:]).max() < 2e-3 * np.abs(wanted).max()


def test_the_scales_of_an_int8_cache_are_the_channels_largest_values(tmp_path: Path) -> None:
    packed = pack_model(write_llama(tmp_path / "model", kind="Mistral", sliding_window=8), tmp_path / "packed",
                        Grid(4, 32, False))  # fmt: skip
    windows = np.array([IDS[:20], IDS[20:40]])
    found = cache_scales(PackedModel(packed), windows)
    largest: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for window in windows:
            from transformers import DynamicCache

            cache = DynamicCache()  # which keeps all tokens, whatever the window
            load_simulated(packed)(torch.tensor([window.tolist()]), past_key_values=cache)
            for layer in range(2):
                key, value = cache.layers[layer].keys, cache.layers[layer].values
                for name, tensor in (("key", key), ("value", value)):
                    seen = tensor[0].abs().amax(1).flatten()
                    name = f"past_key_values.{layer}.{name}"
                    largest[name] = torch.maximum(largest.get(name, torch.zeros(())), seen)
    assert found.keys() == largest.keys()
    for name, scales in found.items():
        assert np.allclose(scales, largest[name].numpy() * 1.1 / 127, rtol=1e-3)


def test_wrong_scales_of_a_cache_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcompress.formats import int8_cache

    def too_small(packed: PackedModel, windows: np.ndarray, bf16: bool) -> dict[str, np.ndarray]:
        return {name: scales / 20 for name, scales in cache_scales(packed, windows, bf16).items()}

    monkeypatch.setattr(int8_cache, "cache_scales", too_small)
    with pytest.raises(RuntimeError, match="other logits"):
        export(tmp_path, Grid(4, 32), kv_cache="int8")


@pytest.mark.parametrize("kv_cache", ["float32", "int8"])
def test_genai_generates_what_plain_onnxruntime_does(tmp_path: Path, kv_cache: str) -> None:
    import onnxruntime_genai as genai

    _, onnx = export(tmp_path, Grid(4, 32), accuracy_level=4, kv_cache=kv_cache)
    decoder = OnnxDecoder(onnx, 1)
    wanted, logits = list(IDS[:12]), decoder.append(IDS[:12])
    for _ in range(12):
        wanted.append(int(logits[-1].argmax()))
        logits = decoder.append(wanted[-1:])
    model = genai.Model(str(onnx))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=24)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(IDS[:12], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)]
    end = next((i for i, token in enumerate(wanted[12:], 13) if token == 1), len(wanted))  # it stops at </s>
    assert found[:end] == wanted[:end]


def test_the_files_hold_four_bits(tmp_path: Path) -> None:
    packed, onnx = export(tmp_path, Grid(4, 32))
    found, before = sizes(onnx), sizes(packed)
    assert format_of(onnx).word == "onnx-genai"
    assert found["dtypes"]["int4"] * 2 == 320 * 64 + 2 * 64 * (64 + 32 + 32 + 64 + 3 * 128)
    assert before["dtypes"]["int4"] == found["dtypes"]["int4"]
    assert json.loads((onnx / "genai_config.json").read_text())["model"]["context_length"] == 128


def test_what_lies_in_memory_is_counted_from_the_graph(tmp_path: Path) -> None:
    from hfcompress.architectures.decoder_spec import LanguageShape
    from hfcompress.planning.decoders import expected
    from hfcompress.planning.devices.memory import resident_bytes

    _, onnx = export(tmp_path, Grid(4, 32), kv_cache="int8")
    found = expected(onnx, 100)
    layers = 2 * 64 * (64 + 32 + 32 + 64 + 3 * 128)
    small = 5 * 64 + 2 * 128 * 8  # norms, rotary tables
    scales = 2 * 2 * 32  # of the cache
    assert found["weights"] == pytest.approx((layers + 320 * 64) * (4 + 64 / 32) / 8 + 4 * (small + scales), abs=64)
    assert found["embedding"] == 320 * 64 * (4 + 32 / 32) / 8
    assert found["kv_cache"] == 2 * 2 * 32 * 100
    others = resident_bytes(LanguageShape.read(onnx), 100)
    assert [found[name] for name in ("activations", "runtime")] == [others["activations"], others["runtime"]]


def test_a_writer_that_swaps_nibbles_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_model(write_llama(tmp_path / "model"), tmp_path / "packed", Grid(4, 32))
    right = onnx_decoders.stored

    def swapped(*arguments: Any) -> Any:
        matrix = right(*arguments)
        return replace(matrix, codes=(matrix.codes >> 4) | (matrix.codes << 4))

    monkeypatch.setattr(onnx_decoders, "stored", swapped)
    (tmp_path / "onnx").mkdir()
    with pytest.raises(RuntimeError, match="other logits"):
        ExportGenai(context=128)(tmp_path / "onnx", model=packed, task=task(tmp_path))


def test_a_matrix_left_in_float_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_model(write_llama(tmp_path / "model"), tmp_path / "packed", Grid(4, 32))

    def left_in_float(graph, packed, module, read, level, widened):  # type: ignore[no-untyped-def]
        weight = graph.small(f"{module}.weight", packed.quantized(module).dequantize().numpy().T.copy())
        return graph.node("MatMul", [read, weight], [module])

    monkeypatch.setattr(onnx_decoders, "matmul", left_in_float)
    (tmp_path / "onnx").mkdir()
    with pytest.raises(RuntimeError, match="claims packed integers"):
        ExportGenai(context=128)(tmp_path / "onnx", model=packed, task=task(tmp_path))


def test_another_architecture_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    packed = pack_model(write_llama(tmp_path / "model"), tmp_path / "packed", Grid(4, 32))
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"architectures": ["PhiForCausalLM"]}))
    (tmp_path / "onnx").mkdir()
    with pytest.raises(UserError, match="LlamaForCausalLM, MistralForCausalLM"):
        ExportGenai()(tmp_path / "onnx", model=packed, task=task(tmp_path))
