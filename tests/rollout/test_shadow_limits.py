"""No client can hold the shadow server or fill its memory, no page of another site can write to it, and nothing of it
is left when it ends."""

import asyncio
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.requests import Request
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.rollout import http_limits, serving, shadow_server
from hfcompress.rollout.http_limits import LARGEST_BODY, Refused, body_of
from hfcompress.rollout.serving import Shadowed, ShadowTest
from hfcompress.rollout.shadow_server import HOST, asked_for, configured
from hfcompress.rollout.traffic import Writer, read
from hfcompress.runs.labeling import labeled_texts, together
from hfcompress.tasks.cutting import beginning
from hfcompress.tasks.text_classification import encoded

LENGTH = 32


class Echo:
    """An old model that knows one label; a tokenizer it has none."""

    labels = ("water",)
    function = "softmax"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.asked: list[str] = []

    def logits(self, texts: list[str], max_length: int) -> Any:
        import numpy as np

        time.sleep(self.seconds)
        self.asked += texts
        return np.zeros((len(texts), 1), dtype=np.float32)


class Held(Echo):
    """An old model that answers no request until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Event()

    def logits(self, texts: list[str], max_length: int) -> Any:
        assert self.may.wait(20)
        return super().logits(texts, max_length)


class Silent:
    """A new model that takes everything and answers nothing."""

    def __init__(self) -> None:
        self.process: Any = self

    def is_alive(self) -> bool:
        return True

    def ask(self, key: int, text: str) -> bool:
        return False

    def answers(self, timeout: float = 0.0) -> Iterator[Any]:
        yield from ()


class Server:
    """The server as `serve` configures it, in a thread."""

    def __init__(self, file: Path, old: Any) -> None:
        import uvicorn

        self.test = ShadowTest(old, Silent(), Writer(file), LENGTH, Shadowed())  # type: ignore[arg-type]
        self.server = uvicorn.Server(configured(self.test, 0))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=f"http://{HOST}:{self.port}", timeout=20, trust_env=False, **options)

    def connect(self) -> socket.socket:
        connection = socket.create_connection((HOST, self.port))
        connection.settimeout(20)
        return connection

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "traffic.jsonl", Echo())
    yield running
    running.stop()


def request_of_parts(parts: Iterator[bytes], **headers: str) -> Request:
    """A request whose body comes in parts."""

    async def receive() -> dict[str, Any]:
        part = next(parts, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": listed}, receive)


def test_a_large_body_is_refused_while_it_comes() -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        while sent < 10**9:
            sent += 100_000
            yield b"x" * 100_000

    with pytest.raises(Refused) as refusal:
        asyncio.run(body_of(request_of_parts(parts())))
    assert refusal.value.status == 413
    assert sent <= LARGEST_BODY + 100_000
    sent = 0
    with pytest.raises(Refused):
        asyncio.run(body_of(request_of_parts(parts(), **{"content-length": str(LARGEST_BODY + 1)})))
    assert sent == 0, "what is announced as too large is not read"
    assert asyncio.run(body_of(request_of_parts(iter([b"a", b"b"])))) == b"ab"


def test_the_client_of_a_large_body_is_told_and_cut_off(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 65536

    with server.client() as client:
        assert client.post("/", content=b"x" * (LARGEST_BODY + 1)).status_code == 413
        try:
            status = client.post("/", content=endless()).status_code
        except httpx.HTTPError:  # the connection was closed before the client read the answer
            status = 413
        assert status == 413
        assert client.post("/", json={"input": "x"}).status_code == 200


def test_a_slow_header_is_cut_off_and_others_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "HEADER_SECONDS", 0.5)
    running = Server(tmp_path / "traffic.jsonl", Echo())
    try:
        slow = [running.connect() for _ in range(20)]
        for connection in slow:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        with running.client() as client:
            assert client.post("/", json={"input": "x"}).status_code == 200
            for connection in slow:
                with connection:
                    assert closed(connection)
            second = running.connect()  # the second request of a connection has the same limit
            second.sendall(b"GET /state HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b"200 OK" in second.recv(65536)
            second.sendall(b"GET /sta")
            with second:
                assert closed(second)
    finally:
        running.stop()


def closed(connection: socket.socket) -> bool:
    """Whether the other side ends a connection, whatever it still sends."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def test_a_slow_body_is_answered_with_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "BODY_SECONDS", 0.3)
    running = Server(tmp_path / "traffic.jsonl", Echo())
    try:
        with running.connect() as slow:
            slow.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in slow.recv(65536).partition(b"\r\n")[0]
    finally:
        running.stop()


