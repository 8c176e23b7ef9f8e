"""Models and data by name: which revision is read, what the cache holds, and what a fault on the way does."""

import os
import socket
import subprocess
import time
from pathlib import Path

import huggingface_hub
import pytest

from hfcompress.recipes import tiny
from hfcompress.tasks.text_classification import TextClassification
from tests.fork_server import Finished
from tests.hub.test_push import NAME, cache_folder, command, hub, push, refused, settings  # noqa: F401  (two are fixtures)
from tests.hub_server import Fault, Hub, Repository

MODEL, DATA = "org/base", "org/texts"
FETCH = """
import sys
from hfcompress.cli import main
from huggingface_hub import constants
from hfcompress import cli
from hfcompress.folders import fetch as hub
constants.DOWNLOAD_CHUNK_SIZE = 2**14  # what is written at once: these models are smaller than the client's 10 MB
cli.dispatch = lambda arguments: print(hub.fetch(arguments[0], hub.FILES)) or 0
main()
"""
COUNT = """
import sys
from hfcompress import cli
from hfcompress.tasks.text_classification import TextClassification
def count(arguments):
    print(len(TextClassification(dataset=arguments[0]).data.texts("train")))
    return 0
cli.dispatch = count
cli.main()
"""


def asked(hub: Hub, code: str, name: str, **more: str) -> Finished:  # noqa: F811
    """One question put to the package, with the exit codes and the lines of the command line."""
    return hub.clients.code(code, name, timeout=120, environment=settings(hub, **more))


def put(hub: Hub, name: str, folder: Path, branch: str = "main", **more: bytes) -> None:  # noqa: F811
    """A commit with a folder's files."""
    commits = hub.repositories.setdefault(name, Repository(private=False)).branches.setdefault(branch, [{}])
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    commits.append({place: hub.keep(content) for place, content in (files | more).items()})


@pytest.fixture
def model(hub: Hub, tiny_model: Path) -> str:  # noqa: F811
    """A base model on the Hub with a card of its own; on the branch draft it says that it is one."""
    card = b"---\nlicense: apache-2.0\nlanguage: en\n---\n# Base\n"
    put(hub, MODEL, tiny_model, **{"README.md": card})
    put(hub, MODEL, tiny_model, "draft", **{"README.md": card, "draft.json": b"{}"})
    return MODEL


@pytest.fixture
def data(hub: Hub, tmp_path: Path) -> str:  # noqa: F811
    """A data set on the Hub; on the branch short it has a third of the training texts."""
    folder = tiny.write_dataset(tmp_path / "texts")
    put(hub, f"datasets/{DATA}", folder, **{"README.md": b"# Texts\n"})
    lines = (folder / "train.jsonl").read_bytes().splitlines(keepends=True)
    put(hub, f"datasets/{DATA}", folder, "short", **{"README.md": b"# Texts\n", "train.jsonl": b"".join(lines[:80])})
    return DATA


def test_a_model_is_read_at_its_revision_and_offline_from_the_cache(hub: Hub, model: str) -> None:  # noqa: F811
    folder = Path(asked(hub, FETCH, f"{model}@draft").out.strip())
    assert (folder / "draft.json").is_file()
    assert folder.name == hub.commit_of(model, "draft")
    assert "org/base@draft" not in refused(asked(hub, FETCH, model, HF_HUB_OFFLINE="1"))
    assert asked(hub, FETCH, f"{model}@draft", HF_HUB_OFFLINE="1").out.strip() == str(folder)
    assert not (Path(asked(hub, FETCH, model).out.strip()) / "draft.json").exists()
    assert "no such revision" in refused(asked(hub, FETCH, f"{model}@nothing"))


def test_what_a_half_filled_cache_has_not_is_named(hub: Hub, model: str) -> None:  # noqa: F811
    hub.faults += [Fault("GET", "/model.safetensors", "cut")] * 40  # more than the client tries by itself
    assert "run the same command again" in refused(asked(hub, FETCH, model))
    hub.faults.clear()
    begun, size = starts(hub)[-1], len(hub.files(MODEL)["model.safetensors"])
    said = refused(asked(hub, FETCH, model, HF_HUB_OFFLINE="1"))
    assert "and HF_HUB_OFFLINE is set: unset it" in said
    assert "the cache has no model.safetensors of it" in said or "not in the cache" in said  # of huggingface_hub 2
    hub.log.clear()
    assert asked(hub, FETCH, model).code == 0
    (resumed,) = starts(hub)
    arrived = begun + (size - begun) // 2
    if huggingface_hub.__version__.startswith("0."):
        assert arrived - 2**14 < resumed <= arrived, "what had arrived is not sent again"
    else:  # from version 2 on a file of another process is left alone: one that may be damaged
        assert resumed == 0


