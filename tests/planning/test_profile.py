"""profile: every parameter and byte is counted once, time is where the work is, whatever the model's format."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from hfcompress.cli import dispatch
from hfcompress.errors import UserError
from hfcompress.formats.size import sizes
from hfcompress.planning.profile import ModuleClock, group_of, profile


def profiled(folder: Path, **options: int) -> dict[str, tuple[int, int, float | None]]:
    found = profile(folder, batch=1, length=16, threads=1, runs=2, **options)
    assert found.bytes == sizes(folder)["bytes"]
    assert found.parameters == sizes(folder)["parameters"]
    return {group.name: (group.parameters, group.bytes, group.milliseconds) for group in found.groups}


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("bert.encoder.layer.3.attention.self.query.weight", "bert.encoder.layer.*.attention"),
        ("bert.embeddings.word_embeddings.weight", "bert.embeddings.word_embeddings"),
        ("roberta.embeddings.word_embeddings.weight", "roberta.embeddings.word_embeddings"),
        ("distilbert.transformer.layer.2.ffn.lin1.bias", "distilbert.transformer.layer.*.ffn"),
        ("classifier.bias", "classifier"),
        ("model.layers.11.mlp.down_proj.weight", "model.layers.*.mlp"),
        ("/network/bert/encoder/layer.0/attention/self/MatMul", "bert.encoder.layer.*.attention"),
        ("tables.user.pool_scale", "tables.user"),
        ("top.0.weight_int8", "top.*"),
        ("(operator Add)", "(operator Add)"),
    ],
)
def test_a_name_says_its_group(name: str, group: str) -> None:
    assert group_of(name) == group


def test_a_transformers_model_is_counted_whole(tiny_model: Path) -> None:
    groups = profiled(tiny_model)
    config = json.loads((tiny_model / "config.json").read_text())
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    words = groups["bert.embeddings.word_embeddings"]
    assert words[:2] == (config["vocab_size"] * hidden, 4 * config["vocab_size"] * hidden)
    assert groups["bert.encoder.layer.*.attention"][0] == layers * (4 * hidden * (hidden + 1) + 2 * hidden)
    assert (groups["bert.encoder.layer.*.attention"][2] or 0) > 0


def test_a_graph_is_counted_whole(exported: Path) -> None:
    groups = profiled(exported)
    assert any("word_embeddings" in name and parameters for name, (parameters, _, _) in groups.items())
    assert sum(milliseconds or 0 for _, _, milliseconds in groups.values()) > 0


def test_a_vision_model(tmp_path: Path) -> None:
    config = MobileNetV2Config(image_size=32, depth_multiplier=0.35, num_labels=3)
    network = MobileNetV2ForImageClassification(config)
    network.save_pretrained(tmp_path)
    found = profile(tmp_path, batch=2, length=1, threads=1, runs=2)
    assert found.milliseconds is not None
    assert found.parameters == sizes(tmp_path)["parameters"] == sum(p.numel() for p in network.parameters())
    assert found.request == {"batch": 2, "height": 32, "width": 32, "threads": 1}


TINY = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SOUND: dict[str, Any] = {
    "vocab_size": 60, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_source_positions": 20,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "made", "sizes_of"),
    [
        ("GPT2", "LMHeadModel", {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}),
        ("Llama", "ForCausalLM", TINY | {"tie_word_embeddings": True}),
        ("Albert", "ForSequenceClassification", TINY | {"embedding_size": 8}),
        ("Whisper", "ForConditionalGeneration", SOUND),
    ],
)
def test_weights_that_are_shared_are_counted_once(
    tmp_path: Path, kind: str, made: str, sizes_of: dict[str, Any]
) -> None:
    network = getattr(transformers, kind + made)(getattr(transformers, f"{kind}Config")(**sizes_of))
    network.save_pretrained(tmp_path)
    found = profile(tmp_path, batch=1, length=8, threads=1, runs=1)
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert found.milliseconds is not None


def test_a_modules_own_time_leaves_out_its_childrens() -> None:
    class Slow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(600, 600)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(20):
                x = self.inner(x)
            return x

    network = Slow()
    clock = ModuleClock(network)
    network(torch.ones(400, 600))
    assert clock.own["inner"] > 5 * clock.own["(no module)"]
    clock.remove()
    clock.own.clear()
    network(torch.ones(1, 600))
    assert not clock.own


def test_without_time_only_headers_are_read(tiny_model: Path) -> None:
    assert all(milliseconds is None for _, _, milliseconds in profiled(tiny_model, timed=False).values())


def test_the_command_prints_a_table_or_json(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["profile", str(tiny_model), "--runs", "1", "--sequence-length", "8"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].split() == ["group", "parameters", "MB", "bytes", "ms", "time"]
    assert "bert.embeddings.word_embeddings" in text
    assert text.splitlines()[-1] == "torch, batch 1, length 8, 1 thread"
    assert dispatch(["profile", str(tiny_model), "--runs", "1", "--sequence-length", "8", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(group["bytes"] for group in found["groups"]) == found["bytes"] == sizes(tiny_model)["bytes"]


def test_what_cannot_be_profiled_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be run on 1 x 5000 .*--sequence-length"):
        profile(tiny_model, batch=1, length=5000, threads=1, runs=1)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has no weights"):
        profile(tmp_path, batch=1, length=5, threads=1, runs=1)
    with pytest.raises(UserError, match=r"--runs 0"):
        dispatch(["profile", str(tiny_model), "--runs", "0"])
