"""push and verify, through the real client and HTTP: what goes up, what is refused, what survives a fault."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hfcompress.cli import dispatch
from hfcompress.errors import UserError
from hfcompress.hub.release import agreed_licence
from hfcompress.tasks.text_classification import TextClassification
from tests.fork_server import Finished, ForkServer
from tests.hub_server import Fault, Hub, serve
from tests.optimum_python import run_optimum

NAME = "org/small"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.fixture
def hub(hub_fork_server: ForkServer) -> Iterator[Hub]:
    """A Hub of its own, and the server that runs its clients."""
    with serve() as running:
        running.clients = hub_fork_server
        yield running


def settings(hub: Hub, **more: str) -> dict[str, str]:
    """The environment of a client of this Hub, with a cache of its own."""
    cache = Path(os.environ["PYTEST_CACHE_OF_HUB"]) / hub.endpoint.rpartition(":")[2]
    return os.environ | hub.environment(cache) | more


def command(hub: Hub, *arguments: str | Path, **environment: str) -> Finished:
    """The command line with this Hub in place of the real one."""
    words = map(str, arguments)
    return hub.clients.run(*words, timeout=600, most_mb=8000, environment=settings(hub, **environment))


def run_code(hub: Hub, code: str, home: Path) -> str:
    """What a reader's own program prints, without this package's help, on another machine: its cache is empty."""
    done = hub.clients.code(code, timeout=600, environment=settings(hub, HF_HOME=str(home / "other")))
    assert done.code == 0, done.err[-2000:]
    return done.out.strip()


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_CACHE_OF_HUB", str(tmp_path))


def push(hub: Hub, run: Path, *options: str, **environment: str) -> Finished:
    return command(hub, "push", run, "--hub-model-id", NAME, "--license", "mit", *options, **environment)


def refused(done: Finished) -> str:
    assert done.code == 2, done.out + done.err
    assert "Traceback" not in done.err
    return done.err.strip().splitlines()[-1]


def test_models_and_evidence_go_up_in_one_commit_and_load_with_stock_tools(
    hub: Hub, finished: Path, tmp_path: Path
) -> None:
    done = push(hub, finished)
    assert done.code == 0, done.err
    assert hub.commits(NAME) == 1
    files = hub.files(NAME)
    assert set(files) >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "onnx/model.onnx",
        "onnx/model_quantized.onnx",
        "report.json",
        "report.html",
        "plot.svg",
        "recipe.lock.json",
        "records/teacher.json",
        "records/int8.json",
    }
    stock = """
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokens = AutoTokenizer.from_pretrained("org/small")(["the river with iron"], return_tensors="pt")
print(AutoModelForSequenceClassification.from_pretrained("org/small")(**tokens).logits.tolist())
"""
    graphs = """
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer
tokens = AutoTokenizer.from_pretrained("org/small")(["the river with iron"], return_tensors="pt")
for file in ("model.onnx", "model_quantized.onnx"):
    network = ORTModelForSequenceClassification.from_pretrained("org/small", subfolder="onnx", file_name=file)
    print(network(**tokens).logits.tolist())
