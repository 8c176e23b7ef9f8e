"""A causal LM's run goes to the Hub with its evidence, loads from there, and is proved again."""

import json
from pathlib import Path

import pytest

from hfcompress.cli import dispatch
from tests.hub.test_push import NAME, cache_folder, command, hub, push, refused, run_code  # noqa: F401  (two are fixtures)
from tests.hub_server import Hub

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "summarize_7b-smoke"
    assert dispatch(["run", "summarize_7b", "--smoke", "--run-dir", str(folder)]) == 0
    return folder


def test_it_is_pushed_loaded_back_and_verified_and_a_changed_one_fails(
    hub: Hub,  # noqa: F811
    smoke: Path,
    tmp_path: Path,
) -> None:
    done = push(hub, smoke)
    assert done.code == 0, done.err
    files = hub.files(NAME)
    assert set(files) >= {
        "README.md",
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "genai/genai_config.json",
        "genai/model.onnx",
        "genai/model.onnx.data",
        "genai/tokenizer.json",
        "records/onnx.json",
        "records/transformers.json",
        "recipe.lock.json",
        "report.html",
        "plot.svg",
        "bits.svg",
    }
    assert "surgery.json" not in files, "the packed model stays in the run"

    stock = """
import numpy as np
import onnxruntime_genai as genai
import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer
name = "org/small"
ids = AutoTokenizer.from_pretrained(name)("the licence grants you")["input_ids"]
with torch.inference_mode():
    wanted = AutoModelForCausalLM.from_pretrained(name)(torch.tensor([ids])).logits[0, -1]
model = genai.Model(snapshot_download(name, allow_patterns="genai/*") + "/genai")
parameters = genai.GeneratorParams(model)
parameters.set_search_options(max_length=32)
generator = genai.Generator(model, parameters)
generator.append_tokens(np.array(ids, np.int32))
found = torch.from_numpy(generator.get_logits()).flatten()[-len(wanted):]
assert (found - wanted).abs().max() < 0.1 * wanted.abs().max()
"""
    run_code(hub, stock, tmp_path)

    asked = ("verify", NAME, "--data", str(smoke / "smoke" / "data"))
    done = command(hub, *asked)
    assert done.code == 0, done.out + done.err
    assert "holds       perplexity on" in done.out
    assert "to compare  a token: claimed" in done.out
    assert "give yours with --data" in refused(command(hub, "verify", NAME))

    branch = hub.repositories[NAME].branches["main"]
    kept = branch[-1]
    report = json.loads(hub.contents[kept["report.json"]])
    row = next(model for model in report["models"] if model["name"] == "onnx")
    row["accuracy"]["all"]["ci95"]["perplexity"] = [1.0, 1.1]
    branch.append(kept | {"report.json": hub.keep(json.dumps(report).encode())})
    done = command(hub, *asked)
    assert done.code == 1
    assert "DIFFERS     perplexity on" in done.out

    branch.append(kept | {"genai/model.onnx.data": hub.keep(b"not the weights")})
    done = command(hub, *asked)
    assert done.code == 1
    assert "DIFFERS     sha256 of genai/model.onnx.data" in done.out


def test_its_card_passes_the_hubs_validation_and_says_how_each_format_is_loaded(
    hub: Hub,  # noqa: F811
    smoke: Path,
) -> None:
    from huggingface_hub import ModelCard

    push(hub, smoke)
    card = ModelCard(hub.files(NAME)["README.md"].decode())
    results = {result.metric_type: result for result in card.data.eval_results or []}
    assert set(results) == {"perplexity", "kl", "agreement"}
    assert all(set(result.metric_args) == {"n", "ci95"} for result in results.values())
    result = results["perplexity"]
    report = json.loads((smoke / "report.json").read_text())
    claimed = next(model for model in report["models"] if model["name"] == "onnx")["accuracy"]
    assert result.metric_value == pytest.approx(claimed["value"], abs=1e-5)
    assert result.metric_args["ci95"] == claimed["ci95"]
    for words in ("bits.svg", "plot.svg", "## What each stage cost", "## Intended use and limits", "times smaller"):
        assert words in card.text
    assert f'snapshot_download("{NAME}", allow_patterns="genai/*")' in card.text
    assert f'AutoModelForCausalLM.from_pretrained("{NAME}")' in card.text


def test_summarize_takes_a_pushed_name(hub: Hub, smoke: Path, tmp_path: Path) -> None:  # noqa: F811
    push(hub, smoke)
    (tmp_path / "text.txt").write_text("the licence")
    asked = ("summarize", NAME, str(tmp_path / "text.txt"), "--max-new-tokens", "2", "--format", "json")
    there, here = command(hub, *asked), command(hub, asked[0], smoke, *asked[2:])
    assert there.code == here.code
    if there.code == 0:
        assert json.loads(there.out)["summary"] == json.loads(here.out)["summary"]
    else:  # a smoke model's context may be too small for the prompt: then both say so
        assert there.err == here.err
