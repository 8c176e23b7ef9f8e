"""The command line as a user meets it: one smoke run from base to report, then all that one does with it."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from hfcompress.cli import main
from hfcompress.formats.saturation import saturating_layers
from hfcompress.formats.size import integer_bytes
from tests.fork_server import ForkServer
from tests.hub_server import serve

ROOT = Path(__file__).parents[2]


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    words = [sys.executable, "-m", "hfcompress", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def hfcompress(*arguments: str | Path, stdin: str | bytes = b"") -> subprocess.CompletedProcess[str]:
    """The same in this process, where torch is imported already; standard input and outputs as text."""
    out, err, code = io.StringIO(), io.StringIO(), None
    given = io.TextIOWrapper(io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(ROOT)
        patch.setattr("sys.argv", ["hfcompress", *map(str, arguments)])
        patch.setattr("sys.stdin", given)
        try:
            main()
        except SystemExit as done:
            code = done.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def refused(*arguments: str | Path, stdin: str | bytes = b"") -> str:
    """The one line with which a mistake is refused, with exit code 2 and no traceback."""
    done = hfcompress(*arguments, stdin=stdin)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Path:
    folder = tmp_path_factory.mktemp("smoke") / "run"
    words = ("run", "legal_bert", "--smoke", "--run-dir", str(folder))
    done = fork_server.run(*words, timeout=550, most_mb=8000, fork_memory=True)
    assert done.code == 0, done.err[-3000:]
    assert "The budget holds." in done.out
    return folder


@pytest.fixture
def copied(smoke: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smoke, tmp_path / "copied"))


def report_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())
    return found


def test_the_report_has_the_names_that_other_programs_read(smoke: Path) -> None:
    report = report_of(smoke)
    assert set(report) == {
        "schema_version",
        "recipe",
        "scale",
        "task",
        "created",
        "environment",
        "notes",
        "models",
        "budget",
        "verdicts",
        "ok",
    }
    names = {model["name"] for model in report["models"]}
    assert names >= {
        "teacher",
        "teacher-onnx",
        "teacher-dynamic-int8",
        "student",
        "slim",
        "slim-static-int8",
        "int8",
        "tfidf-svm",
    }
    for model in report["models"]:
        assert set(model) >= {
            "name",
            "stage",
            "format",
            "path",
            "parameters",
            "bytes",
            "bits_per_parameter",
            "dtypes",
            "accuracy",
            "latency_ms",
            "peak_rss_mb",
            "load_ms",
        }
        assert set(model["accuracy"]) == {"metric", "value", "ci95", "n", "all"}
        assert set(model["latency_ms"]) == {
            "p50",
            "p95",
            "p99",
            "batch",
            "sequence_length",
            "threads",
            "runtime",
            "runs",
        }
    limits = {verdict["limit"]: verdict for verdict in report["verdicts"]}
    assert set(limits) == {"disk_mb", "latency_ratio", "drop:accuracy"}
    assert set(limits["drop:accuracy"]) >= {"difference", "lower_bound", "confidence", "n", "n_needed", "verdict"}


@pytest.mark.slow
def test_a_lock_repeats_the_run_and_names_what_it_needs(copied: Path) -> None:
    lock = copied / "recipe.lock.json"
    done = process("run", "--from-lock", lock, "--run-dir", copied)  # the recipe's own model and data, again
    assert done.returncode == 0, done.stderr[-2000:]
    assert "done in" not in done.stderr  # the options are the same, so every stage was done before
    assert done.stderr.count("done before, kept") == 11
    other = process("run", "--from-lock", lock, "--run-dir", copied, "--task.max-train-examples", "40")
    assert other.returncode == 2
    assert "the run was made with data@" in other.stderr
    model = shutil.copytree(copied / "smoke" / "model", copied.with_name("another model"))
    (model / "more.txt").write_text("more")
    assert "holds something else" in refused("run", "--from-lock", lock, "--run-dir", copied, "--base", model)


@pytest.mark.slow
def test_the_recipes_own_run_is_pushed_and_proved_from_the_hub(smoke: Path, tmp_path: Path) -> None:
    with serve() as hub:
        words = [sys.executable, "-m", "hfcompress"]
        again = ["run", "legal_bert", "--smoke", "--run-dir", str(smoke)]  # every stage is done: it is pushed
        for arguments in (
            [*again, "--push-to-hub", "--hub-model-id", "org/smoke", "--license", "mit"],
            ["verify", "org/smoke", "--data", str(smoke / "smoke" / "data")],
        ):
            done = subprocess.run(
                [*words, *arguments], capture_output=True, text=True, env=os.environ | hub.environment(tmp_path)
            )
            assert done.returncode == 0, done.stdout + done.stderr
        assert "holds       data" in done.stdout
        assert set(hub.files("org/smoke")) >= {"model.safetensors", "onnx/model.onnx", "onnx/model_quantized.onnx"}


def test_a_push_without_a_name_and_a_lock_that_is_none_are_refused(tmp_path: Path, smoke: Path) -> None:
    assert "--hub-model-id" in refused("run", "legal_bert", "--smoke", "--push-to-hub", "--run-dir", tmp_path / "run")
    assert "no such file" in refused("run", "--from-lock", tmp_path / "nothing.json")
    assert "is corrupt" in refused("run", "--from-lock", smoke / "report.html")
    lock = smoke / "recipe.lock.json"
    assert "is a lock of legal_bert" in refused("run", "other", "--from-lock", lock)
    assert "the lock says the scale" in refused("run", "legal_bert", "--from-lock", lock, "--scale", "full")
    (tmp_path / "list.json").write_text("[]")
    assert "it holds no object" in refused("run", "--from-lock", tmp_path / "list.json")


def test_every_step_is_smaller_and_the_last_one_is_int8(smoke: Path) -> None:
    models = {model["name"]: model for model in report_of(smoke)["models"]}
    sizes = [models[name]["parameters"] for name in ("teacher", "student", "slim")]
    assert sizes == sorted(sizes, reverse=True)
    assert integer_bytes(models["int8"]["dtypes"]) > 0.9 * models["slim"]["parameters"]
    graphs = sorted(smoke.glob("*/model.onnx"))
    assert sum("int8" in graph.parent.name for graph in graphs) == 4
    assert not [found for graph in graphs for found in saturating_layers(graph)], "the same on every processor"


def test_every_transformers_model_loads_with_stock_classes(smoke: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    for model in report_of(smoke)["models"]:
        if model["format"] == "transformers":
            folder = smoke / model["path"]
            AutoTokenizer.from_pretrained(folder)
            loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
            assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
            assert sum(p.numel() for p in loaded.parameters()) == model["parameters"]


def test_the_page_and_the_card_are_there_and_need_no_network(smoke: Path) -> None:
    page = (smoke / "report.html").read_text()
    assert "The budget holds" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (smoke / "model_card.md").read_text().startswith("---\n")


def test_a_second_run_makes_nothing_again(smoke: Path, fork_server: ForkServer) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.glob("*-*/record.json")}
    done = fork_server.run("run", "legal_bert", "--smoke", "--run-dir", str(smoke), timeout=300)
    assert done.code == 0
    assert "done before, kept" in done.err
    assert "running" not in done.err
    assert {path: path.stat().st_mtime_ns for path in smoke.glob("*-*/record.json")} == before


def test_check_holds_for_what_was_measured_and_fails_for_a_failed_verdict(copied: Path) -> None:
    assert hfcompress("check", copied).returncode == 0
    report = report_of(copied)
    report["verdicts"][0]["ok"] = False
    (copied / "report.json").write_text(json.dumps(report))
    assert hfcompress("check", copied).returncode == 1
    report["verdicts"] = []
    (copied / "report.json").write_text(json.dumps(report))
    assert hfcompress("check", copied).returncode == 1


def test_check_refuses_files_that_are_not_those_that_were_measured(copied: Path) -> None:
    folder = copied / next(model["path"] for model in report_of(copied)["models"] if model["name"] == "int8")
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"more")
    assert "not what was measured" in refused("check", copied)
    shutil.rmtree(folder)
    assert "is gone" in refused("check", copied)


def test_check_of_a_corrupt_report_says_so(copied: Path) -> None:
    (copied / "report.json").write_text("{")
    assert "is corrupt" in refused("check", copied)


def test_predict_answers_from_text_file_and_standard_input(smoke: Path, tmp_path: Path) -> None:
    by_text = hfcompress("predict", smoke, "--text", "the river and the ocean")
    label, score, text = by_text.stdout.rstrip("\n").split("\t")
    assert text == "the river and the ocean"
    assert 0 < float(score) <= 1
    (tmp_path / "texts.txt").write_text("the river and the ocean\n\nof iron\n")
    by_file = hfcompress("predict", smoke, tmp_path / "texts.txt", "--format", "json")
    answers = [json.loads(line) for line in by_file.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == ["the river and the ocean", "", "of iron"]
    assert answers[0]["label"] == label
    by_input = hfcompress("predict", smoke, "--format", "json", stdin="of iron\n")
    assert json.loads(by_input.stdout) == answers[2]


def test_predict_refuses_what_it_cannot_read(smoke: Path, tmp_path: Path) -> None:
    assert "is not UTF-8" in refused("predict", smoke, stdin=b"caf\xe9\n")
    assert "holds no text" in refused("predict", smoke, stdin="")
    assert "no such file" in refused("predict", smoke, tmp_path / "nowhere.txt")
    assert "folder of a finished run" in refused("predict", tmp_path, "--text", "a")


def test_the_report_is_rendered_again_the_same(smoke: Path) -> None:
    before = (smoke / "report.html").read_bytes()
    assert hfcompress("report", smoke).returncode == 0
    assert (smoke / "report.html").read_bytes() == before


def test_an_unknown_option_or_recipe_is_answered_with_the_nearest(tmp_path: Path) -> None:
    done = hfcompress("plan", "legal_bert", "--prune.intermedate-size", "3")
    assert done.returncode == 2
    assert "--prune.intermediate-size" in done.stdout + done.stderr
    assert "did you mean legal_bert?" in refused("run", "legal_brt")
    assert "has small and full" in refused("run", "legal_bert", "--scale", "huge")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget.disk-mb", "0"], "--budget.disk-mb 0: a limit must be above 0"),
        (["--budget.disk-mb", "inf"], "--budget.disk-mb inf: a limit must be a finite number; leave it out for none"),
        (["--budget.disk-mb", "0.01"], "would take"),
        (["--base", "nobody/nothing"], "nobody/nothing"),
        (["--base", "./nowhere"], "no such folder"),
        (["--distill.num-hidden-layers", "9"], "--distill.num-hidden-layers 9"),
        (["--prune.num-attention-heads", "9"], "--prune.num-attention-heads 9"),
        (["--qat.bits", "4"], "--qat.bits 4"),
        (["--task.text-column", "body"], "--task.text-column body"),
    ],
)
def test_a_mistake_is_one_line_with_the_option(copied: Path, options: list[str], words: str) -> None:
    """In a run that is done already, so that only what the option touches is made anew."""
    assert words in refused("run", "legal_bert", "--smoke", "--run-dir", copied, *options)


def test_a_pickled_or_truncated_teacher_is_refused(copied: Path, tmp_path: Path) -> None:
    source = copied / next(model["path"] for model in report_of(copied)["models"] if model["name"] == "teacher")
    teacher = Path(shutil.copytree(source, tmp_path / "teacher"))
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    run = ("run", "legal_bert", "--smoke", "--run-dir", copied, "--teacher", teacher)
    assert "damaged or cut short" in refused(*run)
    weights.rename(teacher / "pytorch_model.bin")
    assert "is a pickle" in refused(*run)


def test_a_teacher_of_another_task_is_refused(copied: Path, tmp_path: Path) -> None:
    from hfcompress.recipes import tiny

    other = tiny.write_model(tmp_path / "other", labels=["yes", "no"])
    line = refused("run", "legal_bert", "--smoke", "--run-dir", copied, "--teacher", other)
    assert "was made for the labels yes, no" in line


def test_plan_predicts_without_network_and_names_what_would_fit() -> None:
    short = ("--measure.sequence-length", "8")  # a plan times this machine's layers: of a few tokens in no time
    done = hfcompress("plan", "legal_bert", "--scale", "full", "--format", "json", *short)
    found = json.loads(done.stdout)
    assert done.returncode == 0
    disk = {model["name"]: model["disk_mb"] for model in found["models"]}
    assert disk["teacher-dynamic-int8"] == pytest.approx(336, rel=0.02)
    assert disk["int8"] < 150
    assert any("335 MB in int8 and 168 MB in 4 bits" in line for line in found["advice"])
    tight = hfcompress("plan", "legal_bert", "--scale", "full", "--budget.disk-mb", "20", *short)
    assert tight.returncode == 1
    assert "FAILS" in tight.stdout
    assert "hidden" in tight.stdout or "layers" in tight.stdout


def test_the_options_that_the_guide_shows_are_not_refused() -> None:
    """No limit that the plan says cannot hold; the latency is this machine's and may be anything."""
    guide = (ROOT / "docs" / "guides" / "classifier.md").read_text(encoding="utf-8")
    lines = re.findall(r'make legal-bert ARGS="([^"]+)"', guide)
    assert lines
    for line in lines:
        done = hfcompress("plan", "legal_bert", *line.split())
        assert re.search(r"^disk_mb .* holds$", done.stdout, re.M), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_contract_clauses_run_this_way_to_their_verdicts(real_data: Path, tmp_path: Path) -> None:
    """The recipe on other data by options alone, a few steps a stage: it is not the accuracy that is tested.

    Of the 4,570 training texts 400 are read, and of the 834 of the test the same share: a teacher's answers to all of
    them would take most of the time.
    """
    once = [part for stage in ("finetune", "distill", "prune", "qat") for part in (f"--{stage}.max-steps", "5")]
    done = process(
        "run",
        "legal_bert",
        "--task.dataset",
        real_data / "cuad",
        "--task.data-files",
        "review_*.parquet",
        "--task.max-train-examples",
        "400",
        "--task.max-length",
        "64",
        "--run-dir",
        tmp_path / "clauses",
        "--measure.sequence-length",
        "64",
        "--measure.runs",
        "10",
        *once,
    )
    assert done.returncode in (0, 1), done.stderr[-3000:]
    verdicts = {verdict["limit"]: verdict for verdict in report_of(tmp_path / "clauses")["verdicts"]}
    assert verdicts["disk_mb"]["ok"]
    assert verdicts["drop:accuracy"]["n"] == round(834 * 400 / 4570)