"""
    logits = np.array(json.loads(run_code(hub, stock, tmp_path)))
    said = run_optimum(graphs, environment=settings(hub, HF_HOME=str(tmp_path / "other")))
    fp32, int8 = (np.array(json.loads(line)) for line in said.splitlines())
    assert np.abs(fp32 - logits).max() < 1e-4
    assert np.abs(int8 - logits).max() < 0.5


def test_the_card_passes_the_hubs_own_validation_and_says_where_each_figure_is_from(hub: Hub, finished: Path) -> None:
    from huggingface_hub import ModelCard

    push(hub, finished)
    card = ModelCard(hub.files(NAME)["README.md"].decode())
    assert card.data.license == "mit"
    report = json.loads((finished / "report.json").read_text())
    claimed = next(model for model in report["models"] if model["name"] == "int8")["accuracy"]
    results = {result.metric_type: result for result in card.data.eval_results or []}
    assert results["accuracy"].metric_value == pytest.approx(claimed["value"], abs=1e-6)
    assert results["accuracy"].metric_args == {"n": claimed["n"], "ci95": claimed["ci95"]}
    for result in card.data.eval_results or []:
        assert {"n", "ci95"} <= set(result.metric_args), result.metric_name or result.metric_type
    assert 'file_name="model_quantized.onnx"' in card.text
    assert "The budget holds." in card.text


def test_a_push_without_changes_uploads_and_commits_nothing(hub: Hub, finished: Path) -> None:
    push(hub, finished)
    before = hub.uploaded
    assert push(hub, finished).code == 0
    assert (hub.uploaded, hub.commits(NAME)) == (before, 1)


def test_no_reader_sees_half_a_model_and_what_arrived_is_not_sent_again(hub: Hub, finished: Path) -> None:
    hub.faults.append(Fault("POST", "/commit/", 500))
    assert "run the same command again" in refused(push(hub, finished))
    assert hub.files(NAME) == {}
    before = hub.uploaded
    assert before > 0
    assert push(hub, finished).code == 0
    assert hub.uploaded == before
    assert hub.commits(NAME) == 1


def test_files_of_an_earlier_push_that_are_no_longer_made_are_removed(hub: Hub, finished: Path, copied: Path) -> None:
    push(hub, finished)
    details = json.loads((copied / "details.json").read_text())
    (copied / "details.json").write_text(json.dumps(details | {"deliver": ["teacher", "int8"]}))
    assert push(hub, copied).code == 0
    assert "onnx/model.onnx" not in hub.files(NAME)
    assert "onnx/model_quantized.onnx" in hub.files(NAME)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("POST", "repos/create", 401), "hf auth login"),
        pytest.param(Fault("POST", "repos/create", 403), "may not read or write", marks=pytest.mark.slow),
        (Fault("POST", "repos/create", 409), "the name is taken"),
        (Fault("POST", "preupload", 403), "may not read or write"),
        (Fault("POST", "/commit/", 409), "taken, or somebody else pushed"),
        pytest.param(Fault("POST", "preupload", 429, {"Retry-After": "1"}), "slow down", marks=pytest.mark.slow),
        (Fault("POST", "/commit/", 500), "the Hub answered 500"),
        pytest.param(Fault("PUT", "/lfs/store/", "corrupt"), "the Hub answered 422", marks=pytest.mark.slow),
    ],
)
def test_what_the_hub_refuses_is_one_line_and_the_next_push_succeeds(
    hub: Hub, finished: Path, fault: Fault, said: str
) -> None:
    hub.faults.append(fault)
    assert said in refused(push(hub, finished))
    assert not hub.repositories.get(NAME) or hub.commits(NAME) == 0
    assert push(hub, finished).code == 0
    assert hub.commits(NAME) == 1


@pytest.mark.parametrize("kind", ["cut", 500])
def test_an_upload_that_fails_on_the_way_is_tried_again(hub: Hub, finished: Path, kind: str | int) -> None:
    hub.faults.append(Fault("PUT", "/lfs/store/", kind))
    assert push(hub, finished).code == 0
    assert not hub.faults
    assert hub.commits(NAME) == 1


def test_a_commit_whose_answer_gets_lost_is_not_made_twice(hub: Hub, finished: Path) -> None:
    hub.faults.append(Fault("POST", "/commit/", "cut"))
    assert "cannot be reached; what has arrived is kept" in refused(push(hub, finished))
    done = push(hub, finished)
    assert done.code == 0, done.err
    assert hub.commits(NAME) == 1


@pytest.mark.slow
def test_a_download_that_is_cut_is_one_line_and_the_next_one_proves_whole(
    hub: Hub, finished: Path, tiny_task: TextClassification
) -> None:
    push(hub, finished)
    hub.faults.append(Fault("GET", "/model.safetensors", "cut"))
    asked = ("verify", NAME, "--data", tiny_task.dataset)
    assert "run the same command again" in refused(command(hub, *asked))
    done = command(hub, *asked)
    assert done.code == 0, done.out + done.err
    assert not hub.faults


@pytest.mark.slow
def test_a_push_that_is_killed_sends_only_the_rest_when_it_is_repeated(hub: Hub, finished: Path) -> None:
    """The process dies amid one large file; those that had arrived are not sent again."""
    file = next(finished.glob("int8-*")) / "model.onnx"
    last = f"/lfs/store/{hashlib.sha256(file.read_bytes()).hexdigest()}"
    hub.faults.append(Fault("PUT", last, "hang"))
    words = (sys.executable, "-m", "hfcompress", "push", str(finished), "--hub-model-id", NAME, "--license", "mit")
    process = subprocess.Popen(words, env=settings(hub), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert hub.hanging.wait(60)
    while len(hub.contents) < 3:  # the other large files: two models and the run's answers
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert hub.files(NAME) == {}
    before = hub.uploaded
    assert push(hub, finished).code == 0
    assert hub.uploaded - before == file.stat().st_size
    assert hub.commits(NAME) == 1


@pytest.mark.slow
def test_other_bytes_on_the_way_to_a_reader_are_found_out(
    hub: Hub, finished: Path, tiny_task: TextClassification
) -> None:
    push(hub, finished)
    hub.faults.append(Fault("GET", "/onnx/model_quantized.onnx", "corrupt"))
    done = command(hub, "verify", NAME, "--data", tiny_task.dataset)
    assert done.code == 1
    assert "DIFFERS     sha256 of onnx/model_quantized.onnx" in done.out


@pytest.mark.slow
def test_the_cards_lines_load_the_model(hub: Hub, finished: Path, tmp_path: Path) -> None:
    push(hub, finished)
    (code,) = re.findall("```python\n(.*?)```", hub.files(NAME)["README.md"].decode(), re.S)
    assert len([line for line in code.splitlines() if line]) == 5
    said = run_code(hub, code + "print(classify('the river under this lake')[0]['label'])", tmp_path)
    here = command(hub, "predict", finished, "--text", "the river under this lake")
    assert said == here.out.partition("\t")[0]


@pytest.mark.slow
def test_make_push_pushes_the_run_of_a_recipe(hub: Hub, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "legal_bert-small").symlink_to(finished)
    tool = tmp_path / "bin" / "hfcompress"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m hfcompress "$@"\n')
    tool.chmod(0o755)
    makefile = Path(__file__).parents[2] / "Makefile"
    words = ["make", "-C", tmp_path, "-f", makefile, "-o", ".venv/.ready", "push", f"BIN={tool.parent}"]

    def made(*more: str) -> subprocess.CompletedProcess[str]:
        environment = settings(hub) | {"PYTHONPATH": str(makefile.parent)}
        return subprocess.run([*map(str, words), *more], capture_output=True, text=True, env=environment)

    assert "make push RECIPE=legal_bert HUB_MODEL_ID=org/name" in made("RECIPE=legal_bert").stdout
    done = made("RECIPE=legal_bert", f"HUB_MODEL_ID={NAME}", "ARGS=--license mit --private")
    assert done.returncode == 0, done.stderr
    assert hub.commits(NAME) == 1
    assert hub.repositories[NAME].private


def test_a_name_that_holds_another_model_is_taken(hub: Hub, finished: Path) -> None:
    from tests.hub_server import Repository

    hub.repositories[NAME] = Repository(private=False)
    hub.repositories[NAME].branches["main"].append({"config.json": hub.keep(b"{}")})
    assert "holds another model" in refused(push(hub, finished))
    assert set(hub.files(NAME)) == {"config.json"}


def test_private_does_not_publish_in_a_public_repository(hub: Hub, finished: Path) -> None:
    push(hub, finished)
    assert "and public" in refused(push(hub, finished, "--private"))
    assert hub.commits(NAME) == 1


def test_without_a_token_it_is_refused_before_anything_is_sent(hub: Hub, finished: Path) -> None:
    assert "there is no token" in refused(push(hub, finished, HF_TOKEN=""))
    assert not hub.log


def test_no_hub_at_all_is_one_line(hub: Hub, finished: Path) -> None:
    assert "cannot be reached" in refused(push(hub, finished, HF_ENDPOINT="http://127.0.0.1:9"))
    assert "HF_HUB_OFFLINE" in refused(push(hub, finished, HF_HUB_OFFLINE="1"))


def test_a_name_that_is_no_hub_id_is_refused(hub: Hub, finished: Path) -> None:
    done = command(hub, "push", finished, "--hub-model-id", "a/b/c", "--license", "mit")
    assert "org/name" in refused(done)


@pytest.mark.parametrize("name", ["small", "a/b/c", "org/-small", "org/a--b", "org/small.git", "org/" + "a" * 97])
def test_a_dry_run_refuses_a_name_that_no_repository_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"^--hub-model-id .*written org/name") as refusal:
        dispatch(["push", str(tmp_path), "--hub-model-id", name, "--dry-run"])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("licence", ["", "Apache 2.0", "mit\nx: y", "MIT"])
def test_what_cannot_be_a_licence_is_refused_without_the_hub(licence: str) -> None:
    with pytest.raises(UserError, match=r"^--license .*short name, such as apache-2\.0") as refusal:
        agreed_licence({"name": "base", "licence": None}, licence)
    assert "\n" not in str(refusal.value)
    for good in ("mit", "openrail++", "cc-by-4.0"):
        assert agreed_licence({"name": "base", "licence": None}, good) == good


def test_dry_run_prints_files_and_card_and_sends_nothing(hub: Hub, finished: Path) -> None:
    done = push(hub, finished, "--dry-run")
    assert done.code == 0, done.err
    int8 = (next(finished.glob("int8-*")) / "model.onnx").stat().st_size
    assert f"{int8:>12,}  onnx/model_quantized.onnx" in done.out
    assert "# legal_bert-small-int8" in done.out
    assert not hub.log


def test_private_revision_and_pull_request_reach_the_hub(hub: Hub, finished: Path) -> None:
    assert push(hub, finished, "--private", "--revision", "draft").code == 0
    assert hub.repositories[NAME].private
    assert (hub.commits(NAME), hub.commits(NAME, "draft")) == (0, 1)
    done = push(hub, finished, "--create-pr")
    assert "/discussions/1" in done.out
    assert hub.commits(NAME) == 0


def test_a_budget_that_does_not_hold_is_pushed_only_when_asked_and_the_card_says_so_first(
    hub: Hub, copied: Path
) -> None:
    report = json.loads((copied / "report.json").read_text())
    report["ok"] = report["verdicts"][0]["ok"] = False
    (copied / "report.json").write_text(json.dumps(report))
    assert "--allow-failed" in refused(push(hub, copied))
    assert not hub.log
    assert push(hub, copied, "--allow-failed").code == 0
    text = hub.files(NAME)["README.md"].decode().split("---\n", 2)[2].strip()
    assert text.startswith("**The budget does not hold.**")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "names no licence"),
        (("--license", "cc-by-nc-nd-4.0"), "forbids derivatives"),
        (("--license", "aple-2.0"), "must be one of a list"),
    ],
)
def test_a_licence_that_is_unknown_or_forbids_derivatives_is_refused(
    hub: Hub, finished: Path, options: tuple[str, ...], said: str
) -> None:
    assert said in refused(command(hub, "push", finished, "--hub-model-id", NAME, *options))
    assert not hub.uploaded


def test_the_base_models_licence_cannot_be_stated_away(hub: Hub, copied: Path) -> None:
    details = json.loads((copied / "details.json").read_text())
    details["base"]["licence"] = "cc-by-nc-nd-4.0"
    (copied / "details.json").write_text(json.dumps(details))
    assert "is under cc-by-nc-nd-4.0" in refused(push(hub, copied))
    assert not hub.log


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        ("hf_" + "x" * 34, "a token"),
        ("/net/home/someone/models", "a path of this machine"),
        (f"{Path.home()}/models", "a path of this machine"),
    ],
)
def test_tokens_and_home_paths_never_leave_the_machine(hub: Hub, copied: Path, secret: str, kind: str) -> None:
    details = json.loads((copied / "details.json").read_text())
    details["records"][0]["options"]["note"] = secret
    (copied / "details.json").write_text(json.dumps(details))
    said = refused(push(hub, copied))
    assert kind in said
    assert "records/teacher.json" in said
    assert secret not in said
    assert not hub.log


def test_words_that_look_a_little_like_a_token_are_none(hub: Hub, copied: Path) -> None:
    details = json.loads((copied / "details.json").read_text())
    details["records"][0]["options"]["note"] = "risk-allocation-and-indemnification-clauses"
    (copied / "details.json").write_text(json.dumps(details))
    assert push(hub, copied, "--dry-run").code == 0


def test_a_changed_file_is_not_pushed(hub: Hub, copied: Path) -> None:
    file = next(copied.glob("int8-*")) / "model.onnx"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "other bytes" in refused(push(hub, copied))
    assert "other bytes" in refused(command(hub, "check", copied))


@pytest.mark.slow
def test_verify_proves_the_evidence_elsewhere_and_a_changed_model_or_claim_fails(
    hub: Hub, finished: Path, tiny_task: TextClassification
) -> None:
    push(hub, finished)
    asked = ("verify", NAME, "--data", tiny_task.dataset)
    done = command(hub, *asked)
    assert done.code == 0, done.out + done.err
    assert "holds       accuracy on 90 texts" in done.out
    assert "to compare  p50 latency" in done.out
    assert "DIFFERS" not in done.out
    assert "give yours with --data" in refused(command(hub, "verify", NAME))  # the data was a local folder

    files = hub.repositories[NAME].branches["main"][-1]
    report = json.loads(hub.contents[files["report.json"]])
    row = next(model for model in report["models"] if model["name"] == "int8")
    row["accuracy"]["all"]["accuracy"], row["accuracy"]["all"]["ci95"]["accuracy"] = 0.1, [0.05, 0.15]
    hub.repositories[NAME].branches["main"].append(files | {"report.json": hub.keep(json.dumps(report).encode())})
    done = command(hub, *asked)
    assert done.code == 1
    assert "DIFFERS     accuracy on 90 texts" in done.out

    changed = files | {"onnx/model_quantized.onnx": hub.keep(b"not the model")}
    hub.repositories[NAME].branches["main"].append(changed)
    done = command(hub, *asked)
    assert done.code == 1
    assert "DIFFERS     sha256 of onnx/model_quantized.onnx" in done.out


@pytest.mark.slow
def test_predict_answers_from_the_hub_as_from_the_run_also_offline_from_the_cache(hub: Hub, finished: Path) -> None:
    push(hub, finished)
    asked = ("--text", "the river under this lake", "--format", "json")
    here = command(hub, "predict", finished, *asked)
    there = command(hub, "predict", NAME, *asked)
    assert there.code == 0, there.err
    assert there.out == here.out
    assert command(hub, "predict", f"{NAME}@main", *asked).out == here.out
    push(hub, finished, "--revision", "draft")
    assert command(hub, "predict", f"{NAME}@draft", *asked).out == here.out
    assert command(hub, "predict", NAME, *asked, HF_HUB_OFFLINE="1").out == here.out
    assert "not in the cache" in refused(command(hub, "predict", "org/other", *asked, HF_HUB_OFFLINE="1"))
    assert "no such revision" in refused(command(hub, "predict", f"{NAME}@nothing", *asked))


def test_a_lock_says_which_commit_a_name_meant(hub: Hub, finished: Path) -> None:
    push(hub, finished)
    commit = hub.commit_of(NAME, "main")
    code = f"from hfcompress.folders.fetch import fetch, pinned; fetch({NAME!r}); print(pinned({NAME!r}, 'model'))"

    def locked(**environment: str) -> str:
        done = hub.clients.code(code, environment=settings(hub, **environment))
        assert done.code == 0, done.err
        return done.out.strip()

    assert locked() == f"{NAME}@{commit}"
    hub.repositories[NAME].branches["main"].append(dict(hub.repositories[NAME].branches["main"][-1]))
    asked = f"from hfcompress.folders.fetch import pinned; print(pinned({NAME!r}, 'model'))"
    moved = hub.clients.code(asked, environment=settings(hub))
    assert moved.out.strip() == f"{NAME}@{commit}", "what was fetched, and not what has been pushed since"
    del hub.repositories[NAME].branches["main"][-1]
    assert locked(HF_HUB_OFFLINE="1") == f"{NAME}@{commit}", "from the cache"
    assert command(hub, "predict", f"{NAME}@{commit}", "--text", "the river").code == 0


def test_verify_names_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    assert "no such repository" in refused(command(hub, "verify", "org/nothing"))
    (tmp_path / "empty").mkdir()
    assert "no such file" in refused(command(hub, "verify", tmp_path / "empty"))
