"""Whatever a label, a data set or a model is called, cards, pages, pictures and the terminal show it as text."""

import copy
import functools
import io
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from huggingface_hub import ModelCard
from matplotlib.figure import Figure

from hfcompress import cli
from hfcompress.errors import UserError
from hfcompress.folders.escaping import TerminalOutput, code_span, markdown, one_line, terminal
from hfcompress.report import plots
from hfcompress.report.pages import card_of, page_of

CARDS = Path(__file__).parents[2] / "model_cards"
EVIL = [
    "[click](https://evil.example)",
    "![picture](https://evil.example/x.png)",
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "a | b | c",
    "`code` ``",
    "x\n\n# Heading\n\n- list",
    "x\n---\nlicense: mit\n---\n",
    "---",
    "# Heading",
    "> quotation",
    "1. first",
    "*bold* __bold__ _em_ ~~gone~~",
    "https://evil.example www.evil.example me@evil.example",
    "<https://evil.example>",
    "[ref]: https://evil.example",
    "[^1]",
    "$$x^2$$ $fee$",
    "&lt;b&gt; &#60;b&#62;",
    "\\[x\\](y) \\",
    "right to left \u202egnp.exe",
    "\x1b[31mred\x1b]0;title\x07",
    "bell\x07 csi\x9b31m zero\x00",
    "half \ud800 character",
    "line\u2028separator",
    "{{ config }} {% raw %} {0} {name}",
    "%s %(x)d",
    "__proto__",
    "_hidden",
]  # fmt: skip
MARK = re.compile(
    r"(?<!\\)(?:\\\\)*[`*\[\]|~$]|<[a-zA-Z/!]|&(?!amp;|lt;|gt;|#\d+;)|://|(?i:www\.)|@|[\x00-\x1f\x7f-\x9f\u202e\ud800]"
)


@pytest.mark.parametrize("text", EVIL, ids=range(len(EVIL)))
def test_markdown_is_one_line_without_anything_that_markdown_reads(text: str) -> None:
    found = markdown(text)
    plain = re.sub(r"\\[^A-Za-z0-9 ]", "x", found)  # what is escaped is text
    assert not MARK.search(plain), found
    assert not re.match(r"\s*(?:#|>|[-+=*]|\d+[.)])", plain), found
    assert not re.search(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", plain)


@pytest.mark.parametrize("text", ["Governing Law", "macro_f1", "3,5 %", "Größe (mm)", "日本語", "a-b", "12", "C++"])
def test_ordinary_names_stay_what_they_are(text: str) -> None:
    assert markdown(text) == terminal(text) == one_line(text) == code_span(text) == text


def test_a_code_span_is_not_left() -> None:
    assert code_span("a` <b> `|") == "a' <b> '\\|"


def test_the_terminal_gets_no_orders_and_json_stays_the_same_value() -> None:
    assert terminal("a\x1b[31mb\tc\n") == "a\\u001b[31mb\tc\n"
    for text in EVIL:
        line = terminal(json.dumps(text, ensure_ascii=False))
        assert json.loads(line) == text
        assert line.encode()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028\ud800]", line)


def renamed(value: Any, names: dict[str, str]) -> Any:
    """The same with other names, in keys and in values."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(entry, names) for key, entry in value.items()}
    if isinstance(value, list):
        return [renamed(entry, names) for entry in value]
    return names.get(value, value) if isinstance(value, str) else value


def poisoned(card: str, evil: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """report.json and details.json of a shipped card, with labels, models, data, notes and machine of that name."""
    report, details = (json.loads((CARDS / card / name).read_text()) for name in ("report.json", "details.json"))
    names = {label: f"{label} {evil}" for label in details.get("labels", [])}
    names |= {row["name"]: f"{row['name']} {evil}" for row in report["models"] if row["format"] != "baseline"}
    if card.startswith("ctr"):  # whose models' names say what is drawn
        names = {}
    report, details = renamed(report, names), renamed(copy.deepcopy(details), names)
    report["notes"].append(evil)
    report["environment"]["cpu"] = evil
    details["data"] = evil
    details["datasets"] = [evil]
    details["base"] = details.get("base", {}) | {"licence_name": evil, "licence_link": evil, "language": evil}
    for row in report["models"]:
        row["latency_ms"]["runtime"] = f"{row['latency_ms']['runtime']} {evil}"
    return report, details


class Page(HTMLParser):
    """The elements of a page and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


KINDS = ["legal_bert-small", "summarize_7b-small", "iot_camera-small", "ctr_embeddings-small"]


@functools.cache
def calm_card_and_page(card: str, drawn: bool) -> tuple[str, str]:
    """The card and the page of a shipped card whose names are harmless, with or without pictures."""
    report, details = poisoned(card, "calm")
    return card_of(report, details, "org/small", {}), page_of(report, details)