def killed_in_a_new_stage(folder: Path, killed: set[str]) -> bool:
    """Run until a stage begins that was not killed before, then SIGKILL amid it; False when the run ended.

    A stage that is over before the time to kill it must not let the next one slip by: that one is killed as it begins.
    """
    command = [sys.executable, "-m", "hfcompress", "run", "legal_bert", "--smoke", "--run-dir", str(folder)]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    timer: threading.Timer | None = None
    for line in run.stderr:
        begun = re.match(r"(\S+): (running|resuming) ", line)
        if begun and begun[1] not in killed:
            killed.add(begun[1])
            if timer is not None:
                run.kill()
                break
            timer = threading.Timer(0.2 + 0.4 * (len(killed) % 4), run.kill)
            timer.start()
    run.communicate()
    if timer is None:
        assert run.returncode == 0
        return False
    timer.cancel()
    return True


@pytest.mark.slow
def test_a_run_that_is_killed_in_every_stage_ends_as_if_it_never_was(smoke: Path, tmp_path: Path) -> None:
    folder, killed, kept = tmp_path / "run", set[str](), dict[Path, int]()
    while killed_in_a_new_stage(folder, killed):
        for record in folder.glob("*/record.json"):
            made = record.stat().st_mtime_ns
            assert kept.setdefault(record, made) == made, "a finished stage was made again"
    assert {"teacher", "student", "slim", "int8", "teacher-onnx", "slim-static-int8", "measure"} <= killed
    assert not list(folder.glob("*.part"))
    whole, pieced = report_of(smoke), report_of(folder)
    for one, other in zip(whole["models"], pieced["models"], strict=True):
        assert one["accuracy"] == other["accuracy"], one["name"]
        assert one["bytes"] == other["bytes"], one["name"]


