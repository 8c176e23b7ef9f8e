import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfcompress.architectures.checkpoint import Checkpoint, write_shard
from hfcompress.architectures.quantized_model import PackedModel, load_simulated, packed_tensors
from hfcompress.errors import CheckFailed, UserError
from hfcompress.ops.grid import Grid, encode, scales_and_zeros
from hfcompress.ops.rtn import rtn

pytest.importorskip("gguf", reason="the extra hfcompress[gguf] is not installed")

from hfcompress.formats import gguf_file as export
from hfcompress.formats import gguf_tokenizer
from hfcompress.formats.gguf import ExportGguf

PLAIN = ("norm.weight", "layernorm.weight", ".bias")
COMPANIONS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def pack(source: Path, out: Path, grid: Grid, overrides: dict[str, Grid] | None = None) -> Path:
    """Every matrix of a folder rounded to the nearest code, as the weight-only stage would write it."""
    checkpoint = Checkpoint(source)
    out.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    grids: dict[str, Grid] = {}
    for name in checkpoint.places:
        if name.endswith(PLAIN):
            tensors[name] = checkpoint.read(name)
            continue
        module, weight = name.removesuffix(".weight"), checkpoint.read(name).float()
        grids[module] = (overrides or {}).get(module, grid).fitting(weight.shape[1])
        found = encode(weight, *scales_and_zeros(weight, grids[module]), grids[module])
        tensors |= packed_tensors(module, found)
    write_shard(out / "model.safetensors", tensors)
    surgery = {"format": "packed", "grids": {module: vars(grid) for module, grid in grids.items()}}
    (out / "surgery.json").write_text(json.dumps(surgery))
    for name in COMPANIONS:
        shutil.copyfile(source / name, out / name)
    return out


def tokenizer_into(folder: Path) -> None:
    """A byte-level BPE that was trained on a sentence, with the split of Llama 3 and a beginning token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    rule = next(rule for rule, name in gguf_tokenizer.SPLITS.items() if name == "llama-bpe")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rule), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the cat sat on the mat, the rat ate the oat"] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text("{}")


def tiny(folder: Path, model_type: str = "llama", **changes: Any) -> Path:
    """A random Llama (or a model like it) with 2 layers, 4 heads of 32 that share 2 key-value heads."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 128, "bos_token_id": 0,
        "eos_token_id": 1, "initializer_range": 0.3,
    } | changes  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape))
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        if name.endswith(".bias"):
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    tokenizer_into(folder)
    return folder


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("llama") / "tied", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("llama") / "untied", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def stories() -> Path:
    from tests.conftest import DATA

    if not (DATA / "stories260k").is_dir():
        pytest.skip("stories260k is not here")
    return DATA / "stories260k"


