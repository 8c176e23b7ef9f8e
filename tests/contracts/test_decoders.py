"""What every decoder of the table keeps: fields as its class reads them, planned sizes, one answer everywhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hfcompress import architectures
from hfcompress.architectures import DECODERS
from hfcompress.architectures.checkpoint import Checkpoint
from hfcompress.architectures.decoder import READ_BY_ALL, READ_BY_SOME, Decoder
from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.architectures.decoder_stack import DecoderStack
from hfcompress.architectures.decoders import (
    head_size,
    kind_of,
    kv_heads,
    norm_epsilon,
    require_graph,
    require_supported,
    rope_base,
    rotary_share,
)
from hfcompress.architectures.meta import meta_model
from hfcompress.architectures.models import load_tokenizer
from hfcompress.architectures.quantized_model import PackedModel, load_simulated
from hfcompress.cli import dispatch
from hfcompress.compress.quantize.calibrate import CALIBRATION, Calibrate
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.errors import CheckFailed, UserError
from hfcompress.formats.compressed_tensors import ExportTransformers
from hfcompress.formats.genai import ExportGenai
from hfcompress.formats.gguf import ExportGguf
from hfcompress.formats.runtimes.onnx_decoder import OnnxDecoder
from hfcompress.formats.runtimes.torch_decoder import load
from hfcompress.ops.grid import Grid
from hfcompress.tasks.text_generation import CausalLM
from tests.language_models import pack_model, write_decoder, write_task

FULL, SLIDING = "full_attention", "sliding_attention"
LAYERS = 3
# Another value than any class's own for each field that a class may read: a tiny model has all of them at once.
PROBES: dict[str, Any] = {
    "head_dim": 32, "num_key_value_heads": 2, "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-3,
    "rope_theta": 50_000.0, "tie_word_embeddings": True,
    "hidden_activation": "silu", "attention_bias": True, "mlp_bias": True, "sliding_window": 40,
    "use_sliding_window": True, "max_window_layers": 1, "layer_types": [SLIDING, FULL, FULL],
    "sliding_window_pattern": 2, "partial_rotary_factor": 0.5, "no_rope_layers": [0, 1, 1],
    "no_rope_layer_interval": 2, "query_pre_attn_scalar": 24, "attention_multiplier": 0.25,
    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0, "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7, "logits_scaling": 2.0,
}  # fmt: skip
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
         "vocab_size": 320, "max_position_embeddings": 128}  # fmt: skip
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 320, 60)]  # longer than the windows


def probed(decoder: Decoder) -> dict[str, Any]:
    """Every field that the class reads, with its probe; not what its config class has no name for."""
    made = CONFIG_MAPPING[decoder.model_type]()
    read = {**READ_BY_ALL, **decoder.fields}
    return {name: PROBES[name] for name in read if name == "head_dim" or hasattr(made, name)}


def write_row(folder: Path, decoder: Decoder) -> Path:
    """A tiny model in which every field that its class reads has another value than usual."""
    local = {"rope_local_base_freq": 100.0} if decoder.local_rotary else {}
    return write_decoder(folder, decoder.model_type, **SIZES | probed(decoder) | local)


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return DECODERS[request.param]


@pytest.fixture(scope="module")
def model(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_row(tmp_path_factory.mktemp(decoder.model_type) / "model", decoder)


@pytest.fixture(scope="module")
def packed(model: Path) -> Path:
    return pack_model(model, model.parent / "packed", Grid(4, 32, symmetric=False))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return replace(write_task(tmp_path_factory.mktemp("data") / "texts"), calibration_windows=12)


@pytest.fixture(scope="module")
def simulated(packed: Path) -> Any:
    return load_simulated(packed)


def made(stage: Any, out: Path, **inputs: Any) -> Path:
    (out / "work").mkdir(parents=True)
    stage(out, **inputs)
    return out


def config_of(model: Path) -> dict[str, Any]:
    return dict(Checkpoint(model).config)


def logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return found


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def base_of(config: Any) -> float:
    """What a transformers config turns positions by; of layers without a window where it has two."""
    if hasattr(config, "rope_parameters"):  # transformers 5
        return float(config.rope_parameters.get(FULL, config.rope_parameters)["rope_theta"])
    return float(config.rope_theta)


def test_a_field_that_config_json_lacks_is_what_the_class_takes(decoder: Decoder) -> None:
    config = {"model_type": decoder.model_type, **SIZES, "hidden_size": 4096, "num_attention_heads": 32}
    found: Any = CONFIG_MAPPING[decoder.model_type].from_dict(config)
    assert head_size(config) == (getattr(found, "head_dim", None) or 128)
    assert kv_heads(config) == found.num_key_value_heads
    assert norm_epsilon(config) == found.rms_norm_eps
    assert rope_base(config) == base_of(found)
    assert decoder.value(config, "tie_word_embeddings") == found.tie_word_embeddings
    assert decoder.activation(config) == getattr(found, "hidden_activation", None) or found.hidden_act
    derived = {"sliding_window", "layer_types", "no_rope_layers"}
    for name in set(decoder.fields) - set(READ_BY_ALL) - derived:
        assert decoder.value(config, name) == getattr(found, name, decoder.fields[name]), name


def windows_of(decoder: Decoder, fields: dict[str, Any]) -> tuple[int | None, ...]:
    """The windows that transformers makes of a config."""
    found: Any = CONFIG_MAPPING[decoder.model_type].from_dict({"num_hidden_layers": 7} | fields)
    window = getattr(found, "sliding_window", None)
    kinds = getattr(found, "layer_types", None) or [SLIDING if window else FULL] * 7
    return tuple(window if kind == SLIDING else None for kind in kinds)


def test_windows_are_those_that_transformers_makes_of_a_config(decoder: Decoder) -> None:
    asked = [{}, {"sliding_window": 40}, {"sliding_window": None}, {"sliding_window": 40, "use_sliding_window": False}]
    asked += [{"sliding_window": 40, "use_sliding_window": True} | more for more in ({}, {"max_window_layers": 3})]
    asked += [{"sliding_window": 40, "sliding_window_pattern": 3}] if decoder.reads("sliding_window_pattern") else []
    for fields in asked:
        found = decoder.windows({"num_hidden_layers": 7} | fields)
        assert found == (windows_of(decoder, fields) if decoder.reads("sliding_window") else (None,) * 7), fields


def read_of(config: dict[str, Any]) -> tuple[Any, ...]:
    """All that is read of a config beside its sizes."""
    return kind_of(config), rotary_share(config), LanguageShape.from_config(config).parameters


def test_each_field_that_the_class_reads_says_something(decoder: Decoder, model: Path) -> None:
    """A field that is given and changes nothing would be one that nothing here computes."""
    config = config_of(model)
    for name in set(decoder.fields) & set(READ_BY_SOME) - {"hidden_activation"}:
        left_out = {"layer_types", "no_rope_layers"} - {name}  # which say what other fields would
        fields = {key: value for key, value in config.items() if key not in left_out}
        other = not PROBES[name] if isinstance(PROBES[name], bool) else READ_BY_SOME[name]
        assert read_of(fields | {name: PROBES[name]}) != read_of(fields | {name: other}), name


def test_a_field_that_the_class_does_not_read_says_nothing(decoder: Decoder, model: Path) -> None:
    config = config_of(model)
    unread = [name for name in READ_BY_SOME if not decoder.reads(name) and name != "partial_rotary_factor"]
    assert read_of(config | {name: PROBES[name] for name in unread}) == read_of(config)


def test_the_planned_parameters_are_the_real_ones(decoder: Decoder, model: Path) -> None:
    from transformers import AutoModelForCausalLM

    others = {"tie_word_embeddings": False, "head_dim": 48, "attention_bias": False, "mlp_bias": False}
    for changes in ({}, others):
        config: Any = CONFIG_MAPPING[decoder.model_type].from_dict(config_of(model) | changes)
        network = meta_model(AutoModelForCausalLM, config)
        planned = LanguageShape.from_config(config.to_dict() | {"model_type": decoder.model_type})
        assert planned.parameters == sum(p.numel() for p in network.parameters()), changes
    shapes = {name: (rows, columns) for name, rows, columns in LanguageShape.read(model).linears()}
    checkpoint = Checkpoint(model)
    assert shapes == {name: tuple(checkpoint.shape(f"{name}.weight")) for name in shapes}
    left = {name for name in checkpoint.places if name.removesuffix(".weight") not in shapes}
    assert all("norm" in name or name.endswith(".bias") for name in left)


def layered(model: Path) -> np.ndarray:
    stack = DecoderStack(Checkpoint(model))
    with torch.inference_mode():
        hidden = stack.embed(np.array([IDS]))
        for index in range(stack.layers):
            hidden = stack.run(stack.layer(index), hidden)
        found: np.ndarray = stack.capped(stack.norm()(hidden) @ stack.head().T)[0].numpy()
    return found


def test_layer_by_layer_is_the_whole_model_which_loads_natively(decoder: Decoder, model: Path) -> None:
    from transformers import AutoModelForCausalLM

    wanted = load(model)
    assert type(wanted) is type(AutoModelForCausalLM.from_pretrained(model))
    assert config_of(model)["architectures"] == [decoder.class_name]
    assert off(layered(model), logits(wanted, IDS)) < 1e-5


def test_the_simulation_has_the_packed_weights_in_the_stock_class(model: Path, packed: Path, simulated: Any) -> None:
    wanted, stored = load(model), PackedModel(packed)
    assert set(stored.grids) >= {f"model.layers.1.{name}" for name in kind_of(stored.config).linears}
    state = {f"{name}.weight": stored.quantized(name).dequantize() for name in stored.grids}
    wanted.load_state_dict(state, strict=False)
    assert off(logits(simulated, IDS), logits(wanted, IDS)) < 1e-5


@pytest.mark.parametrize("kv_cache", ["float32", "int8"])
def test_onnx_computes_what_the_integers_stand_for_and_genai_generates_it(
    tmp_path: Path, packed: Path, simulated: Any, task: CausalLM, kv_cache: Any
) -> None:
    out = made(ExportGenai(kv_cache, accuracy_level=1, context=128), tmp_path / "onnx", model=packed, task=task)
    # Windows that set no scale of an int8 cache.
    ids = task.calibration(load_tokenizer(packed))[9:11].flatten().tolist()
    decoder, wanted = OnnxDecoder(out, 1), logits(simulated, ids)
    whole = decoder.append(ids, all_logits=True)
    decoder.rewind(50)
    single = np.concatenate([decoder.append([token]) for token in ids[50:]])
    for found, like in ((whole, wanted), (single, wanted[50:])):
        if kv_cache == "float32":
            assert off(found, like) < 2e-3
        else:
            assert np.sqrt(np.mean((found - like) ** 2)) < 0.015 * np.abs(wanted).max()
    if kv_cache == "int8":
        decoder.rewind(0)
        require_same_tokens(out, decoder)


def require_same_tokens(out: Path, decoder: OnnxDecoder) -> None:
    """onnxruntime-genai generates what plain onnxruntime does."""
    import onnxruntime_genai as genai

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


def test_a_wrong_row_is_seen(tmp_path: Path, task: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms that multiply by another number: the stage that writes the graph finds that it says something else."""
    right = DECODERS["llama"]
    packed = pack_model(write_row(tmp_path / "model", right), tmp_path / "packed", Grid(4, 32))
    monkeypatch.setitem(architectures.DECODERS, "llama", replace(right, norm_offset=0.5))
    with pytest.raises(CheckFailed, match="other logits"):
        made(ExportGenai("float32", context=128), tmp_path / "onnx", model=packed, task=task)


