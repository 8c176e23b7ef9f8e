"""predict: an answer for every line, in order, whatever stands in the lines."""

import io
import json
import sys
from pathlib import Path

import pytest

from hfcompress.cli import dispatch
from hfcompress.errors import UserError
from hfcompress.folders.lines import as_column, json_line
from hfcompress.recipes import tiny
from hfcompress.rollout.serving import requests
from hfcompress.runs import labeling

ODD = [
    "the river\x0cof iron\u2028and zinc\x85", "", " \t", "a\tb", "\x00 pond", "x\x1cy\x1dz\x1e", "lake", "\U0001f30a",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write_model(tmp_path_factory.mktemp("model"), layers=1))


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert dispatch(["predict", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("form", ["{}\n", "{}", "\ufeff{}\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_line_is_answered_in_order(
    model: str, form: str, end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_bytes(form.format(end.join(ODD)).encode())
    out = asked(capsys, model, str(tmp_path / "t.txt"), "--format", "json")
    assert len(out.splitlines()) == len(ODD)
    assert [json.loads(line)["text"] for line in out.splitlines()] == ODD
    table = asked(capsys, model, str(tmp_path / "t.txt"))
    rows = [line.split("\t") for line in table.splitlines()]
    assert [len(row) for row in rows] == [3] * len(ODD)
    assert [row[2] for row in rows] == [as_column(text) for text in ODD]
    assert [row[0] for row in rows] == [json.loads(line)["label"] for line in out.splitlines()]


def test_standard_input_and_file_are_answered_alike(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "\n".join(ODD).encode()
    (tmp_path / "t.txt").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert asked(capsys, model) == asked(capsys, model, str(tmp_path / "t.txt"))


def test_a_long_file_is_answered_piece_by_piece(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfcompress.formats.runtimes.predictor import Predictor

    sizes = []
    real = Predictor.logits

    def counted(self: Predictor, texts: list[str], max_length: int, batch_size: int = 32) -> object:
        sizes.append(len(texts))
        return real(self, texts, max_length, batch_size)

    monkeypatch.setattr(Predictor, "logits", counted)
    monkeypatch.setattr(labeling, "TEXTS", 4)
    (tmp_path / "t.txt").write_text("".join(f"the river {i}\n" for i in range(10)))
    out = asked(capsys, model, str(tmp_path / "t.txt"))
    assert [line.split("\t")[2] for line in out.splitlines()] == [f"the river {i}" for i in range(10)]
    assert sizes == [4, 4, 2]


def test_a_line_that_is_not_utf8_is_named_before_any_is_answered(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_bytes(b"the river\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"t\.txt is not UTF-8 text \(line 2"):
        dispatch(["predict", model, str(tmp_path / "t.txt")])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", "\ufeff".encode()])
def test_no_line_at_all_is_refused(model: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UserError, match="holds no text"):
        dispatch(["predict", model, str(tmp_path / "t.txt")])


def test_an_answer_is_one_line_for_every_reader() -> None:
    text = "".join(ODD)
    assert len(json_line({"text": text}).splitlines()) == 1
    assert json.loads(json_line({"text": text})) == {"text": text}
    assert as_column("a\tb\r\nc\u2029d") == "a b  c d"


def test_record_answers_every_line_too() -> None:
    lines = ["\ufeffthe river\x0c\r\n", "\n", '{"input": "a\\nb", "id": "7"}\n', "last \ufeff"]
    found = list(requests(line.encode() for line in lines))
    assert [request["input"] for request in found] == ["the river\x0c", "", "a\nb", "last \ufeff"]
    assert found[2]["id"] == "7"