def test_connections_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "MOST_CONNECTIONS", 3)
    running = Server(tmp_path / "traffic.jsonl", Echo())
    try:
        kept = [running.connect() for _ in range(3)]
        with running.connect() as one_more:
            assert closed(one_more)
        kept[0].sendall(b"GET /state HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200 OK" in kept[0].recv(65536)
        for connection in kept:
            connection.close()
    finally:
        running.stop()


def test_requests_that_wait_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_server, "MOST_WAITING", 2)
    old = Held()
    running = Server(tmp_path / "traffic.jsonl", old)
    try:
        codes: list[int] = []

        def ask() -> None:
            with running.client() as client:
                codes.append(client.post("/", json={"input": "x"}).status_code)
                if codes[-1] == 503:  # only now, however slow the machine: two wait, and a third has come
                    old.may.set()

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        running.stop()
    assert set(codes) == {200, 503}
    assert codes.count(200) >= 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"origin": "http://127.0.0.1:PORT"}, 200),
        ({"origin": "http://localhost:PORT", "host": "localhost:PORT"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://elsewhere.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"host": "elsewhere.example:PORT"}, 400),
        ({"host": "127.0.0.1.elsewhere.example"}, 400),
        ({"host": "[::1"}, 400),
    ],
)
def test_only_pages_and_programs_of_this_machine_write(server: Server, headers: dict[str, str], status: int) -> None:
    headers = {name: value.replace("PORT", str(server.port)) for name, value in headers.items()}
    with server.client() as client:
        found = client.post("/", content=b'{"input": "x"}', headers=headers)
        assert found.status_code == status
        assert server.test.state.answered == (status == 200)
        assert client.get("/state").headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": "x", "outcome": {"ctr": NaN}}',
        b'{"input": "x", "outcome": {"ctr": Infinity}}',
        b'{"input": "x", "outcome": {"ctr": 1e999}}',
        b'{"input": "x", "outcome": {"ctr": 1e300}}',
        b'{"input": "x", "outcome": {"ctr": "yes"}}',
        b'{"input": "x", "outcome": {"ctr": [1]}}',
        b'{"input": "x", "outcome": {"label": 3}}',
        b'{"input": "x", "outcome": [1]}',
        b'{"input": "x", "outcome": 1}',
        b'{"input": "x", "input": "y"}',
        b'{"input": "x", "outcome": {"ctr": 1, "ctr": 0}}',
        b'{"input": "x", "id": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"input": "x", "id": {"a": 1}}',
        b'{"input": "x", "id": ""}',
        b'{"input": "x", "id": true}',
        b'{"input": "x", "id": "' + b"i" * 100_000 + b'"}',
        b'{"input": "x", "user": 1.5}',
        b'{"input": "x", "group": "' + b"i" * 100_000 + b'"}',
        b'{"input": "x", "id": ' + b"9" * 5000 + b"}",
        b'\xff\xfe{"input": "x"}',
        b'{"input": ["x"]}',
        b'{"input": null}',
    ],
    ids=range(22),
)
def test_what_cannot_be_recorded_is_refused_when_it_comes(body: bytes) -> None:
    asked, wrong = asked_for(body)
    assert asked is None
    assert wrong
    assert "\n" not in wrong


def test_outcomes_and_names_that_can_be_counted_are_taken(server: Server, tmp_path: Path) -> None:
    body = {"input": "x", "id": 7, "user": "ü", "group": 3, "outcome": {"ctr": 1, "label": "water"}, "more": [1]}
    with server.client() as client:
        assert client.post("/", json=body).json()["id"] == "7"
    server.stop()  # what was answered is written by then
    (event,) = (e for e in read(tmp_path / "traffic.jsonl").events if e.arm == "old")
    assert (event.id, event.user, event.group) == ("7", "ü", "3")
    assert event.outcome == {"ctr": 1, "label": "water"}


def test_lines_are_answered_without_what_cannot_be_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    (asked,) = serving.requests([b'{"input": "x", "id": "a", "outcome": {"ctr": "yes"}}'])
    assert asked == {"input": "x", "id": "a"}
    assert "a: outcome: ctr is no number" in capsys.readouterr().err


def test_a_client_that_goes_leaves_no_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    running = Server(tmp_path / "traffic.jsonl", Echo(seconds=0.1))
    try:
        with caplog.at_level(logging.WARNING):
            for rest in (b"{", b'{"input": "x"}     '):
                for _ in range(5):
                    with running.connect() as connection:
                        head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 19\r\n\r\n".encode()
                        connection.sendall(head + rest)
            with running.client() as client:
                assert client.post("/", json={"input": "y"}).status_code == 200
    finally:
        running.stop()
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def word_pieces() -> Any:
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "a", "b", "##a", "##b", ",", "é", "日"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def byte_pairs() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("ab", "a"), ("Ġ", "a"), ("b", "b")]
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ab", "aba", "Ġa", "bb", "<pad>"])}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")


def without_words() -> Any:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "<pad>": 3}, [("a", "b")]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")


