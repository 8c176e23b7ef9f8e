"""replay, record and shadow: two models on recorded requests, and a second model that can harm nobody."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcompress.errors import UserError
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.rollout import counterfactual, replay, serving
from hfcompress.rollout.traffic import Event, Writer, read
from hfcompress.tasks.text_classification import TextClassification

LENGTH = 32


@pytest.fixture(scope="module")
def good(tiny_teacher: Path) -> Predictor:
    return Predictor(tiny_teacher, threads=1)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Predictor:
    """The same model with its labels mixed up."""
    import torch

    from hfcompress.architectures.models import load_classifier, load_tokenizer, save

    out = tmp_path_factory.mktemp("broken")
    network = load_classifier(tiny_teacher)
    with torch.no_grad():
        network.classifier.weight.copy_(network.classifier.weight.roll(1, dims=0))
        network.classifier.bias.copy_(network.classifier.bias.roll(1, dims=0))
    save(network, load_tokenizer(tiny_teacher), out)
    return Predictor(out, threads=1)


@pytest.fixture(scope="module")
def traffic(tiny_task: TextClassification) -> list[Event]:
    data = tiny_task.data
    rows = zip(data.texts("test"), data.label_ids("test"), data.groups("test"), strict=True)
    return [
        Event(id=str(i), arm="old", input=text, group=group, outcome={"label": data.labels[label]})
        for i, (text, label, group) in enumerate(rows)
    ]


def test_the_same_model_changes_nothing(good: Predictor, traffic: list[Event]) -> None:
    replayed = replay.answered(good, good, traffic, LENGTH)
    assert replay.changes(replayed)["changed"] == 0
    assert replay.against_truth(replayed)["accuracy"]["difference"] == 0


def test_a_broken_model_is_seen_in_flips_and_in_the_paired_difference(
    good: Predictor, broken: Predictor, traffic: list[Event]
) -> None:
    replayed = replay.answered(good, broken, traffic, LENGTH)
    changes = replay.changes(replayed)
    assert changes["changed"] == len(traffic)
    assert sum(row["count"] for row in changes["by_label"]) == len(traffic)
    accuracy = replay.against_truth(replayed)["accuracy"]
    assert accuracy["upper_bound"] < -0.5
    assert accuracy["groups"] == len({event.group for event in traffic})


def test_latency_is_that_of_the_recorded_requests(good: Predictor, traffic: list[Event]) -> None:
    found = replay.timed(good, good, traffic[:3], LENGTH)
    assert found["old"]["requests"] == found["new"]["requests"] == 3
    assert 0 < found["old"]["p50"] <= found["old"]["p99"]


def test_models_of_other_labels_and_traffic_without_inputs_are_refused(good: Predictor, traffic: list[Event]) -> None:
    other = Predictor(good.folder, threads=1)
    other.labels = ["a", "b", "c"]
    with pytest.raises(UserError, match="different labels"):
        replay.answered(good, other, traffic, LENGTH)
    with pytest.raises(UserError, match="no event has an input"):
        replay.answered(good, good, [Event(id="1", arm="old")], LENGTH)


def randomised(good: Predictor, texts: list[str], rng: np.random.Generator) -> list[Event]:
    """Answers drawn with known probabilities; a right one earns 1 with probability 0.9, a wrong one with 0.2."""
    best = good.logits(texts, LENGTH).argmax(axis=1)
    chances = np.full((len(texts), 3), 0.2)
    chances[:, 0] = 0.6
    events = []
    for i, (text, right) in enumerate(zip(texts, best, strict=True)):
        given = rng.choice(3, p=chances[i])
        paid = float(rng.random() < (0.9 if given == right else 0.2))
        label = good.labels[given]
        events.append(
            Event(
                id=str(i),
                arm="old",
                input=text,
                user=str(i // 2),
                answer={"label": label},
                propensity=float(chances[i][given]),
                outcome={"paid": paid},
            )
        )
    return events


def test_what_would_have_been_is_what_is_known_to_be_true(
    good: Predictor, broken: Predictor, tiny_task: TextClassification
) -> None:
    texts = (tiny_task.data.texts("train") + tiny_task.data.texts("test")) * 10
    found = replay.would_have_been(
        replay.answered(good, broken, randomised(good, texts, np.random.default_rng(0)), LENGTH), "paid"
    )
    for name, truth in (("old", 0.9), ("new", 0.2)):
        for estimate in (found[name]["inverse_propensity"], found[name]["doubly_robust"]):
            assert estimate["value"] == pytest.approx(truth, abs=4 * estimate["standard_error"])
            assert estimate["standard_error"] < 0.05
    assert found["recorded"] == pytest.approx(0.2 + 0.7 / 3, abs=0.1)  # the naive mean is neither


def test_estimates_by_hand() -> None:
    match = np.array([True, False, True, False])
    propensity = np.array([0.5, 0.5, 0.25, 0.75])
    outcome, groups = np.array([1.0, 1.0, 0.0, 1.0]), np.arange(4)
    assert counterfactual.inverse_propensity(match, propensity, outcome, groups).value == pytest.approx(2 / 4)
    expected = np.full(4, 0.5)  # 0.5 + (1 - 0.5) / 0.5, 0.5, 0.5 - 0.5 / 0.25, 0.5
    found = counterfactual.doubly_robust(match, propensity, outcome, groups, expected, expected)
    assert found.value == pytest.approx((1.5 + 0.5 - 1.5 + 0.5) / 4)
    assert found.effective_n == pytest.approx((2 + 4) ** 2 / (4 + 16))


def test_without_propensities_nothing_is_said_of_what_would_have_been(good: Predictor, traffic: list[Event]) -> None:
    with pytest.raises(UserError, match="without randomised answers"):
        replay.would_have_been(replay.answered(good, good, traffic, LENGTH), "paid")


def test_requests_are_texts_or_json_and_every_line_is_one() -> None:
    lines = [b"plain text\n", b"\n", b'{"input": "json", "user": "u", "id": "7"}\n', b'{"no": "input"}\n', b"[1]\n"]
    found = list(serving.requests(lines))
    assert [request["input"] for request in found] == ["plain text", "", "json", '{"no": "input"}', "[1]"]
    assert found[2]["id"] == "7"
    assert len({request["id"] for request in found}) == 5
    deep, half = serving.requests([b"[" * 200_000, rb'{"input": "apple \ud800 \ud83c\udf4e", "id": "\udfff"}'])
    assert deep["input"] == "[" * 200_000
    assert (half["input"], half["id"]) == ("apple ? \N{RED APPLE}", "?")


def shadowed(good: Predictor, other: Any, file: Path, texts: list[str]) -> tuple[list[Event], serving.Shadowed]:
    state, writer = serving.Shadowed(), Writer(file)
    lines = io.BytesIO("\n".join(texts).encode())
    try:
        return list(serving.shadow(good, other, lines, writer, LENGTH, state)), state
    finally:
        other.close()
        writer.close()


def test_a_shadowed_model_is_compared_and_both_answers_are_written(
    good: Predictor, broken: Predictor, tiny_task: TextClassification, tmp_path: Path
) -> None:
    texts = tiny_task.data.texts("test")[:30]
    answers, state = shadowed(good, serving.Shadow(broken.folder, LENGTH), tmp_path / "traffic.jsonl", texts)
    assert [event.answer["label"] for event in answers if event.answer] == [
        good.labels[i] for i in good.logits(texts, LENGTH).argmax(axis=1)
    ]
    assert (state.answered, state.compared, state.dropped) == (30, 30, 0)
    assert state.agreed == 0
    assert state.alive
    arms = [event.arm for event in read(tmp_path / "traffic.jsonl").events]
    assert (arms.count("old"), arms.count("new")) == (30, 30)


def hang(*arguments: Any) -> None:
    time.sleep(3600)


def crash(*arguments: Any) -> None:
    os._exit(13)


@pytest.fixture(params=["hang", "crash"])
def useless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(serving, "work", {"hang": hang, "crash": crash}[request.param])
    monkeypatch.setattr(serving, "LAST_WAIT", 0.5)
    monkeypatch.setattr(serving, "QUEUE", 8)
    return serving.Shadow(tmp_path, LENGTH)


def test_a_model_that_hangs_or_dies_delays_and_fails_no_answer(
    useless: Any, good: Predictor, tiny_task: TextClassification, tmp_path: Path
) -> None:
    texts = tiny_task.data.texts("test")[:30]
    answers, state = shadowed(good, useless, tmp_path / "traffic.jsonl", texts)
    assert len(answers) == state.answered == 30
    assert state.compared == 0
    assert state.dropped == 30


def test_a_request_that_the_shadowed_model_cannot_answer_is_counted() -> None:
    class Failing:
        process = None

        def __init__(self) -> None:
            self.keys: list[int] = []

        def ask(self, key: int, text: str) -> bool:
            self.keys.append(key)
            return True

        def answers(self, timeout: float) -> Iterator[Any]:
            while self.keys:
                yield self.keys.pop(), None, 1.0

    state = serving.Shadowed()
    waiting = {3: ({"id": "3", "input": "x"}, "apple")}
    failing = Failing()
    failing.ask(3, "x")
    serving.collect(failing, waiting, None, state, 0.0)  # type: ignore[arg-type]
    assert (state.failed, state.compared, waiting) == (1, 0, {})


def test_drift_is_the_moved_share_of_the_labels() -> None:
    assert serving.drift(["a"] * 500, ["a"] * 300) == 0
    assert serving.drift(["a"] * 500, ["b"] * 500) == 1
    assert serving.drift(["a"] * 500, ["a", "b"] * 250) == pytest.approx(0.5)


def command(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "hfcompress", *map(str, words)]
    return subprocess.run(call, input=stdin, capture_output=True, text=True, env=os.environ, timeout=120)


@pytest.mark.slow
def test_the_three_commands_one_after_the_other(
    tiny_teacher: Path, exported: Path, tiny_task: TextClassification, tmp_path: Path
) -> None:
    texts, file = "\n".join(tiny_task.data.texts("test")[:20]), tmp_path / "traffic.jsonl"
    done = command("record", tiny_teacher, file, stdin=texts)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"20 requests recorded in {file}"]
    assert len(done.stdout.splitlines()) == len(read(file).events) == 20
    done = command("replay", tiny_teacher, exported, file)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changes"] == {"n": 20, "changed": 0, "by_label": [], "examples": []}
    page = tmp_path / "shadow.html"
    done = command("shadow", tiny_teacher, exported, tmp_path / "shadow.jsonl", "--page", page, stdin=texts)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 20
    assert json.loads(done.stderr[done.stderr.index("{") :])["agreement"] == 1.0
    assert "Agreement 100.00%" in page.read_text()
    assert command("replay", tiny_teacher, exported, file, "--metric", "ctr").returncode == 2
