"""The transformers folder: stock AutoModel loads the packed integers and computes what they stand for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hfcompress.architectures.quantized_model import load_simulated
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.formats import compressed_tensors, format_of
from hfcompress.formats.compressed_tensors import ExportTransformers
from hfcompress.formats.size import sizes
from hfcompress.ops.grid import Grid
from hfcompress.tasks.text_generation import CausalLM
from tests.language_models import pack_model, write_llama, write_task

IDS = torch.tensor([[5, 9, 200, 17, 33, 42, 250, 6, 11, 300]])


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return write_task(tmp_path_factory.mktemp("data") / "texts")


def delivered(tmp_path: Path, packed: Path, task: CausalLM) -> tuple[Path, dict[str, Any]]:
    out = tmp_path / "transformers"
    out.mkdir()
    return out, ExportTransformers()(out, model=packed, task=task)


def off(out: Path, packed: Path) -> float:
    """Largest difference of the logits, as a share of the largest."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(out, torch_dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = load_simulated(packed)(IDS).logits
        return float((model(IDS).logits - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (32, False), (0, True)])
def test_stock_classes_compute_what_the_integers_stand_for(
    tmp_path: Path, task: CausalLM, bits: int, group_size: int, symmetric: bool
) -> None:
    packed = pack_model(write_llama(tmp_path / "model"), tmp_path / "packed", Grid(bits, group_size, symmetric))
    out, told = delivered(tmp_path, packed, task)
    assert told["checked"] is True
    assert off(out, packed) < 2e-3, "only the embedding's rows are rounded to float16"


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2", "Qwen3"])
def test_other_architectures_and_heads_of_their_own(tmp_path: Path, task: CausalLM, kind: str) -> None:
    model = write_llama(tmp_path / "model", kind=kind, tied=False)
    packed = pack_model(model, tmp_path / "packed", Grid(4, 32))
    out, told = delivered(tmp_path, packed, task)
    assert told["packed_matrices"] == 2 * 7 + 1, "the head is a linear layer, and packed"
    assert off(out, packed) < 2e-3


def test_an_allotment_of_mixed_grids_and_gptq(tmp_path: Path, task: CausalLM) -> None:
    model = write_llama(tmp_path / "model")
    (tmp_path / "allotment").mkdir()
    grids = {"model.embed_tokens": Grid(8, 32)}
    for layer in range(2):
        for number, name in enumerate(("q", "k", "v", "o")):
            grids[f"model.layers.{layer}.self_attn.{name}_proj"] = Grid((2, 3, 4, 8)[number], (32, 64, 0, 32)[number])
        for number, name in enumerate(("gate", "up", "down")):
            grids[f"model.layers.{layer}.mlp.{name}_proj"] = Grid((4, 8, 3)[(number + layer) % 3], 64)
    chosen = {name: vars(grid) for name, grid in grids.items()}
    (tmp_path / "allotment" / "allotment.json").write_text(json.dumps({"grids": chosen}))
    packed = tmp_path / "packed"
    (packed / "work").mkdir(parents=True)
    WeightOnly("gptq")(packed, model=model, task=task, allotment=tmp_path / "allotment")
    out, _ = delivered(tmp_path, packed, task)
    assert off(out, packed) < 2e-3
    found, before = sizes(out)["dtypes"], sizes(packed)["dtypes"]
    packed_bits = {name: size for name, size in before.items() if name.startswith("int")}
    embedding = 320 * 64
    assert found["int2"] == packed_bits["int2"]
    assert found["int8"] == packed_bits["int8"] - embedding, "what the embedding had"
    assert found["float16"] > 2 * embedding, "and what its rows take"
    assert format_of(out).word == "transformers"


def test_wrong_integers_are_caught(tmp_path: Path, task: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_model(write_llama(tmp_path / "model"), tmp_path / "packed", Grid(4, 32))
    right = compressed_tensors.pack_quantized

    def swapped(quantized: Any) -> dict[str, torch.Tensor]:
        tensors = right(quantized)
        return tensors | {"weight_packed": tensors["weight_packed"].flip(1)}

    monkeypatch.setattr(compressed_tensors, "pack_quantized", swapped)
    with pytest.raises(RuntimeError, match="other integers"):
        delivered(tmp_path, packed, task)


def test_wrong_scales_are_caught(tmp_path: Path, task: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_model(write_llama(tmp_path / "model"), tmp_path / "packed", Grid(4, 32))
    right = compressed_tensors.pack_quantized

    def doubled(quantized: Any) -> dict[str, torch.Tensor]:
        tensors = right(quantized)
        return tensors | {"weight_scale": 2 * tensors["weight_scale"]}

    monkeypatch.setattr(compressed_tensors, "pack_quantized", doubled)
    with pytest.raises(RuntimeError, match="other logits"):
        delivered(tmp_path, packed, task)