def starts(hub: Hub) -> list[int]:  # noqa: F811
    """Return from which byte on each request asked for the weights."""
    asked_for = [line for line in hub.log if line.startswith("GET") and "model.safetensors" in line]
    return [int(line.rpartition("bytes=")[2].partition("-")[0]) if "bytes=" in line else 0 for line in asked_for]


def test_a_repository_without_weights_that_are_read_is_refused(hub: Hub, model: str) -> None:  # noqa: F811
    files = dict(hub.repositories[model].branches["main"][-1])
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    hub.repositories[model].branches["main"].append(files)
    assert "has no model.safetensors; only safetensors and ONNX" in refused(asked(hub, FETCH, model))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("GET", "/api/models/", 401), "hf auth login"),
        (Fault("GET", "/api/models/", 403), "may not read or write"),
        (Fault("GET", "/api/models/", 429, {"Retry-After": "7"}), "in 7 s"),
        (Fault("GET", "/api/models/", 500), "the Hub answered 500"),
        (Fault("HEAD", "/resolve/", 403), "may not read or write"),
        (Fault("GET", "/resolve/", 401), "hf auth login"),
    ],
)
def test_what_the_hub_answers_to_a_reader_is_one_line_and_the_next_time_it_is_there(
    hub: Hub,  # noqa: F811
    model: str,
    fault: Fault,
    said: str,
) -> None:
    hub.faults.append(fault)
    assert said in refused(asked(hub, FETCH, model))
    assert asked(hub, FETCH, model).code == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("GET", "/model.safetensors", 500), "the Hub answered 500"),
        (Fault("GET", "/model.safetensors", 429, {"Retry-After": "2"}), "in 2 s"),
    ],
)
def test_a_file_that_the_hub_fails_to_give_once_is_asked_for_again(
    hub: Hub,  # noqa: F811
    model: str,
    fault: Fault,
    said: str,
) -> None:
    """By the client itself (500 by version 0.36, 429 by version 2), or by the same command."""
    hub.faults.append(fault)
    first = asked(hub, FETCH, model)
    assert not hub.faults
    assert first.code == 0 or said in refused(first)
    assert asked(hub, FETCH, model).code == 0


