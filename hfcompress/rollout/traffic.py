"""Recorded traffic: one JSON object a line, what was asked, who answered what, and what came of it.

A line of version 1 has

- `version` (1), `id` (of the request), `time` (seconds since 1970), `input` (the text);
- `user` (whoever is assigned to an arm as a whole), `group` (what the statistics resample: a contract, a session; the
  user where there is none);
- `arm`: the name of the model that answered, "old" or "new" in an A/B test;
- `answer`: {`label`, `score`}, and `propensity`: the probability with which that answer was drawn, where it was
  random;
- `outcome`: what came of the answer, where it is known: metric -> number (a click, a correction), and `label`, the
  true one.

Only `id` and `arm` must be there. Lines that are cut off, are not JSON, hold half a character, lack these, or say what
cannot be (see `problem`) are counted, not fatal: a writer that was killed leaves at most its last line incomplete.
"""

import fcntl
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from hfcompress.errors import UserError

VERSION = 1
LONGEST_LINE = 8_000_000  # bytes; a longer one is no event
LONGEST_NAME = 1000  # characters of an id, an arm, a user, a group, a label or a metric
BEGINNING = b'{"id": '
"""Of each line that a writer writes."""
LARGEST = 1e15  # of an outcome: means and variances of such numbers are finite


@dataclass(frozen=True)
class Event:
    """One line of traffic."""

    id: str
    arm: str
    time: float | None = None
    user: str | None = None
    group: str | None = None
    input: str | None = None
    answer: dict[str, Any] | None = None
    propensity: float | None = None
    outcome: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @property
    def unit(self) -> str:
        """Whoever is independent of the others: the user, or the request alone."""
        return self.user if self.user is not None else f"request {self.id}"


@dataclass
class Traffic:
    """Events in the order of the file, and how many lines were none."""

    events: list[Event]
    broken: int


def assigned(user: str, salt: str, share: float) -> str:
    """The arm of a user, "new" for `share` of them: always the same for the same salt, independent between salts."""
    digest = hashlib.sha256(f"{salt}\n{user}".encode()).digest()
    return "new" if int.from_bytes(digest[:8]) / 2**64 < share else "old"


def read(file: Path) -> Traffic:
    """All events of a file.

    Raises:
        UserError: there is no such file, or no line of it is an event.
    """
    events, broken, first = [], 0, b""
    try:
        with file.open("rb") as lines:
            for line in bounded_lines(lines):
                event = parsed(line)
                if event is not None:
                    events.append(event)
                elif line.strip():
                    broken += 1
                    first = first or line
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{file}: no such file; give recorded traffic, one JSON object a line") from None
    if not events:
        why = "it is UTF-16: iconv -f UTF-16 -t UTF-8 converts it" if b"\0" in first[:100] else wrong_with(first)
        broken_lines = f"{broken} are broken; {why}"
        raise UserError(f"{file}: no line of it is an event ({broken_lines}); see hfcompress record --help")
    return Traffic(events, broken)


def bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Each line of a file; of one that is longer than LONGEST_LINE its beginning, which is no event."""
    while line := stream.readline(LONGEST_LINE):
        whole_line = line.endswith(b"\n") or len(line) < LONGEST_LINE
        while not whole_line:
            rest = stream.readline(LONGEST_LINE)
            whole_line = rest.endswith(b"\n") or len(rest) < LONGEST_LINE
        yield line


def parsed(line: bytes) -> Event | None:
    """The event of a line; None when it is cut off, not JSON, or lacks what every event has."""
    event = event_or_problem(line)
    return event if isinstance(event, Event) else None


def wrong_with(line: bytes) -> str:
    """Why a line is no event."""
    found = event_or_problem(line)
    return found if isinstance(found, str) else "nothing stands in it"


def event_or_problem(line: bytes) -> Event | str:
    """The event of a line, or why it is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # the last: brackets, thousands deep
        return "the first is not JSON"
    if not isinstance(entry, dict):
        return "the first is no JSON object"
    if missing := [name for name in ("id", "arm") if name not in entry]:
        return f"the first has no {missing[0]}"
    known = {name: entry[name] for name in Event.__dataclass_fields__ if name in entry}
    try:
        event = Event(**known | {"id": str(entry["id"]), "arm": str(entry["arm"])})
    except ValueError:  # a number of more digits than Python turns into text
        return "the first has an id of too many digits"
    return problem(event) or event