def read(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Name -> values, and name -> type, of a GGUF file."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    tensors = GGUFReader(file).tensors
    return {t.name: dequantize(t.data, t.tensor_type) for t in tensors}, {t.name: t.tensor_type.name for t in tensors}


def field(file: Path, key: str) -> Any:
    from gguf import GGUFReader

    return GGUFReader(file).fields[key].contents()


def test_four_bits_are_rounded_as_llama_cpp_rounds_them() -> None:
    """Its scales to the byte; it divides by them before they are float16, which moves a weight in two thousand."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    theirs = quantize(weight.numpy(), GGMLQuantizationType.Q4_0).reshape(-1, 18)
    ours = export.blocks(rtn(weight, Grid(4, 32)), "Q4_0").reshape(-1, 18)
    np.testing.assert_array_equal(ours[:, :2], theirs[:, :2])
    assert (ours == theirs).mean() > 0.998


KINDS = {(4, True): "Q4_0", (3, True): "Q4_0", (2, True): "Q4_0", (8, True): "Q8_0", (8, False): "F16"}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 128, 0])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_values_are_the_packed_integers(tied: Path, tmp_path: Path, bits: int, group_size: int, symmetric: bool):
    model = PackedModel(pack(tied, tmp_path / "packed", Grid(bits, group_size, symmetric)))
    written = export.write(model, tmp_path / "model.gguf")
    values, kinds = read(tmp_path / "model.gguf")
    assert {e.name for e in written} == set(values)
    for entry in written:
        if entry.source not in model.grids:
            assert kinds[entry.name] == "F32"
            np.testing.assert_array_equal(values[entry.name], model.tensor(entry.source).numpy())
            continue
        assert kinds[entry.name] == entry.type == KINDS.get((bits, symmetric), "Q4_1")
        quantized = model.quantized(entry.source)
        wanted = quantized.dequantize()
        if entry.order is not None:
            wanted = wanted[entry.order]
        off = np.abs(values[entry.name] - wanted.numpy())
        if symmetric:
            assert off.max() == 0
        else:  # a share of a step: 15 / 2^11 of it for four bits, 256 / 2^11 for eight
            step = quantized.scales.float().max().item()
            assert off.max() <= step * (1 << bits) / 2**11


def test_untied_head_is_written(untied: Path, tmp_path: Path):
    model = PackedModel(pack(untied, tmp_path / "packed", Grid()))
    export.write(model, tmp_path / "model.gguf")
    values, _ = read(tmp_path / "model.gguf")
    np.testing.assert_array_equal(values["output.weight"], model.quantized("lm_head").dequantize().numpy())


def test_tied_head_is_left_out(tied: Path, tmp_path: Path):
    export.write(PackedModel(pack(tied, tmp_path / "packed", Grid())), tmp_path / "model.gguf")
    assert "output.weight" not in read(tmp_path / "model.gguf")[0]


def test_stage_tells_types_and_what_was_widened(tied: Path, tmp_path: Path):
    mixed = {"model.embed_tokens": Grid(8, 32), "model.layers.0.mlp.up_proj": Grid(2, 32)}
    packed = pack(tied, tmp_path / "packed", Grid(4, 128), mixed)
    (tmp_path / "out").mkdir()
    told = ExportGguf()(tmp_path / "out", model=packed)
    assert told["types"] == {"Q8_0": 1, "Q4_0": 14, "F32": 5}
    assert told["widened"] == ["model.layers.0.mlp.up_proj"]
    assert told["file_bytes"] == (tmp_path / "out" / "model.gguf").stat().st_size
    assert set(told["largest_differences"].values()) == {0.0}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert not list((tmp_path / "out").glob("*.part"))


def test_a_file_of_mostly_16_bits_is_refused(tied: Path, tmp_path: Path):
    packed = pack(tied, tmp_path / "packed", Grid(8, 32, symmetric=False))
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckFailed, match=r"stored in 8 bits \(.* in 16\); .*--allot\.symmetric, or leave gguf out"):
        ExportGguf()(tmp_path / "out", model=packed)
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_wrong_file_is_refused(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packed = pack(tied, tmp_path / "packed", Grid(4, 128))
    right = export.nibbles
    monkeypatch.setattr(export, "nibbles", lambda codes: right(codes)[:, :, ::-1])
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError, match="differs by"):
        ExportGguf()(tmp_path / "out", model=packed)


def test_rope_order_turns_halves_into_neighbours():
    """Rotating the reordered rows pairwise gives what rotating the halves gives, reordered."""
    config: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 16}
    config["model_type"] = "mistral"
    order = export.rope_order("model.layers.0.self_attn.q_proj", config)
    assert order is not None
    x, angles = torch.randn(16), torch.rand(4)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.view(2, 2, 4).unbind(1)
    halves = torch.stack([first * cos - second * sin, second * cos + first * sin], 1).flatten()
    even, odd = x[order].view(2, 4, 2).unbind(2)
    neighbours = torch.stack([even * cos - odd * sin, odd * cos + even * sin], 2).flatten()
    torch.testing.assert_close(neighbours, halves[order])
    assert export.rope_order("model.layers.0.self_attn.v_proj", config) is None


def test_metadata(tied: Path, tmp_path: Path):
    export.write(PackedModel(pack(tied, tmp_path / "packed", Grid())), tmp_path / "model.gguf")
    file = tmp_path / "model.gguf"
    assert field(file, "general.architecture") == "llama"
    assert field(file, "llama.attention.head_count_kv") == 2
    assert field(file, "llama.rope.dimension_count") == 32
    assert field(file, "tokenizer.ggml.pre") == "llama-bpe"
    assert field(file, "tokenizer.ggml.add_bos_token") is True
    assert len(field(file, "tokenizer.ggml.tokens")) == 320
    assert field(file, "tokenizer.ggml.tokens")[319] == "[PAD319]"


def test_sliding_window_limits_the_context(tmp_path: Path):
    source = tiny(tmp_path / "mistral")
    config = json.loads((source / "config.json").read_text()) | {"sliding_window": 64}
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    (source / "config.json").write_text(json.dumps(config))
    export.write(PackedModel(pack(source, tmp_path / "packed", Grid())), tmp_path / "model.gguf")
    assert field(tmp_path / "model.gguf", "llama.context_length") == 64


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("layer_types", "window", "context"),
    [
        ([SLIDING, FULL], 40, 128),  # as llama.cpp has it
        ([FULL, FULL], 128, 128),  # a window of all tokens is none
        ([FULL, SLIDING], 40, 40),
        ([SLIDING, SLIDING], 40, 40),
    ],
)
def test_windows_in_another_order_than_llama_cpps_limit_the_context(
    tmp_path: Path, layer_types: list[str], window: int, context: int
) -> None:
    changes = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 40, "layer_types": layer_types}
    source = tiny(tmp_path / "gemma2", "gemma2", final_logit_softcapping=None, **changes)
    export.write(PackedModel(pack(source, tmp_path / "packed", Grid())), tmp_path / "model.gguf")
    file = tmp_path / "model.gguf"
    assert field(file, "gemma2.attention.sliding_window") == window
    assert field(file, "gemma2.context_length") == context
    assert field(file, "gemma2.final_logit_softcapping") == export.NO_CAP  # of 0 llama.cpp's logits are nan


GEMMA2: dict[str, Any] = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}
QWEN2: dict[str, Any] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": ["Gemma3ForCausalLM"]}, "Gemma3ForCausalLM"),
        ({"hidden_act": "gelu"}, "gelu"),
        (GEMMA2 | {"query_pre_attn_scalar": 24}, "scalar 24"),
        (GEMMA2 | {"query_pre_attn_scalar": 16, "num_hidden_layers": 46, "head_dim": 16}, "by the root of 32"),
        (GEMMA2 | {"query_pre_attn_scalar": 32, "tie_word_embeddings": False}, "tie_word_embeddings false"),
        (GEMMA2 | {"query_pre_attn_scalar": 32, "attention_bias": True}, "attention_bias true"),
        (QWEN2 | {"head_dim": 64}, "head_dim 64, where llama.cpp's qwen2 takes hidden_size / heads, 32"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM, and transformers loads LlamaForCausalLM"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ],
)
def test_other_models_are_refused(tied: Path, tmp_path: Path, changes: dict[str, Any], match: str):
    packed = pack(tied, tmp_path / "packed", Grid())
    config = json.loads((packed / "config.json").read_text())
    config.pop("rope_parameters", None)
    (packed / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=match):
        export.write(PackedModel(packed), tmp_path / "model.gguf")


def test_unknown_split_is_refused(tied: Path, tmp_path: Path):
    packed = pack(tied, tmp_path / "packed", Grid())
    tokenizer = json.loads((packed / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+"
    (packed / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="other tokens"):
        export.write(PackedModel(packed), tmp_path / "model.gguf")


def test_sentencepiece_scores_are_the_merges_order(stories: Path, tmp_path: Path):
    export.write(PackedModel(pack(stories, tmp_path / "packed", Grid(8, 32))), tmp_path / "model.gguf")
    tokens, scores = (field(tmp_path / "model.gguf", f"tokenizer.ggml.{key}") for key in ("tokens", "scores"))
    first, second = json.loads((stories / "tokenizer.json").read_text())["model"]["merges"][:2]
    assert scores[tokens.index("".join(first))] == 0
    assert scores[tokens.index("".join(second))] == -1


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"hfcompress\[gguf\]"):
        export.require_gguf()


needs_llama = pytest.mark.usefixtures("llama_cpp")


def exported(packed: Path, out: Path) -> Path:
    out.mkdir()
    ExportGguf()(out, model=packed)
    return out


def in_floats(packed: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose values are float32, which the stage would refuse as one of no few bits."""
    monkeypatch.setattr(export, "block_type", lambda grid, columns: "F32")
    out.mkdir()
    export.write(PackedModel(packed), out / "model.gguf")
    return out


def logits_of_both(packed: Path, exported: Path, ids: list[int], window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of llama.cpp and of the simulation after each token, [tokens, vocab]."""
    from hfcompress.formats.runtimes.llama_decoder import LlamaDecoder

    decoder, model = LlamaDecoder(exported, threads=1), load_simulated(packed)
    ours, theirs = [], []
    for start in range(0, len(ids) - window + 1, window):
        part = ids[start : start + window]
        decoder.rewind(0)
        theirs.append(torch.from_numpy(decoder.append(part, all_logits=True)))
        with torch.inference_mode():
            ours.append(model(torch.tensor([part])).logits[0])
    decoder.close()
    return torch.cat(theirs).log_softmax(1), torch.cat(ours).log_softmax(1)


def agreement(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.argmax(1) == wanted.argmax(1)).float().mean())


def divergence(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Mean KL(wanted || found), nats."""
    return float((wanted.exp() * (wanted - found)).sum(1).mean())


@pytest.fixture(scope="module")
def story_ids(stories: Path) -> list[int]:
    from tokenizers import Tokenizer

    text = (stories / "stories.txt").read_text(encoding="utf-8")
    return list(Tokenizer.from_file(str(stories / "tokenizer.json")).encode(text).ids)


@needs_llama
@pytest.mark.parametrize("bits", [8, 4])
def test_llama_cpp_computes_the_same_model(
    stories: Path, story_ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
):
    """With the values as float32 nothing is rounded but the cache (float16): names, rotation and norms are right."""
    packed = pack(stories, tmp_path / "packed", Grid(bits, 32))
    found, wanted = logits_of_both(packed, in_floats(packed, tmp_path / "out", monkeypatch), story_ids[:2048], 256)
    assert agreement(found, wanted) >= 0.995
    assert divergence(found, wanted) < 1e-5


@needs_llama
@pytest.mark.parametrize("bits", [8, 4])
def test_llama_cpp_agrees_in_integers(stories: Path, story_ids: list[int], tmp_path: Path, bits: int):
    """llama.cpp rounds what a matrix reads to 8 bits: where it says another token, the two were nearly as likely."""
    packed = pack(stories, tmp_path / "packed", Grid(bits, 32))
    found, wanted = logits_of_both(packed, exported(packed, tmp_path / "out"), story_ids[:4096], 256)
    targets = torch.tensor(story_ids[1:4096])
    losses = [float(-said[:-1].gather(1, targets[:, None]).mean()) for said in (found, wanted)]
    assert abs(losses[0] - losses[1]) < 5e-3  # half a percent of perplexity
    assert divergence(found, wanted) < 1.5e-3
    assert agreement(found, wanted) >= 0.97
    top = wanted.topk(2, dim=1).values
    margins = (top[:, 0] - top[:, 1])[found.argmax(1) != wanted.argmax(1)]
    assert margins.max() < 0.5


@needs_llama
def test_llama_cpp_sees_a_wrong_order(
    stories: Path, story_ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export, "rope_order", lambda source, config: None)
    packed = pack(stories, tmp_path / "packed", Grid(8, 32))
    found, wanted = logits_of_both(packed, exported(packed, tmp_path / "out"), story_ids[:512], 256)
    assert agreement(found, wanted) < 0.9
    assert divergence(found, wanted) > 0.05


@needs_llama
@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 64, "num_key_value_heads": 4, "rope_theta": 500.0},
        {
            "model_type": "gemma2", "head_dim": 64, "query_pre_attn_scalar": 64, "layer_types": [FULL, FULL],
            "attn_logit_softcapping": None, "final_logit_softcapping": None,
        },
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ],
)  # fmt: skip
def test_llama_cpp_computes_other_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]):
    packed = pack(tiny(tmp_path / "model", **changes), tmp_path / "packed", Grid(8, 32))
    ids = [int(i) for i in torch.randint(2, 300, (96,), generator=torch.Generator().manual_seed(0))]
    found, wanted = logits_of_both(packed, in_floats(packed, tmp_path / "out", monkeypatch), ids, 96)
    assert agreement(found, wanted) >= 0.97
    assert divergence(found, wanted) < (1e-3 if "model_type" in changes else 1e-4)  # GELU in float16