@pytest.mark.parametrize("make", [word_pieces, byte_pairs, without_words])
def test_a_text_that_is_cut_gives_the_tokens_of_the_whole(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcompress.tasks.cutting.CHARACTERS", 1)
    tokenizer, rng = make(), random.Random(0)
    cut = 0
    for _ in range(300):
        signs = rng.choice(["ab ", "ab", "ab  \n", "a,é日 ", "ab\u0301 ", "aaaab \t"])
        text = "".join(rng.choices(signs, k=rng.randint(0, 4000)))
        part = beginning(tokenizer, text, 20)
        cut += len(part) < len(text)
        assert text.startswith(part)
        whole, short = (tokenizer(t, truncation=True, max_length=20)["input_ids"] for t in (text, part))
        assert whole == short, (signs, len(text), len(part))
    assert (cut > 100) is (make is not without_words)


def test_a_megabyte_is_not_tokenized_for_a_few_tokens(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for unit in ("the river ", "... ", "日本", "a. "):
        assert len(beginning(tokenizer, unit * (1_000_000 // len(unit)), LENGTH)) < 5000
    left = AutoTokenizer.from_pretrained(tiny_model, truncation_side="left")
    assert len(beginning(left, "the river " * 1000, LENGTH)) == 10_000


def test_an_answer_does_not_change_when_its_text_is_cut(exported: Path) -> None:
    predictor = Predictor(exported, 1)
    text = "the river under this lake of iron and apple, " * 2000
    whole = uncut(predictor, text)
    assert (predictor.logits([text], LENGTH) == whole).all()
    assert serving.answer(predictor, text, LENGTH)["label"] == predictor.labels[int(whole[0].argmax())]


def uncut(predictor: Predictor, text: str) -> Any:
    """Logits of a text that is tokenized as a whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hfcompress.formats.runtimes.predictor.beginning", lambda tokenizer, text, length: text)
        return predictor.logits([text], LENGTH)


class Watched:
    """A tokenizer that notes how long the texts are that it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.longest = tokenizer, 0

    def __call__(self, texts: str | list[str], **options: Any) -> Any:
        self.longest = max(self.longest, *(len(text) for text in ([texts] if isinstance(texts, str) else texts)))
        return self.tokenizer(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def test_every_reader_of_texts_cuts_them_before_they_are_tokenized(exported: Path) -> None:
    long = "the river under this lake, " * 40_000  # a megabyte
    predictor = Predictor(exported, 1)
    watched = predictor.tokenizer = cast(Any, Watched(predictor.tokenizer))
    predictor.logits(["a", long], LENGTH)
    serving.answer(predictor, long, LENGTH)
    assert [line for line, _ in labeled_texts(predictor, iter([long, "b"]), LENGTH)] == [long, "b"]
    assert encoded(watched, LENGTH, [long], [0], 0)["length"][0] == LENGTH
    assert 0 < watched.longest < 5000


def test_long_lines_are_asked_few_at_a_time() -> None:
    lines = iter(["a" * 3_000_000] * 5 + ["b"] * 3000)
    assert [len(chunk) for chunk in iter(lambda: together(lines), [])] == [2, 2, 1024, 1024, 953]


PARENT = """
import time
from hfcompress.rollout import serving

def hang(model, max_length, threads, asked, told, loaded):
    serving.end_with_the_parent()
    loaded.set()
    time.sleep(3600)

if __name__ == "__main__":
    serving.work = hang
    other = serving.Shadow(None, 8)
    print(other.process.pid, other.wait_until_loaded(), flush=True)
    time.sleep(3600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_new_models_process_ends_with_its_parent_however_that_ends(tmp_path: Path, number: int) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        child, loaded = parent.stdout.readline().split()
        parent.send_signal(number)
        parent.wait()
    assert loaded == "True"
    assert gone(int(child))


def gone(process: int) -> bool:
    """Whether a process has ended within half a minute."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("served", [False, True])
def test_a_signal_ends_both_models_and_the_summary_is_written(
    exported: Path, tmp_path: Path, number: int, served: bool
) -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    words = ["shadow", exported, exported, tmp_path / "traffic.jsonl", *(["--serve", port] if served else [])]
    with subprocess.Popen(
        [sys.executable, "-m", "hfcompress", *map(str, words)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        if served:
            with httpx.Client(base_url=f"http://{HOST}:{port}", trust_env=False) as client:
                for _ in range(1200):
                    try:
                        client.post("/", json={"input": "the river"})
                        break
                    except httpx.ConnectError:
                        time.sleep(0.1)
                while not client.get("/state").json()["compared"]:
                    time.sleep(0.1)
        else:
            process.stdin.write("the river\n")
            process.stdin.flush()
            process.stdout.readline()
        started = children(process.pid)
        assert started
        process.send_signal(number)
        assert process.stderr is not None
        stderr = process.stderr.read()
        process.wait(60)
    assert process.returncode == (0 if served else {signal.SIGINT: 130}.get(number, 128 + number)), stderr
    found = json.loads(stderr[stderr.index("{") : stderr.rindex("}") + 1])
    assert found["answered"] == 1
    assert "Traceback" not in stderr
    assert all(gone(child) for child in started)


@pytest.mark.slow
def test_the_new_model_is_there_before_the_first_request(exported: Path, tmp_path: Path) -> None:
    words = ["shadow", exported, exported, tmp_path / "traffic.jsonl"]
    done = subprocess.run(
        [sys.executable, "-c", "from hfcompress.rollout import serving; serving.LAST_WAIT = 5.0\n"
         "from hfcompress.cli import main; main()", *map(str, words)],
        input="the river\n" * 12, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stderr[done.stderr.index("{") :])
    assert (found["compared"], found["dropped"]) == (12, 0)
