"""Folders that run code, fetch, follow names or hold absurd numbers are refused in one line, before a library reads.

Each evil folder's Python writes a marker when it runs, and nothing may ask on standard input.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoConfig, BlipConfig, DogeConfig, DPRConfig, MptConfig, SiglipConfig

from hfcompress.architectures.models import load_classifier, load_tokenizer
from hfcompress.architectures.pretrained import stock_config
from hfcompress.errors import UserError
from hfcompress.folders.foreign_files import DEEPEST, read_object
from hfcompress.folders.guard import check_foreign, check_type, read_config
from tests.fork_server import ForkServer

EVIL = """import pathlib
pathlib.Path({marker!r}).write_text("it ran")
from transformers import PretrainedConfig
class EvilConfig(PretrainedConfig):
    model_type = "evil"
"""
CODE = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "auto_map": ({"auto_map": CODE}, "asks for code of its own (auto_map)"),
    "auto_map of an unknown type": ({"auto_map": CODE, "model_type": "evil"}, "asks for code of its own (auto_map)"),
    "nested auto_map": ({"text_config": {"auto_map": CODE}}, "asks for code of its own (text_config.auto_map)"),
    "auto_map in a list": ({"parts": [{"deeper": {"auto_map": CODE}}]}, "(parts.deeper.auto_map)"),
    "trust_remote_code": ({"trust_remote_code": True}, "(trust_remote_code)"),
    "lightglue": (
        {"model_type": "lightglue", "keypoint_detector_config": {"_name_or_path": "evil", "model_type": "superpoint"}},
        "model_type lightglue loads another model by its name",
    ),
    "xcodec": ({"model_type": "xcodec", "semantic_model_config": {"_name_or_path": "evil"}}, "xcodec loads"),
    "a nested follower": ({"vision_config": {"model_type": "timm_wrapper"}}, "vision_config.model_type timm_wrapper"),
    "a kernel": ({"_attn_implementation_internal": "evil/kernel"}, "_internal 'evil/kernel' would be fetched"),
    "a kernel by a revision": ({"attn_implementation": "evil/kernel@main:run"}, "would be fetched and run"),
    "a nested kernel": ({"text_config": {"_attn_implementation": "evil/kernel"}}, "text_config._attn_implementation"),
    "a kernel by part": ({"_attn_implementation": {"text_config": "evil/kernel"}}, "would be fetched and run"),
    "a kernel of experts": ({"_experts_implementation": "evil/kernel"}, "would be fetched and run"),
    "an implementation in a list": ({"_attn_implementation": ["evil/kernel"]}, "would be fetched and run"),
    "kernels": ({"use_kernels": True}, "(use_kernels)"),
    "custom pipelines": ({"custom_pipelines": {"x": {"impl": "evil.Evil"}}}, "(custom_pipelines)"),
    "a backbone": ({"use_timm_backbone": True, "backbone": "evil"}, "use_timm_backbone names another model"),
    "another config file": ({"configuration_files": ["config.9.0.0.json"]}, "configuration_files names another model"),
    "no type": ({"model_type": None}, "has no model_type"),
    "types in a list": ({"model_type": ["bert"]}, "model_type is ['bert']; it must be the name of an architecture"),
    "an unknown type": ({"model_type": "never_heard"}, "model_type 'never_heard' is unknown to the installed"),
    "a newer type": ({"model_type": "bert9", "transformers_version": "99.1.0"}, "needs a newer transformers than the"),
    "a nested unknown type": ({"text_config": {"model_type": "never_heard"}}, "text_config.model_type 'never_heard'"),
    "a negative size": ({"hidden_size": -64}, "hidden_size is -64; it must be from 1"),
    "an absurd size": ({"vocab_size": 10**18}, "vocab_size is 1e+18; it must be from 1"),
    "absurd layers": ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000; it must be from 0 to 1,024"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be at least 1"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "a size in words": ({"intermediate_size": "many"}, "intermediate_size is 'many'; it must be a whole number"),
    "a fraction": ({"hidden_size": 64.5}, "hidden_size is '64.5'; it must be a whole number"),
    "a truth": ({"max_position_embeddings": True}, "max_position_embeddings is 'True'"),
    "a missing size": ({"hidden_size": None}, "has no hidden_size: a bert has one"),
    "uneven heads": ({"num_attention_heads": 5}, "hidden_size 64 is no multiple of num_attention_heads 5"),
    "a nested size": ({"text_config": {"hidden_size": 10**12}}, "text_config.hidden_size is 1e+12"),
    "an epsilon": ({"layer_norm_eps": 1e9}, "layer_norm_eps is 1e+09"),
    "a rotary factor": ({"rope_scaling": {"type": "linear", "factor": -1.0}}, "rope_scaling.factor is -1"),
    "no rotary factor": ({"rope_scaling": {"type": "yarn"}}, "rope_scaling has no factor, which rope_type yarn needs"),
    "a rotary list": ({"rope_scaling": [2.0]}, "rope_scaling is '[2.0]'; it must be an object"),
    "what its class refuses": ({"id2label": {"first": "a"}}, "is no bert that transformers reads"),
    "infinity": ({"layer_norm_eps": float("inf")}, "layer_norm_eps is inf; give a finite number"),
    "not a number": ({"layer_norm_eps": float("nan")}, "it holds NaN"),
}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.fixture
def evil(tmp_path: Path, tiny_model: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A whole classifier beside Python that writes the marker; whoever asks a question fails."""

    def asked(*_: object) -> str:
        raise AssertionError("standard input was asked")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.chdir(tmp_path)  # names in configs are looked for here, too
    shutil.copytree(tiny_model, tmp_path / "evil")
    (tmp_path / "evil" / "evil.py").write_text(EVIL.format(marker=str(marker)), encoding="utf-8")
    yield tmp_path / "evil"
    assert not marker.exists()