@needs_llama
def test_decoder_rewinds_and_grows(stories: Path, story_ids: list[int], tmp_path: Path, monkeypatch: Any):
    from hfcompress.formats.runtimes import llama_decoder

    monkeypatch.setattr(llama_decoder, "FIRST_ROOM", 32)
    monkeypatch.setattr(llama_decoder, "BATCH", 24)
    packed = pack(stories, tmp_path / "packed", Grid(8, 32))
    decoder = llama_decoder.LlamaDecoder(exported(packed, tmp_path / "out"), threads=1)
    assert (decoder.context, decoder.length, decoder.vocabulary) == (512, 0, 512)
    whole = decoder.append(story_ids[:300], all_logits=True)
    assert whole.shape == (300, 512)
    assert whole.dtype == np.float32
    decoder.rewind(10)
    assert decoder.length == 10
    again = decoder.append(story_ids[10:40])
    assert again.shape == (1, 512)
    np.testing.assert_allclose(again[0], whole[39], atol=1.0)  # other batches, other rounding
    assert again[0].argmax() == whole[39].argmax()
    with pytest.raises(UserError, match=r"context of 512$"):
        decoder.append([3] * 500)
    with pytest.raises(ValueError, match="rewind to 41"):
        decoder.rewind(41)


@needs_llama
def test_damaged_file_is_refused(tmp_path: Path):
    from hfcompress.formats.runtimes.llama_decoder import LlamaDecoder

    with pytest.raises(UserError, match=r"0 \.gguf files"):
        LlamaDecoder(tmp_path, threads=1)
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    with pytest.raises(UserError, match="cannot load"):
        LlamaDecoder(tmp_path, threads=1)


def llama_tokens(file: Path, text: str) -> list[int]:
    """What llama.cpp's own tokenizer makes of a text, begin token included."""
    import ctypes

    from hfcompress.formats.runtimes.llama_decoder import import_llama

    llama = import_llama()
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(str(file).encode(), params)
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 8))()
    count = llama.llama_tokenize(llama.llama_model_get_vocab(model), data, len(data), ids, len(ids), True, False)
    llama.llama_model_free(model)
    return list(ids[:count])


@needs_llama
def test_llama_cpp_reads_the_same_tokens(stories: Path, tied: Path, tmp_path: Path):
    from tokenizers import Tokenizer

    texts = {
        stories: (stories / "stories.txt").read_text(encoding="utf-8")[:6000],
        tied: "The cat's 12345 mats,\n\nété!",
    }
    for number, (source, text) in enumerate(texts.items()):
        out = exported(pack(source, tmp_path / f"packed{number}", Grid(8, 32)), tmp_path / f"out{number}")
        wanted = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text).ids
        assert llama_tokens(out / "model.gguf", text) == wanted


def test_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    from hfcompress.formats.runtimes.llama_decoder import import_llama

    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match=r"hfcompress\[llama-cpp\]"):
        import_llama()
