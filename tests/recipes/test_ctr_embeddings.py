"""The recipe from end to end, and what one does with its models: check, predict, record, replay, shadow, ab."""

import io
import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from hfcompress.architectures.click_inputs import read_config
from hfcompress.architectures.click_model import load_click_model, save_click_model
from hfcompress.cli import dispatch
from hfcompress.compress.embeddings.tables import CompressEmbeddings
from hfcompress.compress.quantize.towers import QuantizeTowers
from hfcompress.errors import UserError
from hfcompress.formats import click_onnx, memory
from hfcompress.formats.click_onnx import ExportClicks
from hfcompress.formats.memory import fresh_process
from hfcompress.formats.saturation import saturating_layers
from hfcompress.planning import click_latency
from hfcompress.recipes.ctr_embeddings import CURVE, point_of, smoke
from hfcompress.rollout.stage import Rollout, request_lines
from hfcompress.rollout.traffic import read
from hfcompress.tasks.tabular_classification import Clicks
from hfcompress.training import clicks
from hfcompress.training.train_clicks import TrainClicks
from tests.hub.test_push import NAME, cache_folder, command, hub, push, run_code  # noqa: F401  (two are fixtures)
from tests.hub_server import Hub


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "smoke"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "fresh_process", fresh_process)  # whose figures are held against the plan's
        assert dispatch(["run", "ctr_embeddings", "--smoke", "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def task() -> Clicks:
    found = smoke(Path())["task"]
    assert isinstance(found, Clicks)
    return found


def artifact(run: Path, name: str) -> Path:
    (found,) = [f for f in run.iterdir() if f.name.rpartition("-")[0] == name]
    return found


def test_the_run_ends_with_verdicts_a_page_and_a_card(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["ok"] is True
    assert {verdict["limit"] for verdict in report["verdicts"]} == {"disk_mb", "drop:auc", "drop:ctr"}
    assert any("generated" in note for note in report["notes"])
    page, card = (run / "report.html").read_text(), (run / "model_card.md").read_text()
    assert "AUC against compression" in page
    assert "The A/B test of ctr: estimate and bounds after each look" in page
    assert "The click log is generated" in card
    assert dispatch(["check", str(run)]) == 0


def test_the_delivered_bytes_are_a_tenth(run: Path) -> None:
    found = json.loads((artifact(run, "compressed-torch") / "record.json").read_text())["measured"]
    assert found["ratio"] >= 10
    delivered = json.loads((artifact(run, "int8") / "record.json").read_text())["measured"]
    assert delivered["table_bytes"] == found["table_bytes"]
    assert delivered["integer_kernels"] >= 3


def test_the_plan_predicts_the_sizes_and_the_memory(run: Path) -> None:
    for row in json.loads((run / "report.json").read_text())["models"]:
        predicted = row["predicted"]
        if predicted:
            assert row["bytes"] / 1e6 == pytest.approx(predicted["disk_mb"], rel=0.05, abs=0.02), row["name"]
        if predicted and row["format"] == "onnx":
            assert row["peak_rss_mb"] == pytest.approx(predicted["ram_mb"], rel=0.05), row["name"]
            assert predicted["latency_ms"] > 0
            assert predicted["latency_ratio"] > 0


def test_what_is_timed_for_the_plan_is_the_models_own_graph_with_fewer_rows(run: Path, tmp_path: Path) -> None:
    """Node for node and tensor for tensor: what is written without torch is of the kinds that are delivered."""
    import onnx

    for name in ("baseline-onnx", "compressed", "int8", "hashed-8-20x", "quotient_remainder-8-20x"):
        whole = onnx.load(artifact(run, name) / "model.onnx")
        assert not saturating_layers(whole), "the same on every processor"
        config = read_config(artifact(run, name))
        fewer = click_latency.with_few_rows(config, 1_100)
        small = onnx.load(click_latency.write_random(fewer, tmp_path))
        assert [node.op_type for node in small.graph.node] == [node.op_type for node in whole.graph.node], name
        kinds = [{t.name: t.data_type for t in model.graph.initializer} for model in (small, whole)]
        assert kinds[0] == kinds[1], name
        assert max(fewer["columns"].values()) == 1_100


def test_a_model_with_swapped_rows_fails_the_budget(run: Path, task: Clicks, tmp_path: Path) -> None:
    """The delivered model with its items mixed up: still a model, and no longer acceptable."""
    from dataclasses import asdict

    from hfcompress.budget import drop_verdict
    from hfcompress.evaluation.clicks import differences
    from hfcompress.evaluation.measure_clicks import judged_of
    from hfcompress.formats.runtimes.click_predictor import ClickPredictor

    network = load_click_model(artifact(run, "baseline"))
    with torch.no_grad():
        network.tables["item"].weight.copy_(network.tables["item"].weight.flip(0))
    save_click_model(network, tmp_path)
    log = task.data.logs["test"]
    old, new = (judged_of(ClickPredictor(f).judge(log), log) for f in (artifact(run, "baseline"), tmp_path))
    verdict = drop_verdict("auc", 0.005, "b", "a", asdict(differences(old, new, 0.95)["auc"]))
    assert verdict.verdict == "exceeded"
    assert not verdict.ok


def test_a_graph_that_differs_or_is_larger_than_claimed_fails_the_stage(
    run: Path, task: Clicks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfcompress.formats import click_weights

    export = click_weights.export_clicks

    def swapped(network: torch.nn.Module, out: Path) -> None:
        with torch.no_grad():
            network.towers.top[0].weight.add_(0.3)
        export(network, out)  # type: ignore[arg-type]
        with torch.no_grad():
            network.towers.top[0].weight.sub_(0.3)

    monkeypatch.setattr(click_weights, "export_clicks", swapped)
    with pytest.raises(RuntimeError, match=r"is how far the graph's logits are"):
        ExportClicks()(tmp_path, model=artifact(run, "compressed-torch"), task=task)
    monkeypatch.setattr(click_weights, "export_clicks", export)
    monkeypatch.setattr(click_onnx, "table_bytes", lambda path: 10**9)
    with pytest.raises(RuntimeError, match=r"were claimed"):
        ExportClicks()(tmp_path, model=artifact(run, "compressed-torch"), task=task)


def test_the_same_options_give_the_same_model(run: Path, task: Clicks, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        CompressEmbeddings(train_batch_size=256, num_train_epochs=0.1)(
            tmp_path / name, model=artifact(run, "baseline"), task=task
        )
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert one == other


def test_ab_says_of_the_runs_traffic_what_the_report_says(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = artifact(run, "rollout")
    found = json.loads((folder / "rollout.json").read_text())["ab"]
    planned = str(max(1, len({event.user for event in read(folder / "ab.jsonl").events}) // 2))
    page = tmp_path / "ab.html"
    asked = ["ab", str(folder / "ab.jsonl"), "--metric", "ctr", "--tolerance", "50%", "--planned-users", planned]
    code = dispatch([*asked, "--report", str(page)])
    assert code == {"accept": 0, "roll back": 1, "keep going": 3}[found["verdict"]]
    assert found["text"] in capsys.readouterr().out
    assert f"<strong>{found['verdict']}</strong>" in page.read_text()
    assert "<svg" in page.read_text()


def test_the_commands_take_click_models(
    run: Path, task: Clicks, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = request_lines(task.data.logs["live"].rows(slice(0, 12)))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines))))
    old, file = str(artifact(run, "baseline-onnx")), tmp_path / "traffic.jsonl"
    assert dispatch(["record", old, str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(read(file).events) == 12
    assert dispatch(["replay", old, str(run), str(file)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changes"]["n"] == 12
    assert "accuracy" in found["against_truth"]
    text = json.loads(lines[0])["input"]
    assert dispatch(["predict", str(run), "--text", text]) == 0
    assert capsys.readouterr().out.split("\t")[0] in ("click", "no click")
    with pytest.raises(UserError, match=r"is not a request"):
        dispatch(["predict", str(run), "--text", "hello"])


def test_a_damaged_folder_is_named(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(artifact(run, "baseline"), folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_click_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"is damaged"):
        load_click_model(folder)


def test_a_split_without_clicks_is_named(run: Path, task: Clicks, tmp_path: Path) -> None:
    from dataclasses import replace

    from hfcompress.evaluation.measure_clicks import MeasureClicks
    from hfcompress.tasks.tabular_classification import ClickData, write_logs

    test = task.data.logs["test"]
    silent = replace(test, click=np.zeros_like(test.click), conversion=np.zeros_like(test.conversion))
    write_logs(ClickData(task.data.logs | {"test": silent}, ""), tmp_path)
    with pytest.raises(UserError, match=r"has no click"):
        MeasureClicks()(
            tmp_path,
            models={"a": artifact(run, "baseline")},
            task=Clicks(dataset=str(tmp_path)),
            reference="a",
            confidence=0.95,
        )


def test_every_point_of_the_small_scales_curve_can_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["plan", "ctr_embeddings"]) == 0
    assert all(f"{point}x" in capsys.readouterr().out for point in CURVE[:1])


def test_options_that_are_wrong_are_named() -> None:
    with pytest.raises(UserError, match=r"--curve mixed-9-10"):
        point_of("mixed-9-10")
    with pytest.raises(UserError, match=r"unknown drop"):
        TrainClicks(unknown="drop")
    with pytest.raises(UserError, match=r"--tolerance"):
        Rollout(tolerance="much")


@pytest.mark.slow
def test_it_is_pushed_proved_again_and_loaded_in_plain_onnxruntime(
    run: Path,
    hub: Hub,  # noqa: F811
    tmp_path: Path,
) -> None:
    done = push(hub, run)
    assert done.code == 0, done.err
    files = hub.files(NAME)
    assert set(files) >= {"config.json", "onnx/model_quantized.onnx", "report.html", "plot.svg", "recipe.lock.json"}
    assert "model.safetensors" not in files, "there is no class that would load it"

    card = ModelCard(files["README.md"].decode())
    results = {result.metric_type: result for result in card.data.eval_results or []}
    assert set(results) == {"auc", "log_loss", "ece", "conversion_auc", "ctr"}
    assert all(set(result.metric_args) == {"n", "ci95"} for result in results.values())
    for words in ("## What each stage cost", "CompressEmbeddings", "QuantizeTowers", "## Intended use and limits"):
        assert words in card.text
    (code,) = re.findall("```python\n(.*?)```", card.text, re.S)
    said = [float(value) for value in run_code(hub, code + "print(*click)", tmp_path).split()]
    slate = [{"user": 7, "item": item, "category": c, "context": 5, "price": p, "time": 0.0}
             for item, c, p in ((3, 1, 0.3), (11, 4, -0.8))]  # fmt: skip
    (tmp_path / "slate.txt").write_text("\n".join(map(json.dumps, slate)))
    answers = command(hub, "predict", NAME, tmp_path / "slate.txt", "--format", "json").out.splitlines()
    found = [json.loads(line) for line in answers]
    clicks = [a["score"] if a["label"] == "click" else 1 - a["score"] for a in found]
    assert clicks == pytest.approx(said, abs=1e-4)

    done = command(hub, "verify", NAME)
    assert done.code == 0, done.out + done.err
    for metric in results:
        assert f"holds       {metric} on 6,000 rows" in done.out
    branch = hub.repositories[NAME].branches["main"]
    report = json.loads(files["report.json"])
    row = next(model for model in report["models"] if model["name"] == "int8")
    row["accuracy"]["all"]["auc"] += 0.005  # within its interval, and not what the model does
    branch.append(branch[-1] | {"report.json": hub.keep(json.dumps(report).encode())})
    done = command(hub, "verify", NAME)
    assert done.code == 1
    assert "DIFFERS     auc on 6,000 rows" in done.out


def killed_at_the_second_checkpoint(stage: Any, out: Path, inputs: dict[str, Any]) -> None:
    """A process that ends by SIGKILL as soon as its second checkpoint is there."""
    save, seen = clicks.save_checkpoint, []

    def then_die(*arguments: Any) -> None:
        save(*arguments)
        seen.append(1)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    clicks.save_checkpoint = then_die
    stage(out, **inputs)


@pytest.mark.parametrize("name", ["train", "compress", "towers"])
def test_a_training_that_is_killed_goes_on_and_ends_in_the_same_model(
    name: str, run: Path, task: Clicks, tmp_path: Path
) -> None:
    short: dict[str, Any] = {"train_batch_size": 256, "num_train_epochs": 0.3}
    stage, inputs = {
        "train": (TrainClicks(**short), {}),
        "compress": (CompressEmbeddings(**short), {"model": artifact(run, "baseline")}),
        "towers": (
            QuantizeTowers(**short),
            {"model": artifact(run, "compressed-torch"), "teacher": artifact(run, "baseline")},
        ),
    }[name]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    assert stage(whole, task=task, **inputs)["resumed_at_step"] == 0
    process = multiprocessing.get_context("fork").Process(
        target=killed_at_the_second_checkpoint, args=(stage, cut, {"task": task, **inputs})
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (cut / "model.safetensors").exists()
    resumed = stage(cut, task=task, **inputs)
    assert 0 < resumed["resumed_at_step"] < resumed["steps"]
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
