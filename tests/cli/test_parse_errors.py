"""What cannot be parsed of a command line is refused in one line: the option as typed, what is wrong, what to type."""

import sys

import pytest

from hfcompress.cli import main
from hfcompress.cli.parse_errors import nearest

RUN = "run legal_bert"

REFUSED = {
    "bogus": "bogus: there is no such command; choose from list plan run",
    "pridict x": "pridict: there is no such command; did you mean predict?",
    "--smoke run": "--smoke: a command comes before the options",
    "run": "run: the recipe's name comes first; type hfcompress run RECIPE",
    "plan --device here": "plan: the recipe's name comes first; type hfcompress plan RECIPE --device here",
    "run legal_bart": "there is no recipe legal_bart; did you mean legal_bert",
    "check": "RUN is missing; hfcompress check --help",
    "replay a": "NEW and TRAFFIC are missing",
    "check a b c": "b c: it belongs to no option",
    "predict a --txt b": "--txt: there is no such option; did you mean --text?",
    "predict a --text": "--text: a value is missing; give a text",
    "predict a --format xml": "--format xml: choose from text json",
    "profile a --batch eight": "--batch eight: give a whole number",
    "push a --no-privat": "--no-privat: there is no such option; did you mean --no-private?",
    f"{RUN} --qat.lerning-rate 1": "--qat.lerning-rate: there is no such option; did you mean --qat.learning-rate?",
    f"{RUN} --qat.lerning_rate=1": "--qat.lerning_rate: there is no such option; did you mean --qat.learning-rate?",
    f"{RUN} --max-length 9": "--max-length: there is no such option; did you mean --task.max-length?",
    f"{RUN} --budget.drop.acuracy 0.1": "did you mean --budget.drop.accuracy?",
    f"{RUN} --qat.learning-rate": "--qat.learning-rate: a value is missing; give a number",
    f"{RUN} --qat.learning_rate abc": "--qat.learning_rate abc: give a number; hfcompress run legal_bert --help",
    f"{RUN} --qat.seed=1.5": "--qat.seed 1.5: give a whole number",
    f"{RUN} --budget.disk-mb twelve": "--budget.disk-mb twelve: give a number or None",
    f"{RUN} --task.overlap keep": "--task.overlap keep: choose from refuse drop",
    f"{RUN} --smoke=yes": "--smoke=yes: --smoke takes no value; leave =yes out",
    f"{RUN} stray": "stray: it belongs to no option",
}


@pytest.mark.parametrize("line", REFUSED, ids=str)
def test_one_line_names_what_is_wrong(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hfcompress", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    seen = capsys.readouterr()
    assert ended.value.code == 2
    assert seen.out == ""
    assert len(seen.err.splitlines()) == 1
    assert seen.err.startswith("hfcompress: ")
    assert REFUSED[line] in seen.err


def test_a_value_is_repeated_in_one_line_and_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hfcompress", "profile", "a", "--batch", "1\n" * 5000 + "\x1b[31m"])
    with pytest.raises(SystemExit):
        main()
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1
    assert len(line) < 250
    assert "\x1b" not in line
    assert "--batch 1" in line


def test_nothing_is_suggested_for_what_is_like_nothing() -> None:
    assert nearest("--zzz", ["--task.max-length", "--smoke"]) == ""
