"""shadow --serve: answers come from OLD at once, whatever NEW does; what was compared can be seen at any time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hfcompress.errors import UserError
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.rollout import serving
from hfcompress.rollout.serving import Shadowed, ShadowTest
from hfcompress.rollout.shadow_server import HOST, LARGEST_BODY, application, asked_for
from hfcompress.rollout.traffic import Event, Writer, read
from hfcompress.tasks.text_classification import TextClassification

LENGTH = 32


class Slow:
    """A new model that takes requests and never answers."""

    process = None

    def __init__(self, room: int = 3) -> None:
        self.room = room
        self.process: Any = self

    def is_alive(self) -> bool:
        return True

    def ask(self, key: int, text: str) -> bool:
        self.room -= 1
        return self.room >= 0

    def answers(self, timeout: float = 0.0) -> Iterator[Any]:
        yield from ()


class Same(Slow):
    """A new model that answers as the old one does."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(10**9)
        self.predictor, self.told = predictor, list[Any]()

    def ask(self, key: int, text: str) -> bool:
        self.told.append((key, serving.answer(self.predictor, text, LENGTH), 1.0))
        return True

    def answers(self, timeout: float = 0.0) -> Iterator[Any]:
        while self.told:
            yield self.told.pop()


@contextlib.contextmanager
def running(test: ShadowTest) -> Iterator[httpx.Client]:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(application(test), host=HOST, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=20, trust_env=False) as client:
        yield client
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def old(exported: Path) -> Predictor:
    return Predictor(exported, 1)


def shadow_test(old: Predictor, new: Any, file: Path) -> ShadowTest:
    return ShadowTest(old, new, Writer(file), LENGTH, Shadowed())


def test_answers_are_the_old_models_and_the_page_shows_what_was_compared(
    old: Predictor, tiny_task: TextClassification, tmp_path: Path
) -> None:
    texts = tiny_task.data.texts("test")[:12]
    with running(shadow_test(old, Same(old), tmp_path / "traffic.jsonl")) as client:
        answers = [client.post("/", json={"input": text, "id": str(i)}).json() for i, text in enumerate(texts)]
        state, page = client.get("/state").json(), client.get("/").text
    expected = old.logits(texts, LENGTH).argmax(axis=1)
    assert [answer["label"] for answer in answers] == [old.labels[i] for i in expected]
    assert [answer["id"] for answer in answers] == [str(i) for i in range(12)]
    assert (state["answered"], state["compared"], state["agreement"], state["dropped"]) == (12, 12, 1.0, 0)
    assert "Agreement 100.00%" in page
    arms = [event.arm for event in read(tmp_path / "traffic.jsonl").events]
    assert (arms.count("old"), arms.count("new")) == (12, 12)


def test_a_new_model_that_hangs_costs_no_answer(old: Predictor, tiny_task: TextClassification, tmp_path: Path) -> None:
    with running(shadow_test(old, Slow(), tmp_path / "traffic.jsonl")) as client:
        for text in tiny_task.data.texts("test")[:10]:
            assert client.post("/", json={"input": text}).status_code == 200
        state = client.get("/state").json()
    assert (state["answered"], state["compared"], state["dropped"]) == (10, 0, 7)


def test_requests_at_the_same_time_are_all_answered(
    old: Predictor, tiny_task: TextClassification, tmp_path: Path
) -> None:
    texts = tiny_task.data.texts("test")[:16]
    found: dict[int, str] = {}
    with running(shadow_test(old, Same(old), tmp_path / "traffic.jsonl")) as client:

        def ask(i: int) -> None:
            found[i] = client.post("/", json={"input": texts[i]}).json()["label"]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(texts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = old.logits(texts, LENGTH).argmax(axis=1)
    assert [found[i] for i in range(len(texts))] == [old.labels[i] for i in expected]


def test_what_is_no_request_is_refused_and_the_server_goes_on(old: Predictor, tmp_path: Path) -> None:
    with running(shadow_test(old, Same(old), tmp_path / "traffic.jsonl")) as client:
        for body in (b"", b"hello", b"[]", b'{"text": "x"}', b'{"input": 3}', b'{"input": ""}', b"[" * 200_000):
            refused = client.post("/", content=body)
            assert refused.status_code == 400
            assert refused.json()["error"]
        assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400
        assert client.post("/", json={"input": "river"}).status_code == 200
        half = client.post("/", content=rb'{"input": "river \ud800", "id": "\ud800"}')
        assert (half.status_code, half.json()["id"]) == (200, "?")
    assert asked_for(b" " * (LARGEST_BODY + 1))[0] is None


def test_a_full_disk_costs_lines_and_no_answer(old: Predictor, tmp_path: Path) -> None:
    class Full(Writer):
        def write(self, event: Event) -> None:
            raise OSError(28, "No space left on device")

    test = ShadowTest(old, Same(old), Full(tmp_path / "traffic.jsonl"), LENGTH, Shadowed())  # type: ignore[arg-type]
    request = {"id": "1", "input": "river"}
    test.compare(request, test.answer(request))
    assert (test.state.answered, test.state.compared, test.state.unwritten) == (1, 1, 2)


def test_a_port_that_is_taken_is_named(old: Predictor, tmp_path: Path) -> None:
    import socket

    from hfcompress.rollout.shadow_server import serve

    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--serve {port}: the port cannot be opened"):
            serve(shadow_test(old, Same(old), tmp_path / "traffic.jsonl"), port)


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(exported: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    words = ["shadow", exported, exported, tmp_path / "traffic.jsonl", "--serve", port]
    call = [sys.executable, "-m", "hfcompress", *map(str, words)]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        with httpx.Client(base_url=f"http://{HOST}:{port}", trust_env=False) as client:
            for _ in range(600):
                with contextlib.suppress(httpx.ConnectError):
                    if client.get("/state").status_code == 200:
                        break
                time.sleep(0.1)
            assert client.post("/", json={"input": "river ocean"}).status_code == 200
            while not client.get("/state").json()["compared"]:  # the new model's process is still loading
                time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 0, stderr
    found = json.loads(stderr[stderr.index("{") :])
    assert (found["answered"], found["agreement"]) == (1, 1.0)
