"""Requests answered line by line: `record` keeps what was asked and answered, `shadow` asks a second model beside."""

import ctypes
import json
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.folders.escaping import one_line
from hfcompress.folders.lines import BYTE_ORDER_MARK
from hfcompress.rollout.traffic import LONGEST_NAME, Event, Writer, outcome_problem, whole

if TYPE_CHECKING:
    from hfcompress.formats.runtimes.predictor import Answers

QUEUE = 256  # requests that wait for the shadowed model; beyond it they are dropped and counted
WINDOW = 500  # answers whose labels are compared with the first ones, for drift
TIMED = 10_000  # latest requests whose latency is counted
LOADING = 300.0  # seconds that the shadowed model gets before the first request
LAST_WAIT = 30.0  # seconds that the shadowed model gets at the end for what still waits


def requests(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Each line is a request: a JSON object with `input` (and id, user, group, outcome), or the text itself.

    A blank line is a request, too: whoever counts lines finds an answer for each.
    """
    for number, line in enumerate(lines):
        text = line.decode("utf-8", errors="replace").removesuffix("\n").removesuffix("\r")
        if number == 0:
            text = text.removeprefix(BYTE_ORDER_MARK)
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("input"), str):
            entry = {"input": text}
        asked, wrong = request_of(entry)
        if wrong:
            print(f"{one_line(str(asked['id']), 40)}: {wrong}: left out of the record", file=sys.stderr)
        yield asked


def request_of(entry: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A request of what is recorded, with an id, its strings of whole characters alone; and what was wrong with it.

    What is wrong is left out, so that the request can be answered and its line of traffic is one.

    Args:
        entry: an object with `input`, a text, and perhaps id, user, group, outcome.
    """
    asked: dict[str, Any] = {"id": uuid.uuid4().hex, "input": whole(entry["input"])}
    wrong = ""
    for name in ("id", "user", "group"):
        value = entry.get(name)
        if value is None:
            continue
        named = whole(value) if isinstance(value, str) else str(value) if type(value) is int else ""
        if 0 < len(named) <= LONGEST_NAME:
            asked[name] = named
        else:
            wrong = f"{name} is no text of 1 to {LONGEST_NAME} characters"
    outcome = entry.get("outcome")
    if outcome is not None:
        said = outcome_problem(outcome) if isinstance(outcome, dict) else "it is no object of metric -> number"
        if said:
            wrong = f"outcome: {said}"
        else:
            asked["outcome"] = outcome
    return asked, wrong


def answer(predictor: "Answers", text: str, max_length: int) -> dict[str, Any]:
    """The label of one text and its score (see `scores.answer_of`)."""
    from hfcompress.formats.runtimes.scores import answer_of

    return answer_of(predictor, predictor.logits([text], max_length)[0])


def event_of(request: dict[str, Any], arm: str, answered: dict[str, Any]) -> Event:
    """The line of traffic for a request and an answer to it."""
    return Event(
        id=request["id"],
        arm=arm,
        time=round(time.time(), 3),
        input=request["input"],
        answer=answered,
        outcome=request.get("outcome", {}),
        user=request.get("user"),
        group=request.get("group"),
    )


def record(predictor: "Answers", lines: Iterable[bytes], writer: Writer, arm: str, max_length: int) -> Iterator[Event]:
    """Answer every request, write it down, and hand it on."""
    for request in requests(lines):
        event = event_of(request, arm, answer(predictor, request["input"], max_length))
        writer.write(event)
        yield event


@dataclass
class Shadowed:
    """What a shadow test has seen so far."""

    answered: int = 0
    compared: int = 0
    agreed: int = 0
    dropped: int = 0
    failed: int = 0
    unwritten: int = 0
    """Lines that the disk did not take."""
    alive: bool = True
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    old_ms: deque[float] = field(default_factory=lambda: deque(maxlen=TIMED))
    new_ms: deque[float] = field(default_factory=lambda: deque(maxlen=TIMED))
    first_labels: list[str] = field(default_factory=list)
    last_labels: deque[str] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def as_dict(self) -> dict[str, Any]:
        from hfcompress.evaluation.latency import percentiles

        return {
            "answered": self.answered,
            "compared": self.compared,
            "agreement": self.agreed / self.compared if self.compared else None,
            "dropped": self.dropped,
            "failed": self.failed,
            "unwritten": self.unwritten,
            "new_model_runs": self.alive,
            "latency_ms": {n: percentiles(t) for n, t in (("old", self.old_ms), ("new", self.new_ms)) if t},
            "drift": drift(self.first_labels, self.last_labels) if self.answered >= 2 * WINDOW else None,
            "changes": [{"old": a, "new": b, "count": count} for (a, b), count in self.changes.most_common(20)],
        }


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5"><title>shadow</title>
<style>body {{ font: 16px sans-serif; margin: 2em; color-scheme: light dark }} td, th {{ padding: .2em 1em;
text-align: right }} th:first-child {{ text-align: left }}</style></head><body><h1>Shadow test</h1>
<p>{answered:,} requests answered by OLD; NEW {runs}, has answered {compared:,}, missed {dropped:,}, failed
{failed:,}.</p>
<p>Agreement {agreement}; the answers' labels have moved by {drift}.</p>
<table><tr><th>ms a request</th><th>p50</th><th>p95</th><th>p99</th></tr>{rows}</table></body></html>
"""


def page(state: Shadowed) -> str:
    """What is known so far, as a page that loads itself anew."""
    known = state.as_dict()
    rows = "".join(
        f"<tr><th>{name}</th>" + "".join(f"<td>{value:.2f}</td>" for value in found.values()) + "</tr>"
        for name, found in known["latency_ms"].items()
    )
    moved = known["drift"]
    return PAGE.format(
        **{name: known[name] for name in ("answered", "compared", "dropped", "failed")},
        runs="runs" if state.alive else "<strong>has stopped</strong>",
        agreement="unknown yet" if known["agreement"] is None else f"{known['agreement']:.2%}",
        drift=f"an unknown amount (after {2 * WINDOW:,} it is known)" if moved is None else f"{moved:.1%}",
        rows=rows,
    )


def drift(first: Iterable[str], last: Iterable[str]) -> float:
    """How far the shares of the labels differ between two samples: total variation, 0 to 1."""
    one, other = Counter(first), Counter(last)
    return sum(abs(one[label] / one.total() - other[label] / other.total()) for label in one | other) / 2


class Shadow:
    """A second model in a process of its own: it may be slow, hang or die without anybody waiting for it.

    Args:
        model: its folder; threads: its intra-op threads.
    """

    def __init__(self, model: Path, max_length: int, threads: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self.asked: Any = context.Queue(maxsize=QUEUE)
        self.told: Any = context.Queue()
        self.loaded: Any = context.Event()
        self.process = context.Process(
            target=work, args=(model, max_length, threads, self.asked, self.told, self.loaded), daemon=True
        )
        self.process.start()

    def wait_until_loaded(self, seconds: float = LOADING) -> bool:
        """Return whether the model can be asked: False when its process has ended, or takes longer than that."""
        end = time.monotonic() + seconds
        while self.process.is_alive() and time.monotonic() < end:
            if self.loaded.wait(0.2):
                return True
        return False

    def ask(self, key: int, text: str) -> bool:
        """Hand a request over; False when the queue is full or the process gone, and nothing waits."""
        if not self.process.is_alive():
            return False
        try:
            self.asked.put_nowait((key, text))
        except queue.Full:
            return False
        return True

    def answers(self, timeout: float = 0.0) -> Iterator[tuple[int, dict[str, Any] | None, float]]:
        """What has come back: key, answer (None: it failed), milliseconds; waits for the first one that long."""
        try:
            while True:
                yield self.told.get(block=timeout > 0, timeout=timeout or None)
                timeout = 0.0
        except queue.Empty:
            return

    def close(self) -> None:
        self.asked.cancel_join_thread()
        self.process.kill()
        self.process.join()


def work(model: Path, max_length: int, threads: int, asked: Any, told: Any, loaded: Any) -> None:
    """The shadowed model's process: answer until killed; a request that fails is told so."""
    from hfcompress.formats.runtimes.predictor import open_predictor

    end_with_the_parent()
    predictor = open_predictor(model, threads)
    loaded.set()
    while True:
        key, text = asked.get()
        begun = time.perf_counter()
        try:
            found = answer(predictor, text, max_length)
        except Exception:  # whatever the model does, the answers of the other one go on
            found = None
        told.put((key, found, (time.perf_counter() - begun) * 1e3))


def end_with_the_parent() -> None:
    """End this process when the one that started it has ended, however that ended; leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
    if sys.platform == "linux":  # at once, also while a runtime's own code does not let the thread in
        kill_with_parent = 1  # PR_SET_PDEATHSIG of linux/prctl.h
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(kill_with_parent, signal.SIGKILL)


def shadow(
    predictor: "Answers", other: Shadow, lines: Iterable[bytes], writer: Writer, max_length: int, state: Shadowed
) -> Iterator[Event]:
    """Answer every request with the old model at once; compare the new one's answers as they come.

    Both answers are written down, as arms "old" and "new" of the same id.
    """
    yield from answered(ShadowTest(predictor, other, writer, max_length, state), lines)


def answered(test: "ShadowTest", lines: Iterable[bytes]) -> Iterator[Event]:
    """Answer every request of a test, and wait a little at the end for what the new model still owes."""
    for request in requests(lines):
        event = test.answer(request)
        yield event
        test.compare(request, event)
    test.finish()


class ShadowTest:
    """What happens to each request: `answer` first, which waits for the old model alone, then `compare`."""

    def __init__(self, predictor: "Answers", other: Shadow, writer: Writer, max_length: int, state: Shadowed) -> None:
        self.predictor, self.other, self.writer = predictor, other, writer
        self.max_length, self.state = max_length, state
        self.waiting: dict[int, tuple[dict[str, Any], str]] = {}
        self.asked = 0

    def answer(self, request: dict[str, Any]) -> Event:
        """The old model's answer."""
        state, begun = self.state, time.perf_counter()
        event = event_of(request, "old", answer(self.predictor, request["input"], self.max_length))
        state.old_ms.append((time.perf_counter() - begun) * 1e3)
        state.answered += 1
        label = str((event.answer or {})["label"])
        state.last_labels.append(label)
        if len(state.first_labels) < WINDOW:
            state.first_labels.append(label)
        return event

    def compare(self, request: dict[str, Any], event: Event) -> None:
        """Write the answer down, hand the request to the new model, and count what has come back; nothing waits."""
        write_or_count(self.writer, event, self.state)
        self.asked += 1
        if self.other.ask(self.asked, request["input"]):
            self.waiting[self.asked] = (request, str((event.answer or {})["label"]))
        else:
            self.state.dropped += 1
        self.look()

    def look(self, timeout: float = 0.0) -> None:
        """Count the new model's answers that have come, waiting for the first that long."""
        collect(self.other, self.waiting, self.writer, self.state, timeout)
        self.state.alive = self.other.process.is_alive()

    def finish(self) -> None:
        """Give the new model some time for what still waits; the rest is dropped."""
        end = time.monotonic() + LAST_WAIT
        while self.waiting and self.other.process.is_alive() and time.monotonic() < end:
            self.look(0.2)
        self.look()
        self.give_up()

    def give_up(self) -> None:
        """Count what still waits as dropped."""
        self.state.dropped += len(self.waiting)
        self.waiting.clear()


def write_or_count(writer: Writer, event: Event, state: Shadowed) -> None:
    """A full disk costs lines of traffic, which are counted, and no answer."""
    try:
        writer.write(event)
    except OSError:
        state.unwritten += 1


def collect(
    other: Shadow, waiting: dict[int, tuple[dict[str, Any], str]], writer: Writer, state: Shadowed, timeout: float
) -> None:
    """Count the new model's answers that have come."""
    for key, found, milliseconds in other.answers(timeout):
        request, old = waiting.pop(key)
        if found is None:
            state.failed += 1
            continue
        state.new_ms.append(milliseconds)
        state.compared += 1
        state.agreed += found["label"] == old
        if found["label"] != old:
            state.changes[old, found["label"]] += 1
        write_or_count(writer, event_of(request, "new", found), state)