@pytest.mark.slow
def test_text_files_of_the_hub_are_read_as_text(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    for split, name in (("train", "train"), ("test", "held_out"), ("validation", "dev")):
        lines = [f"{split} {i},{('01', 'None')[i % 2]}\n" for i in range(6)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(lines), encoding="utf-8")
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    for split, name in (("train", "train"), ("test", "held_out"), ("dev", "dev")):
        card += f"  - split: {split}\n    path: {name}.csv\n"
    put(hub, "datasets/org/codes", tmp_path, **{"README.md": f"{card}---\n".encode()})
    code = COUNT.replace("print(len(", "print((").replace('.data.texts("train")))', ".data.labels))")
    assert asked(hub, code, "org/codes").out.strip() == "['01', 'None']"
    offline = refused(asked(hub, code, "org/codes", HF_HUB_OFFLINE="1"))
    assert "no test split" in offline, "the card that says it is not asked without network"


@pytest.mark.slow
def test_data_is_read_at_its_revision_and_offline_never_at_another(hub: Hub, data: str) -> None:  # noqa: F811
    assert asked(hub, COUNT, data).out.strip() == "240"
    assert "is not in the cache" in refused(asked(hub, COUNT, f"{data}@short", HF_HUB_OFFLINE="1"))
    assert asked(hub, COUNT, f"{data}@short").out.strip() == "80"
    assert asked(hub, COUNT, f"{data}@short", HF_HUB_OFFLINE="1").out.strip() == "80"
    assert asked(hub, COUNT, data, HF_HUB_OFFLINE="1").code == 0
    assert "no such revision" in refused(asked(hub, COUNT, f"{data}@nothing"))
    assert "org/nothing" in refused(asked(hub, COUNT, "org/nothing", HF_HUB_OFFLINE="1"))


@pytest.mark.slow
def test_a_click_log_is_read_by_name_and_revision(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    from hfcompress.tasks.tabular_classification import Clicks, write_logs

    small = Clicks(users=50, items=50, categories=5, requests=100)
    write_logs(small.data, tmp_path / "log")
    put(hub, "datasets/org/log", tmp_path / "log", "draft")
    code = """
from hfcompress import cli
from hfcompress.tasks.tabular_classification import Clicks
cli.dispatch = lambda arguments: print(len(Clicks(dataset=arguments[0]).data.logs["train"])) or 0
cli.main()
"""
    assert asked(hub, code, "org/log@draft").out.strip() == str(len(small.data.logs["train"]))
    assert asked(hub, code, "org/log@draft", HF_HUB_OFFLINE="1").out.strip() == str(len(small.data.logs["train"]))
    assert "has no train.parquet" in refused(asked(hub, code, "org/log@main"))
    assert "is not in the cache" in refused(asked(hub, code, "org/none", HF_HUB_OFFLINE="1"))


@pytest.mark.slow
def test_a_teacher_is_planned_with_by_name_and_revision(hub: Hub, tiny_teacher: Path) -> None:  # noqa: F811
    put(hub, "org/teacher", tiny_teacher, "draft")
    asked = ("plan", "legal_bert", "--teacher", "org/teacher@draft", "--distill.num-hidden-layers", "2")
    smaller = ("--prune.num-attention-heads", "2", "--prune.intermediate-size", "64")
    smaller += ("--task.max-length", "64", "--measure.sequence-length", "64")  # as many as the teacher has positions
    said = refused(command(hub, *asked, *smaller))
    assert "the Hub's cache does not have it" in said
    assert not hub.log, "a plan needs no network"
    assert command(hub, "predict", "org/teacher@draft", "--text", "the river").code == 0
    done = command(hub, *asked, *smaller)
    assert done.code in (0, 1), done.err
    assert "teacher" in done.out


@pytest.mark.slow
def test_a_run_from_names_carries_licence_and_data_over_and_is_repeated_offline_from_its_lock(
    hub: Hub,  # noqa: F811
    model: str,
    data: str,
    tmp_path: Path,
) -> None:
    """Base and data from the Hub, pushed when done, verified without being told of the data, repeated offline."""
    import json

    from huggingface_hub import ModelCard

    run = tmp_path / "run"
    names = ("--base", f"{model}@draft", "--task.dataset", f"{data}@main")
    done = command(
        hub, "run", "legal_bert", "--smoke", *names, "--run-dir", run, "--push-to-hub", "--hub-model-id", "org/small"
    )
    assert done.code == 0, done.err[-3000:]
    assert f"{hub.endpoint}/org/small/commit/" in done.out
    options = json.loads((run / "recipe.lock.json").read_text())["options"]
    assert options["base"] == f"{model}@{hub.commit_of(model, 'draft')}"
    assert options["task"]["dataset"] == f"{data}@{hub.commit_of(f'datasets/{data}', 'main')}"
    card = ModelCard(hub.files("org/small")["README.md"].decode()).data
    assert (card.license, card.language, card.datasets) == ("apache-2.0", "en", [data])
    assert (card.base_model, card.base_model_relation) == (model, "quantized")

    verified = command(hub, "verify", f"org/small@{hub.commit_of('org/small', 'main')}")
    assert verified.code == 0, verified.out + verified.err
    lock = tmp_path / "lock.json"
    lock.write_bytes(hub.files("org/small")["recipe.lock.json"])
    again = command(hub, "run", "--from-lock", lock, "--run-dir", run, HF_HUB_OFFLINE="1")
    assert again.code == 0, again.err[-3000:]
    assert "done in" not in again.err  # by their commits base and data are the same, so every stage was done before
    assert again.err.count("done before, kept") == 11


@pytest.mark.slow
def test_a_mirror_that_others_wrote_reads_what_was_pushed(
    hub: Hub,  # noqa: F811
    finished: Path,
    tiny_task: TextClassification,
    tmp_path: Path,
) -> None:
    """olah, the one Hub-compatible server of the package index that starts, only reads: it stands between here."""
    if not (python := os.environ.get("OLAH_PYTHON")):
        pytest.skip("OLAH_PYTHON names no python with olah==0.5.4; its huggingface_hub is newer than ours")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here, us = f"127.0.0.1:{port}", hub.endpoint.removeprefix("http://")
    places = ("--hf-netloc", us, "--hf-lfs-netloc", us, "--mirror-netloc", here, "--mirror-lfs-netloc", here)
    words = [python, "-m", "olah.server", "--host", "127.0.0.1", "--port", port, "--hf-scheme", "http", *places]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert push(hub, finished).code == 0
    mirror = subprocess.Popen(words, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, **quiet)  # type: ignore[call-overload]
    try:
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", int(port))) == 0:
                    break
            time.sleep(0.1)
        hub.log.clear()
        done = command(hub, "verify", NAME, "--data", tiny_task.dataset, HF_ENDPOINT=f"http://{here}")
        assert done.code == 0, done.out + done.err
        assert any("/resolve/" in line for line in hub.log), "the mirror asked this Hub"
        assert "the Hub answered 405" in refused(push(hub, finished, HF_ENDPOINT=f"http://{here}"))
    finally:
        mirror.kill()
        mirror.wait()