def test_stock_classes_load_the_transformers_folder(
    decoder: Decoder, tmp_path: Path, packed: Path, simulated: Any, task: CausalLM
) -> None:
    out = made(ExportTransformers(), tmp_path / "transformers", model=packed, task=task)
    assert off(logits(load(out), IDS), logits(simulated, IDS)) < 2e-3
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == ("float32" if decoder.overflows_float16 else "float16")


def test_awq_stays_near_the_original(tmp_path: Path, model: Path, task: CausalLM) -> None:
    """At 8 bits nothing may be lost: a scale folded into the wrong place would be seen."""
    out = made(WeightOnly("awq", 8, 32), tmp_path / "packed", model=model, task=task)
    wanted, found = (torch.from_numpy(logits(m, IDS)).log_softmax(-1) for m in (load(model), load_simulated(out)))
    assert float((wanted.exp() * (wanted - found)).sum(-1).mean()) < 5e-3


def test_calibration_is_the_gradients_square_of_the_whole_model(tmp_path: Path, model: Path, task: CausalLM) -> None:
    from safetensors.torch import load_file

    from hfcompress.ops.sensitivity import sampled_loss

    found = load_file(made(Calibrate(windows=2), tmp_path / "calibration", model=model, task=task) / CALIBRATION)
    whole, kind = load(model).requires_grad_(True), kind_of(config_of(model))
    ids = torch.from_numpy(task.calibration(load_tokenizer(model))[:2])
    seen: dict[str, torch.Tensor] = {}

    def see(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            output.retain_grad()
            seen[name] = output

        return hook

    name = f"model.layers.0.{kind.groups[2][0]}"
    whole.get_submodule(name).register_forward_hook(see(name))
    whole.model.layers[0].register_forward_pre_hook(lambda module, inputs: see("hidden")(module, None, inputs[0]))
    sampled_loss(whole(ids).logits.flatten(0, 1), 0).backward()
    wanted = seen[name].grad.flatten(0, 1).square().mean(0)  # type: ignore[union-attr]
    assert torch.allclose(found[f"{name}.rows"], wanted, rtol=1e-2, atol=1e-9)
    # What goes into the first layer is the embedding's rows, scaled: the gradient of a row is so much larger.
    wanted = seen["hidden"].grad.flatten(0, 1).square().mean(0) * kind.embedding_scale**2  # type: ignore[union-attr]
    assert torch.allclose(found["model.embed_tokens.columns"], wanted, rtol=1e-2, atol=1e-9)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hidden_act": "relu", "hidden_activation": "relu"}, r"activation is relu; known are silu"),
    ({"rope_scaling": {"rope_type": "never"}}, r"rope_type is never; known are default, linear"),
    (
        {"architectures": ["GPT2LMHeadModel"]},
        r"is a GPT2LMHeadModel; layer by layer .* knows LlamaForCausalLM, Mistral",
    ),
    ({"use_bidirectional_attention": True}, r"use_bidirectional_attention: an encoder"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[next(iter(changes)) for changes, _ in REFUSED])
def test_what_is_not_computed_is_refused_in_one_line(
    decoder: Decoder, model: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        require_supported("the base model", config_of(model) | changes)
    assert "\n" not in str(refused.value)


def test_a_part_of_a_head_is_rotated_where_the_class_says_so(decoder: Decoder, model: Path) -> None:
    config = config_of(model) | {"partial_rotary_factor": 0.5}
    if decoder.reads("partial_rotary_factor"):
        require_graph(config, 32)
        with pytest.raises(UserError, match="the model turns 8 numbers of a head, and onnxruntime's attention takes"):
            require_graph(config | {"head_dim": 16}, 32)
    else:
        with pytest.raises(UserError, match=f"^partial_rotary_factor 0.5: transformers' {decoder.model_type} turns"):
            kind_of(config)


def graph_row(folder: Path, decoder: Decoder) -> Path:
    """A tiny model with those probes that are not refused for llama.cpp; heads are as large as all its graphs take."""
    from hfcompress.formats.gguf_file import require_supported

    sizes = SIZES | {"hidden_size": 128, "num_hidden_layers": 4, "head_dim": 32, "rope_theta": 50_000.0}
    if decoder.reads("query_pre_attn_scalar"):
        sizes["query_pre_attn_scalar"] = 32
    for name, value in probed(decoder).items():
        more = {name: [*value, FULL] if name == "layer_types" else value} if name not in sizes else {}
        try:
            require_supported("the model", {"model_type": decoder.model_type} | sizes | more)
        except UserError:
            continue
        sizes |= more
    return write_decoder(folder, decoder.model_type, **sizes)


def test_a_gguf_file_says_the_model_or_is_refused_by_the_plan(decoder: Decoder, model: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the extra hfcompress[gguf] is not installed")
    if decoder.llama_cpp is None:
        with pytest.raises(UserError, match=f"^the model is a {decoder.class_name}; GGUF export knows Llama[^\n]*$"):
            ExportGguf().predict(model=LanguageShape.read(model))
        return
    written = graph_row(tmp_path / "model", decoder)
    shape, kind = LanguageShape.read(written), kind_of(config_of(written))
    ExportGguf().predict(model=shape)
    packed = pack_model(written, tmp_path / "packed", Grid(8, 32))
    out = made(ExportGguf(), tmp_path / "gguf", model=packed)
    reader = gguf.GGUFReader(out / "model.gguf")
    name = decoder.llama_cpp.graph
    fields = {key.removeprefix(f"{name}."): field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == name
    assert (fields["attention.head_count_kv"], fields["attention.key_length"]) == (2, 32)
    assert (fields["rope.freq_base"], fields["block_count"]) == (50_000.0, 4)
    assert fields["attention.layer_norm_rms_epsilon"] == pytest.approx(1e-3)
    assert fields["rope.dimension_count"] == 32 * rotary_share(config_of(written))
    assert sum(int(tensor.n_elements) for tensor in reader.tensors) == shape.parameters  # none is left out
    norm = next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    wanted = PackedModel(packed).tensor("model.norm.weight").float().numpy() + kind.norm_offset
    assert np.allclose(norm.data, wanted)
    if decoder.llama_cpp.multipliers:
        scales = [fields[f"{key}_scale"] for key in ("embedding", "residual", "logit")]
        assert scales == pytest.approx([3.0, 0.7, 2.0])
        assert fields["attention.scale"] == pytest.approx(0.25)


@pytest.mark.usefixtures("llama_cpp")
def test_llama_cpp_computes_the_model(decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if decoder.llama_cpp is None:
        pytest.skip("refused, as the test before says")
    from hfcompress.formats import gguf_file
    from hfcompress.formats.runtimes.llama_decoder import LlamaDecoder

    monkeypatch.setattr(gguf_file, "block_type", lambda grid, columns: "F32")
    packed = pack_model(graph_row(tmp_path / "model", decoder), tmp_path / "packed", Grid(8, 32))
    (tmp_path / "gguf").mkdir()
    gguf_file.write(PackedModel(packed), tmp_path / "gguf" / "model.gguf")
    runtime = LlamaDecoder(tmp_path / "gguf", threads=1)
    ids = IDS[: runtime.context]
    found, wanted = (
        torch.from_numpy(each).log_softmax(-1)
        for each in (runtime.append(ids, all_logits=True), logits(load_simulated(packed), ids))
    )
    runtime.close()
    assert float((found.argmax(1) == wanted.argmax(1)).float().mean()) >= 0.97
    # llama.cpp looks GELU up in a table of float16; with a wrong order of rotation the divergence is above 0.05
    usual = 1e-4 if decoder.usual_activation == "silu" else 1e-3
    assert float((wanted.exp() * (wanted - found)).sum(1).mean()) < usual


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi3", "gemma2", "gemma3_text"])
def test_the_recipe_takes_each_to_its_verdicts(tmp_path: Path, task: CausalLM, name: str) -> None:
    model = write_row(tmp_path / "base", DECODERS[name])
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
