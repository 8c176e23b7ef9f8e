"""hfcompress eval: the harness gets the same answers from every runtime, on tasks that lie here."""

import json
from pathlib import Path
from typing import Any

import pytest

from hfcompress.cli import dispatch
from hfcompress.errors import UserError
from hfcompress.formats.compressed_tensors import ExportTransformers
from hfcompress.formats.genai import ExportGenai
from hfcompress.ops.grid import Grid
from tests.language_models import pack_model, texts, write_llama, write_task

TASKS = ("choose", "perplexity", "go_on")
needs_lm_eval = pytest.mark.usefixtures("lm_eval")


@pytest.fixture(scope="module")
def lm_eval() -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (pip install 'hfcompress[lm-eval]')")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a tiny model, its packed integers and the two formats that are made of them."""
    folder = tmp_path_factory.mktemp("run")
    task = write_task(folder / "data")
    model = write_llama(folder / "lm")
    packed = pack_model(model, folder / "packed", Grid(8, 32))
    for name, stage in (("onnx", ExportGenai("float32", accuracy_level=1, context=128)),
                        ("transformers", ExportTransformers())):  # fmt: skip
        (folder / name).mkdir()
        stage(folder / name, model=packed, task=task)  # type: ignore[operator]
    formats = {"lm": "transformers", "packed": "surgery", "onnx": "onnx-genai", "transformers": "transformers"}
    rows = [{"name": name, "path": name, "format": kind} for name, kind in formats.items()]
    (folder / "report.json").write_text(json.dumps({"models": rows}))
    (folder / "details.json").write_text(json.dumps({"task": "text-generation"}))
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multiple choice, a perplexity and a generation, each of four texts."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"text": text, "start": text[:40], "right": text[40:60], "wrong": text[60:80]} for text in texts(4, 9)]
    (folder / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.json")}},
              "test_split": "test", "metadata": {"version": 1}}  # fmt: skip
    metric = {"aggregation": "mean", "higher_is_better": True}
    kinds: dict[str, dict[str, Any]] = {
        "choose": {
            "output_type": "multiple_choice", "doc_to_text": "{{start}}", "doc_to_choice": "{{[right, wrong]}}",
            "doc_to_target": 0, "target_delimiter": "", "metric_list": [metric | {"metric": "acc"}],
        },
        "perplexity": {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity",
                             "higher_is_better": False}],
        },
        "go_on": {
            "output_type": "generate_until", "doc_to_text": "{{start}}", "doc_to_target": "{{right}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 12},
            "metric_list": [metric | {"metric": "exact_match"}],
        },
    }  # fmt: skip
    for name, kind in kinds.items():
        (folder / f"{name}.yaml").write_text(json.dumps(common | kind | {"task": name}))  # JSON is YAML
    return folder


@needs_lm_eval
def test_every_runtime_gives_the_harness_the_same_figures(
    run: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    options = ["--include-path", str(tasks), "--threads", "1", "--format", "json"]
    assert dispatch(["eval", str(run), "--tasks", *TASKS, "--models", "packed", "onnx", "transformers", *options]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((run / "eval.json").read_text())["models"] == found
    assert list(found) == ["packed", "onnx", "transformers"]
    for name in ("onnx", "transformers"):
        assert found[name]["choose"]["acc"] == found["packed"]["choose"]["acc"]
        assert found[name]["perplexity"]["word_perplexity"] == pytest.approx(
            found["packed"]["perplexity"]["word_perplexity"], rel=0.02
        )
    assert dispatch(["eval", str(run), "--tasks", "choose", "--include-path", str(tasks), "--limit", "2"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.split() == ["task", "metric", "lm", "onnx", "transformers"], "all but the simulation"


@needs_lm_eval
def test_a_decoder_answers_as_hflm_does(run: Path) -> None:
    """Log-likelihoods, texts longer than the context, and greedy answers, request by request."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from hfcompress.architectures.models import language_tokenizer
    from hfcompress.evaluation.harness import HarnessDecoder, opened
    from hfcompress.folders.end_tokens import end_tokens
    from hfcompress.formats.runtimes.torch_decoder import TorchDecoder

    theirs = opened(run / "lm", 1)
    assert isinstance(theirs, HFLM)
    ours = HarnessDecoder(TorchDecoder(run / "lm", 1), language_tokenizer(run / "lm"), end_tokens(run / "lm"))
    assert ours.max_length == theirs.max_length == 128

    def requests(kind: str, arguments: list[Any]) -> list[Any]:
        return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]

    pairs = [("the licence grants", " you a right"), ("", "the licence"), (" ".join(texts(3, 1)), " to use")]
    for one, other in zip(
        ours.loglikelihood(requests("loglikelihood", pairs)), theirs.loglikelihood(requests("loglikelihood", pairs)),
        strict=True,
    ):  # fmt: skip
        assert one[0] == pytest.approx(other[0], abs=1e-3)
        assert one[1] == other[1]
    long = [(" ".join(texts(3, 2)),), ("the licence",)]
    assert ours.loglikelihood_rolling(requests("loglikelihood_rolling", long)) == pytest.approx(
        theirs.loglikelihood_rolling(requests("loglikelihood_rolling", long)), abs=1e-2
    )
    asked = [(text, {"until": ["a"], "max_gen_toks": 16}) for text in texts(3, 3)]
    asked = [(text[:90], options) for text, options in asked]
    assert ours.generate_until(requests("generate_until", asked)) == theirs.generate_until(
        requests("generate_until", asked)
    )


@needs_lm_eval
def test_what_cannot_be_evaluated_is_refused(run: Path, tasks: Path) -> None:
    with pytest.raises(UserError, match="--tasks nonsense: lm-evaluation-harness has no such task"):
        dispatch(["eval", str(run), "--tasks", "nonsense", "--include-path", str(tasks)])
    from hfcompress.evaluation.harness import HarnessDecoder, opened

    model = opened(run / "onnx", 1)
    assert isinstance(model, HarnessDecoder)
    from lm_eval.api.instance import Instance

    for options, match in (({"do_sample": True}, "draws"), ({"max_gen_toks": 500}, "500 new tokens")):
        with pytest.raises(UserError, match=match):
            model.generate_until([Instance("generate_until", {}, ("the", options), 0)])


def test_bad_input_is_refused_before_anything_is_loaded(run: Path, tmp_path: Path) -> None:
    for arguments, match in (
        ([str(tmp_path)], "neither a run"),
        ([str(run), "--models", "gguf"], "the run has lm, packed, onnx, transformers"),
        ([str(run), "--include-path", str(tmp_path / "none")], "no such folder"),
        ([str(run), "--limit", "0"], "--limit 0"),
    ):
        with pytest.raises(UserError, match=match):
            dispatch(["eval", *arguments, "--tasks", "choose"])
    (tmp_path / "report.json").write_text('{"models": []}')
    (tmp_path / "details.json").write_text("{}")
    with pytest.raises(UserError, match="no run of a causal LM"):
        dispatch(["eval", str(tmp_path), "--tasks", "choose"])


def test_a_missing_harness_names_the_extra(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import hfcompress

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delattr(hfcompress, "harness", raising=False)
    monkeypatch.delitem(sys.modules, "hfcompress.evaluation.harness", raising=False)
    with pytest.raises(UserError, match=r'pip install "hfcompress\[lm-eval\]"'):
        dispatch(["eval", str(run), "--tasks", "choose"])