def change(file: Path, changes: dict[str, Any]) -> None:
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    left = {name: value for name, value in (found | changes).items() if value is not None}
    file.write_text(json.dumps(left), encoding="utf-8")


def test_a_plain_folder_is_read(evil: Path) -> None:
    assert load_classifier(evil).config.hidden_size == 64
    assert len(load_tokenizer(evil)) > 5


@pytest.mark.parametrize("name", CONFIGS)
def test_an_evil_config_is_refused(name: str, evil: Path) -> None:
    changes, words = CONFIGS[name]
    change(evil / "config.json", changes)
    with pytest.raises(UserError) as refusal:
        load_classifier(evil)
    assert words in str(refusal.value)
    assert str(refusal.value).startswith(str(evil / "config.json"))
    assert "\n" not in str(refusal.value)


TOKENIZERS: dict[str, tuple[str, Any, str]] = {
    "auto_map": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, "(auto_map)"),
    "an old auto_map": ("tokenizer_config.json", {"auto_map": ["evil.Evil", None]}, "(auto_map)"),
    "a file outside": ("tokenizer_config.json", {"tokenizer_file": "/etc/passwd"}, "a file outside of its folder"),
    "a vocabulary outside": ("tokenizer_config.json", {"vocab_file": "../secret"}, "a file outside of its folder"),
    "versioned files": ("tokenizer_config.json", {"fast_tokenizer_files": ["../a.json"]}, "a file outside of its"),
    "an object": ("tokenizer_config.json", {"tokenizer_object": "{}"}, "(tokenizer_object)"),
    "a processor's": ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.Evil"}}, "(auto_map)"),
    "an image processor's": ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.E"}}, "(auto_map)"),
    "a generation config's": ("generation_config.json", {"custom_generate": "evil/generate"}, "(custom_generate)"),
    "genai's": ("genai_config.json", {"model": {"auto_map": {"x": "evil.E"}}}, "(model.auto_map)"),
    "an adapter": ("adapter_config.json", {"base_model_name_or_path": "evil/base"}, "an adapter (PEFT)"),
    "an index outside": ("model.safetensors.index.json", {"weight_map": {"a": "../b"}}, "names a file outside of its"),
    "no index": ("model.safetensors.index.json", {"weight_map": ["a"]}, "is damaged (no weight_map"),
    "infinity": ("preprocessor_config.json", {"size": float("inf")}, "size is inf; give a finite number"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_evil_file_beside_the_config_is_refused(name: str, evil: Path) -> None:
    file, changes, words = TOKENIZERS[name]
    change(evil / file, changes)
    for read in (load_classifier, load_tokenizer):
        with pytest.raises(UserError) as refusal:
            read(evil)
        assert words in str(refusal.value)
        assert str(refusal.value).startswith(str(evil / file))


def test_a_tokenizer_cannot_pad_to_any_length(evil: Path) -> None:
    for padding in ({"strategy": {"Fixed": 10**12}}, {"strategy": "BatchLongest", "pad_to_multiple_of": 10**12}):
        change(evil / "tokenizer.json", {"padding": padding})
        with pytest.raises(UserError, match=r"tokenizer\.json: padding\..* is 1e\+12; it must be at most 1,048,576"):
            load_tokenizer(evil)


def test_code_that_generates_is_refused(evil: Path) -> None:
    (evil / "custom_generate").mkdir()
    with pytest.raises(UserError, match="code of its own, which is not run"):
        load_classifier(evil)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"a":' * 200 + "1" + "}" * 200, '{"hidden_size": 1' + "0" * 5000 + "}"]
)
def test_nesting_and_digits_have_a_bound(text: str, evil: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "model.safetensors.index.json"):
        kept = (evil / name).read_bytes() if (evil / name).is_file() else None
        (evil / name).write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"nested more than|is damaged"):
            check_foreign(evil)
        (evil / name).unlink()
        if kept is not None:
            (evil / name).write_bytes(kept)
    assert DEEPEST < 64


