"""Summaries of the same documents by several models: in a run's report, and after a kill."""

import json
from pathlib import Path

import pytest

from hfcompress.cli import dispatch
from hfcompress.errors import UserError
from hfcompress.evaluation.measure_summaries import RESULT, MeasureSummaries
from hfcompress.evaluation.summaries import lead, rouge
from hfcompress.tasks.summarization import Summarization
from tests.language_models import texts, write_llama

STAGE = MeasureSummaries(max_new_tokens=6, context=64, lead_sentences=1, threads=1, resamples=50)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Summarization:
    folder = tmp_path_factory.mktemp("documents")
    rows = [{"document": " ".join(texts(2, seed)), "summary": texts(1, seed)[0]} for seed in range(5)]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Summarization(dataset=str(folder))


def measured(out: Path, models: dict[str, Path], task: Summarization) -> dict:  # type: ignore[type-arg]
    (out / "work").mkdir(parents=True, exist_ok=True)
    assert STAGE(out, models=models, task=task, reference="a") == {"documents": 5}
    return json.loads((out / RESULT).read_text())


def test_every_model_and_the_lead_are_scored_on_the_same_documents(tmp_path: Path, task: Summarization) -> None:
    models = {"a": write_llama(tmp_path / "a"), "b": write_llama(tmp_path / "b", seed=1)}
    found = measured(tmp_path / "out", models, task)
    assert set(found["models"]) == {"a", "b", "lead"}
    assert all(row["n"] == 5 for row in found["models"].values())
    rows = task.data.splits["test"]
    by_hand = [
        rouge(lead(document, 1), references)["rouge1"]
        for document, references in zip(rows.documents, rows.references, strict=True)
    ]
    assert found["models"]["lead"]["rouge1"] == pytest.approx(sum(by_hand) / 5)
    difference = found["differences"]["b"]["rouge1"]["difference"]
    assert difference == pytest.approx(found["models"]["b"]["rouge1"] - found["models"]["a"]["rouge1"])
    assert found["models"]["lead"]["copied_4grams"] == 1


def test_summaries_that_were_made_before_a_kill_are_kept(tmp_path: Path, task: Summarization) -> None:
    models = {"a": write_llama(tmp_path / "a")}
    whole = measured(tmp_path / "whole", models, task)
    work = tmp_path / "cut" / "work"
    work.mkdir(parents=True)
    said = [example["summaries"]["a"] for example in whole["examples"]]
    (work / "a.jsonl").write_text(json.dumps(said[0]) + "\n" + json.dumps("kept as it is") + "\n" + '"cut sho')
    found = measured(tmp_path / "cut", models, task)
    again = [example["summaries"]["a"] for example in found["examples"]]
    assert again == [said[0], "kept as it is", said[2]]


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="max_new_tokens 0"):
        MeasureSummaries(max_new_tokens=0)


@pytest.mark.slow
def test_a_run_reports_them(tmp_path: Path, task: Summarization) -> None:
    folder = tmp_path / "run"
    arguments = ["run", "summarize_7b", "--smoke", "--run-dir", str(folder), "--documents.dataset", task.dataset]
    arguments += ["--budget.context", "128", "--task.window", "128", "--pretrain.max-steps", "3"]
    arguments += ["--summaries.max-new-tokens", "4"]
    dispatch([*arguments, "--summaries.resamples", "50", "--formats", "--measure.runs", "1"])
    page = (folder / "report.html").read_text()
    assert "Summaries of documents" in page
    assert "lead" in page