def problem(event: Event) -> str | None:
    """What an event says that cannot be counted with; None where nothing is wrong."""
    if event.version != VERSION:
        return f"the first is not of version {VERSION}"
    answer, propensity = event.answer, event.propensity
    if not isinstance(event.outcome, dict) or outcome_problem(event.outcome):
        return "an outcome is no object of metric -> number"
    if not all(is_text(name) and len(name) <= LONGEST_NAME for name in (event.id, event.arm)):
        return f"an id or arm is longer than {LONGEST_NAME} characters, or holds half a character"
    if not all(name is None or (is_text(name) and len(name) <= LONGEST_NAME) for name in (event.user, event.group)):
        return f"a user or group is no text of at most {LONGEST_NAME} characters"
    if event.input is not None and not is_text(event.input):
        return "an input is no text"
    if answer is not None and not (isinstance(answer, dict) and is_name(answer.get("label"))):
        return "an answer has no label"
    if propensity is not None and not (is_number(propensity) and 0 < propensity <= 1):
        return "a propensity does not lie between 0 and 1"
    return None if event.time is None or is_number(event.time) else "a time is no number"


def outcome_problem(outcome: dict[str, Any]) -> str | None:
    """What of an outcome cannot be counted with: a number or a name out of range; None where nothing is wrong."""
    for name, value in outcome.items():
        if not is_name(name):
            return f"the name of a metric is a text of at most {LONGEST_NAME} characters"
        if name == "label" and not is_name(value):
            return f"label is a text of at most {LONGEST_NAME} characters"
        if name != "label" and not (is_number(value) and abs(value) <= LARGEST):
            return f"{name[:40]} is no number between {-LARGEST:g} and {LARGEST:g}"
    return None


def is_name(value: Any) -> bool:
    """Whether a value is a text short enough for a name."""
    return is_text(value) and len(value) <= LONGEST_NAME


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def is_text(value: Any) -> bool:
    """A string of whole characters: JSON can hold half of one (a lone surrogate), which no tokenizer takes."""
    return isinstance(value, str) and value == whole(value)


def whole(text: str) -> str:
    """A question mark in place of every half character."""
    return text.encode("utf-8", errors="replace").decode()


def as_line(event: Event) -> bytes:
    return whole(json.dumps(asdict(event), ensure_ascii=False)).encode() + b"\n"


def refuse_other_content(file: Path) -> None:
    """Refuse to append to a file that is no traffic: its first line is neither an event nor the beginning of one.

    Raises:
        UserError: it holds something else.
    """
    if not file.is_file():
        return
    with file.open("rb") as stream:
        first = next(bounded_lines(stream), b"")
    begun = first.rstrip(b"\n")
    torn = begun.startswith(BEGINNING) or (BEGINNING.startswith(begun) and first != b"{\n")  # that is indented JSON
    if not torn and parsed(first) is None:
        raise UserError(f"{file} holds something other than traffic ({wrong_with(first)}); give another file")


class Writer:
    """Appends events to a file; every line is handed to the system whole before the next begins.

    Args:
        file: where; when it is larger than `rotate_mb` it is renamed to NAME.1, NAME.2, ... and begun anew.

    Raises:
        UserError: another process writes to this file, the system does not let it be written, it holds something
            other than traffic, or `rotate_mb` is not above 0.
    """

    def __init__(self, file: Path, rotate_mb: float = 100.0) -> None:
        if not rotate_mb > 0:
            raise UserError(f"--rotate-mb {rotate_mb:g}: must be above 0")
        self.file, self.limit = file, rotate_mb * 1e6
        self.torn = False
        """Whether the file's last line was cut off when the writer before this one was killed."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            refuse_other_content(file)
            self._open()
            if self.stream.tell() and not ends_whole(file):
                self.stream.write(b"\n")  # a killed writer's last line stays apart from the next
                self.torn = True
        except OSError as error:
            raise UserError(f"{file} cannot be written ({error.strerror}); make room, or give another file") from None

    def _open(self) -> None:
        stream = self.file.open("ab", buffering=0)  # nothing is kept back that a full disk would bring out later
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.close()
            raise UserError(f"another process writes to {self.file}; give this one a file of its own") from None
        self.stream = stream

    def write(self, event: Event) -> None:
        """Append one line, whole or not at all.

        Raises:
            OSError: the disk did not take it, as when it is full.
        """
        if self.stream.tell() > self.limit:
            with suppress(OSError):  # where there is no room for a new file, the old one may still take a line
                self._rotate()
        start, line = self.stream.tell(), memoryview(as_line(event))
        try:
            while line:
                line = line[self.stream.write(line) :]
        except OSError:
            with suppress(OSError):
                self.stream.seek(self.stream.truncate(start))
            raise

    def _rotate(self) -> None:
        full, before = next(n for n in map(self.numbered, range(1, 10**9)) if not n.exists()), self.stream
        self.file.rename(full)
        try:
            self._open()
        except OSError:
            full.rename(self.file)
            raise
        before.close()

    def numbered(self, number: int) -> Path:
        return self.file.with_name(f"{self.file.name}.{number}")

    def close(self) -> None:
        self.stream.close()


def ends_whole(file: Path) -> bool:
    """Whether the last line of a file that is not empty is complete."""
    with file.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) == b"\n"