def test_a_config_of_many_megabytes_is_not_read(evil: Path) -> None:
    with (evil / "config.json").open("wb") as stream:
        stream.truncate(10**9)
    with pytest.raises(UserError, match="has 1,000 MB; a file of its kind has 8 MB at most"):
        read_object(evil / "config.json")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "vocab.txt", "config.json", "model.onnx"])
def test_a_pointer_is_no_file(name: str, evil: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 133466304\n"
    (evil / name).write_text(pointer, encoding="utf-8")
    with pytest.raises(UserError, match=r"is a Git LFS pointer, not the file itself; run `git lfs pull` in"):
        load_classifier(evil)


def test_what_transformers_itself_writes_is_no_offence(evil: Path, tmp_path: Path) -> None:
    """Plain implementations, false flags, names without effect, and what version 5 puts into its files."""
    for value in ("sdpa", "eager", "flash_attention_2", None, {"text_config": "sdpa"}):
        change(evil / "config.json", {"_attn_implementation": value, "attn_implementation": value, "auto_map": {}})
        change(evil / "config.json", {"_attn_implementation_autoset": True, "_name_or_path": "google/bert"})
        check_foreign(evil)
    change(evil / "config.json", {"trust_remote_code": False, "use_timm_backbone": False, "dtype": "float32"})
    change(evil / "tokenizer_config.json", {"special_tokens_map_file": "/home/user/.cache/map.json"})
    change(evil / "tokenizer_config.json", {"model_max_length": int(1e30), "tokenizer_file": None})
    check_type(evil, read_config(evil))
    saved = shutil.copy(evil / "config.json", tmp_path / "saved.json")
    assert load_classifier(evil).config._attn_implementation in ("sdpa", "eager")
    for config in (MptConfig(), SiglipConfig(), BlipConfig(), DPRConfig(), DogeConfig()):  # parts of no known type
        (evil / "config.json").write_text(config.to_json_string(use_diff=False), encoding="utf-8")
        assert isinstance(stock_config(evil), type(config))
    change(evil / "config.json", {"text_config": {"model_type": "no_such_text_model"}, "model_type": "blip"})
    with pytest.raises(UserError, match=r"text_config\.model_type 'no_such_text_model' is unknown"):
        stock_config(evil)
    shutil.copy(saved, evil / "config.json")
    change(evil / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["[X]"]})
    assert "[X]" in load_tokenizer(evil).all_special_tokens
    (evil / "config.json").write_text('{"model_type": "mamba2", "time_step_limit": [0.0, Infinity]}', encoding="utf-8")
    assert read_config(evil)["time_step_limit"] == [0.0, float("inf")]