def test_the_int8_student_is_replayed_and_shadowed_against_its_teacher(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher answers the test texts, which are recorded; the run's int8 model is asked the same, twice over."""
    from hfcompress.cli import dispatch
    from hfcompress.rollout.traffic import read

    rows = [json.loads(line) for line in (smoke / "smoke" / "data" / "test.jsonl").read_text().splitlines()]
    requests = [
        json.dumps({"input": row["text"], "group": row["group"], "outcome": {"label": row["label"]}}) for row in rows
    ]
    teacher = str(smoke / next(model["path"] for model in report_of(smoke)["models"] if model["name"] == "teacher"))

    def given(lines: list[str]) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))

    given(requests)
    traffic = tmp_path / "traffic.jsonl"
    assert dispatch(["record", teacher, str(traffic)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(read(traffic).events) == len(rows)

    assert dispatch(["replay", teacher, str(smoke), str(traffic)]) == 0
    replayed = json.loads(capsys.readouterr().out)
    models = {model["name"]: model["accuracy"]["value"] for model in report_of(smoke)["models"]}
    truth = replayed["against_truth"]["accuracy"]
    assert truth["old"] == pytest.approx(models["teacher"])  # the same texts: replay and report measure the same
    assert truth["new"] == pytest.approx(models["int8"])
    assert set(replayed["latency_ms"]) == {"old", "new"}

    given([str(event.input) for event in read(traffic).events])
    monkeypatch.setattr("hfcompress.rollout.serving.LAST_WAIT", 300)  # a busy machine starts the second process late
    assert dispatch(["shadow", teacher, str(smoke), str(tmp_path / "shadow.jsonl")]) == 0
    seen = capsys.readouterr()
    shadowed = json.loads(seen.err[seen.err.index("{") :])
    assert shadowed["answered"] == len(rows)
    assert shadowed["compared"] + shadowed["dropped"] == len(rows)
    assert shadowed["failed"] == shadowed["unwritten"] == 0
    arms = [event.arm for event in read(tmp_path / "shadow.jsonl").events]
    assert (arms.count("old"), arms.count("new")) == (len(rows), shadowed["compared"])
    assert shadowed["compared"] > 0
    agreed = round(shadowed["agreement"] * shadowed["compared"])
    assert agreed >= shadowed["compared"] - replayed["changes"]["changed"]
