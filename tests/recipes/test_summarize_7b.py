"""The recipe from end to end on a tiny model, and what its figures mean."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hfcompress.budget import LanguageBudget, verdicts
from hfcompress.cli import dispatch
from hfcompress.errors import UserError
from hfcompress.evaluation import language
from hfcompress.formats import format_of, language_memory
from hfcompress.report.console import sentence, table
from hfcompress.tasks.text_generation import Window


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "smoke"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_memory, "fresh_process", once_a_format(language_memory.fresh_process))
        assert dispatch(["run", "summarize_7b", "--smoke", "--run-dir", str(folder)]) == 0
    return folder


def once_a_format(measure: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """Memory of the first model of each format, for all of it: a process with torch takes seconds."""
    found: dict[str, dict[str, float]] = {}

    def measured(folder: Path, *more: int) -> dict[str, float]:
        kind = format_of(folder).word
        if kind not in found:
            found[kind] = measure(folder, *more)
        return found[kind]

    return measured


def test_the_run_ends_with_verdicts_a_page_and_a_card(smoke: Path) -> None:
    report = json.loads((smoke / "report.json").read_text())
    assert [model["format"] for model in report["models"]] == [
        "transformers",
        "surgery",
        "surgery",
        "onnx-genai",
        "transformers",
    ]
    assert report["ok"] is True
    assert {verdict["limit"] for verdict in report["verdicts"]} == {"disk_mb", "drop:perplexity"}
    page = (smoke / "report.html").read_text()
    assert "Bits of every matrix, by layer" in page
    assert "Each runtime against a simulation of its own weights" in page
    assert report["models"][3]["path"] in (smoke / "model_card.md").read_text()
    assert "holds" in table(report)


@pytest.mark.parametrize("name", ["onnx", "transformers"])
def test_the_runtime_agrees_with_the_simulation_of_its_weights(smoke: Path, name: str) -> None:
    found = json.loads((smoke / "details.json").read_text())["runtimes"][name]
    assert found["simulation"] == "packed"
    assert found["agreement"] >= 0.99


def test_the_transformers_folder_is_loaded_by_stock_classes(smoke: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    row = json.loads((smoke / "report.json").read_text())["models"][4]
    folder = smoke / row["path"]
    ids = AutoTokenizer.from_pretrained(folder)("the licence grants", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert AutoModelForCausalLM.from_pretrained(folder)(ids).logits.isfinite().all()


def test_a_format_whose_runtime_is_missing_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match="llama-cpp"):
        dispatch(["run", "summarize_7b", "--smoke", "--run-dir", str(tmp_path / "run"), "--formats", "gguf"])
    assert not list((tmp_path / "run").glob("*-*"))


def test_its_model_summarizes(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((smoke / "report.json").read_text())
    assert dispatch(["check", str(smoke)]) == 0
    folder = smoke / report["models"][3]["path"]
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError):
        dispatch(["summarize", str(folder), str(tmp_path / "empty.txt")])


def test_what_is_pushed_of_it_and_where(smoke: Path) -> None:
    from hfcompress.hub.release import release

    found = release(smoke, "org/name", "mit")
    assert {"config.json", "tokenizer.json", "genai/genai_config.json", "genai/model.onnx.data"} <= set(found.models)
    assert not any(place.startswith("surgery") for place in found.models), "the packed model stays in the run"
    card = found.rendered["README.md"].decode()
    assert 'allow_patterns="genai/*"' in card
    assert 'AutoModelForCausalLM.from_pretrained("org/name")' in card


def test_the_report_is_rendered_again(smoke: Path) -> None:
    page = (smoke / "report.html").read_text()
    assert dispatch(["report", str(smoke)]) == 0
    assert (smoke / "report.html").read_text() == page


def windows() -> list[Window]:
    random = np.random.default_rng(0)
    return [Window([int(i) for i in random.integers(0, 50, 40)], 1, str(group)) for group in range(12)]


def said(sharpness: float, seed: int = 1) -> list[np.ndarray]:
    """Log-probabilities that favour the true token by so much, with noise."""
    random = np.random.default_rng(seed)
    found = []
    for window in windows():
        logits = random.normal(size=(39, 50))
        logits[np.arange(39), window.ids[1:]] += sharpness
        found.append((logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32))
    return found


def test_perplexity_and_kl_are_those_of_the_formula() -> None:
    reference, candidate = said(3.0), said(2.0, seed=2)
    scored = language.scores(candidate, windows(), reference)
    nll = -np.mean([values[np.arange(39), w.ids[1:]] for values, w in zip(candidate, windows(), strict=True)])
    kl = np.mean([(np.exp(r) * (r - c)).sum(1) for r, c in zip(reference, candidate, strict=True)])
    assert scored.perplexity == pytest.approx(np.exp(nll), rel=1e-5)
    assert scored.kl.sum() / scored.tokens.sum() == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize(("sharpness", "verdict"), [(3.0, "shown"), (1.0, "exceeded")])
def test_a_worse_model_fails_its_budget(sharpness: float, verdict: str) -> None:
    reference = language.drawn(language.scores(said(3.0), windows()), 500, 0)
    candidate = language.drawn(language.scores(said(sharpness), windows()), 500, 0)
    difference = language.increase(reference, candidate, 0.95)
    row = {"bytes": 1, "peak_rss_mb": 1.0, "latency_ms": {"p50": 1.0, "first_token": 5.0}}
    found = verdicts(
        LanguageBudget(first_token_ms=2.0, drop={"perplexity": 0.03}), "b", "a", "a",
        [{"name": "a"} | row, {"name": "b"} | row], {"perplexity": vars(difference)}, {},
    )  # fmt: skip
    assert [one.ok for one in found] == [False, verdict == "shown"]
    assert verdict in sentence(found[1].as_dict())


def test_a_runtime_that_differs_is_counted_with_its_margin() -> None:
    simulated = said(3.0)
    other = [values.copy() for values in simulated]
    first, second = np.argsort(other[0][5])[[-1, -2]]
    margin = other[0][5, first] - other[0][5, second]
    other[0][5, [first, second]] = other[0][5, [second, first]]
    found = language.disagreements(other, simulated, windows())
    assert found["agreement"] == pytest.approx(1 - 1 / (12 * 39))
    assert found["disagreements"] == [{"window": 0, "token": 6, "margin": round(float(margin), 5)}]


def test_a_budget_of_another_kind_of_model_is_refused() -> None:
    with pytest.raises(UserError, match="give perplexity"):
        LanguageBudget(drop={"accuracy": 0.01})
    assert LanguageBudget(ram_gb=4.0).ram_mb == 4000