def test_pickles_are_not_read_beside_other_safetensors(evil: Path) -> None:
    (evil / "model.safetensors").rename(evil / "other.safetensors")
    (evil / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises((UserError, OSError)):
        load_classifier(evil)


@pytest.fixture
def lightglue(evil: Path) -> Path:
    """CVE-2026-5241: it names the folder whose auto_map runs evil.py."""
    shutil.copytree(evil, evil.parent / "detector")
    change(evil.parent / "detector" / "config.json", {"auto_map": CODE, "model_type": "evil"})
    detector = {"_name_or_path": str(evil.parent / "detector"), "model_type": "evil"}
    change(
        evil / "config.json",
        {"model_type": "lightglue", "trust_remote_code": True, "keypoint_detector_config": detector},
    )
    return evil


@pytest.fixture
def asking(evil: Path) -> Path:
    """An unknown type with auto_map: transformers asks whether it may run evil.py."""
    change(evil / "config.json", {"model_type": "evil", "auto_map": CODE})
    return evil


@pytest.fixture
def kernel(evil: Path) -> Path:
    """CVE-2026-4372: it names a kernel that would be fetched."""
    change(evil / "config.json", {"_attn_implementation_internal": "evil/kernel"})
    return evil


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "predict": lambda evil: ["predict", str(evil), "--text", "a text"],
    "record": lambda evil: ["record", str(evil), str(evil.parent / "t.jsonl")],
    "profile": lambda evil: ["profile", str(evil)],
    "shadow": lambda evil: ["shadow", str(evil), str(evil), str(evil.parent / "t.jsonl")],
    "export": lambda evil: ["export", str(evil), "--to", "onnx", "--out", str(evil.parent / "out")],
    "summarize": lambda evil: ["summarize", str(evil), str(evil / "evil.py")],
    "plan": lambda evil: ["plan", "legal_bert", "--base", str(evil)],
    "run --base": lambda evil: ["run", "any_causal_lm", "--base", str(evil), "--run-dir", str(evil.parent / "run")],
    "run summarize_7b": lambda evil: [
        "run", "summarize_7b", "--base", str(evil), "--run-dir", str(evil.parent / "run")
    ],
    "run --teacher": lambda evil: [
        "run", "legal_bert", "--smoke", "--teacher", str(evil), "--run-dir", str(evil.parent / "run")
    ],
    "push": lambda evil: ["push", str(evil), "--hub-model-id", "a/b", "--dry-run"],
    "verify": lambda evil: ["verify", str(evil)],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["lightglue", "asking", "kernel"])
def test_no_command_runs_what_a_folder_brings(
    kind: str, command: str, fork_server: ForkServer, request: pytest.FixtureRequest
) -> None:
    evil: Path = request.getfixturevalue(kind)
    done = fork_server.run(*COMMANDS[command](evil), cwd=evil.parent)
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) <= 2, done.err  # the second: what kind of folder was expected
    if command not in ("push", "verify"):
        assert str(evil / "config.json") in done.err


def test_a_config_is_read_before_transformers_sees_it(evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard's own words and not an error of transformers, which would have read the folder first."""
    monkeypatch.setattr("transformers.configuration_utils.PretrainedConfig._get_config_dict", lambda *_, **__: 1 / 0)
    change(evil / "config.json", {"auto_map": CODE})
    with pytest.raises(UserError, match="asks for code of its own"):
        stock_config(evil)


def test_a_small_file_cannot_ask_for_much_memory(evil: Path) -> None:
    """Each size is one that some model has; all of them at once are not of these weights."""
    change(evil / "config.json", {"vocab_size": 250_000, "hidden_size": 8192, "num_attention_heads": 64})
    with pytest.raises(UserError, match=r"describes a model of 3,\d\d\d million weights, and its files hold 0\.\d MB"):
        load_classifier(evil)


def test_a_processor_for_enormous_images_is_refused(evil: Path) -> None:
    for size in ({"height": 10**6, "width": 10**6}, {"shortest_edge": 10**6}, -1, 10**6):
        change(evil / "preprocessor_config.json", {"size": size})
        with pytest.raises(UserError, match=r"preprocessor_config.json: size.* is .*it must be from 1 to 32,768"):
            check_foreign(evil)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("positions", ["relative_key", "relative_key_query"])
def test_relative_positions_are_read_where_they_are_computed_and_refused_elsewhere(
    kind: str, positions: str, tmp_path: Path
) -> None:
    """transformers 5 leaves them out of these types, without a word."""
    config = AutoConfig.for_model(kind).to_dict() | {"position_embedding_type": positions}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if int(transformers.__version__.split(".")[0]) < 5:
        assert stock_config(tmp_path).position_embedding_type == positions
        return
    with pytest.raises(UserError, match=f"position_embedding_type {positions} of a {kind} .* 'transformers<5'$"):
        stock_config(tmp_path)