@pytest.mark.parametrize("card", KINDS)
@pytest.mark.parametrize("evil", [EVIL[0], EVIL[2], EVIL[3], EVIL[4], EVIL[7], EVIL[20], EVIL[21], EVIL[23], EVIL[26]],
                         ids=range(9))  # fmt: skip
def test_cards_and_pages_show_what_things_are_called(card: str, evil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of one name with their pictures, which take most of the time and have tests of their own below."""
    if not (drawn := evil == EVIL[2]):
        monkeypatch.setattr(plots, "has", lambda _: False)
    plain, plain_page = calm_card_and_page(card, drawn)
    report, details = poisoned(card, evil)
    text = card_of(report, details, "org/small", {})
    assert len(re.findall("`", text)) == len(re.findall("`", plain)), "no code span is left"
    spans = re.compile(r"```.*?```|`[^`\n]*`", re.S)
    body, plain_body = (spans.sub("", t.split("\n---\n", 1)[1]) for t in (text, plain))
    for sign in ("\n#", "\n- ", "\n|", "\n---", "](", "![", "`", "<", "\x1b", "\u202e", "\ud800"):
        found = [re.sub(r"\\.", "", t).count(sign) for t in (body, plain_body)]
        assert found[0] == found[1], sign
    assert len(body.splitlines()) == len(plain_body.splitlines())
    data = ModelCard(text.encode("utf-8").decode()).data
    assert data.pipeline_tag == ModelCard(plain).data.pipeline_tag
    html = page_of(report, details)
    assert ("<svg" in html) is drawn
    assert html.encode("utf-8")
    tags, expected = Page(html), Page(plain_page)
    assert {*tags.tags} == {*expected.tags}
    assert {*tags.attributes} == {*expected.attributes}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", html)


def row_of(name: str) -> dict[str, Any]:
    return {"name": name, "format": "onnx", "bytes": 10**6, "latency_ms": {"p50": 1.0},
            "accuracy": {"metric": "accuracy", "value": 0.5, "ci95": [0.4, 0.6]}}  # fmt: skip


ENTRIES = {evil: {"f1": 0.5, "n": 10 + i} for i, evil in enumerate(EVIL)}
POINTS = [{"kind": evil, "ratio": ratio, "auc": 0.7, "low": 0.6, "high": 0.8} for evil in EVIL for ratio in (2.0, 4.0)]
PICTURES: dict[str, Callable[[], str]] = {
    "bars": lambda: plots.class_bars(ENTRIES, ENTRIES, (EVIL[2], EVIL[17]), 30),
    "dots": lambda: plots.size_latency_accuracy([row_of(evil) for evil in EVIL], EVIL[2], EVIL[17]),
    "steps": lambda: plots.waterfall([(evil, 1.0) for evil in EVIL], EVIL[2], 1),
    "curve": lambda: plots.compression_curve(POINTS, 0.7, {"ratio": 3.0, "auc": 0.7}, 0.01),
}
"""What draws names that are all evil."""


def require_text(picture: str) -> None:
    """A whole picture of nothing but lines and text."""
    tree = ElementTree.fromstring(plots.standalone(picture).encode("utf-8"))
    tags = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert tags <= {"svg", "g", "path", "text", "tspan", "defs", "style", "use", "clipPath", "rect", "title"}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_whole_and_hold_text(name: str) -> None:
    require_text(PICTURES[name]())


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_what_a_picture_writes_and_is_described_by_is_text(evil: str) -> None:
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(2, 1), dpi=plots.POINTS)
        figure.suptitle(evil)
        picture = plots.svg(figure, evil)
    require_text(picture)


def run_main(monkeypatch: pytest.MonkeyPatch, verb: Callable[[list[str]], int]) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(cli, "dispatch", verb)
    monkeypatch.setattr(sys, "argv", ["hfcompress", "predict"])
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit):
        cli.main()
    return out.getvalue(), err.getvalue()


def test_what_a_verb_prints_and_refuses_gives_the_terminal_no_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "\x1b[2J\u202e\x9b31m\r"

    def verb(_: list[str]) -> int:
        print(f"{evil}\t0.9\tüber")
        raise UserError(f"label {evil}\nsecond line")

    out, err = run_main(monkeypatch, verb)
    assert out == "\\u001b[2J\\u202e\\u009b31m\\u000d\t0.9\tüber\n"
    assert err == "hfcompress: label \\u001b[2J\\u202e\\u009b31m second line\n"


def test_the_streams_own_qualities_are_kept() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    wrapped = TerminalOutput(stream)
    assert (wrapped.encoding, wrapped.buffer) == ("utf-8", stream.buffer)
    assert wrapped.write("\x1b") == 1
