"""A foreign tokenizer's rules can neither fill the memory nor end in a traceback."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from hfcompress import cli
from hfcompress.architectures.models import load_tokenizer
from hfcompress.errors import UserError
from hfcompress.folders.tokenizer_rules import MOST_GROWTH, require_bounded_growth, require_quick_patterns
from hfcompress.formats.gguf_tokenizer import SPLITS


def made(*rules: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence(list(rules))  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def test_replacements_that_multiply_are_refused(tmp_path: Path) -> None:
    ten = normalizers.Replace("a", "a" * 10)
    require_bounded_growth(made(ten, ten, ten), tmp_path)
    assert MOST_GROWTH == 1000
    with pytest.raises(UserError, match=r"tokenizer\.json: its normalizers could make 10,000 characters of one"):
        require_bounded_growth(made(ten, normalizers.Sequence([ten, ten]), ten), tmp_path)
    with pytest.raises(UserError, match="could make 1,001 characters"):
        require_bounded_growth(made(normalizers.Replace(Regex("a*"), "a" * 1000)), tmp_path)


def test_ordinary_rules_pass(tiny_model: Path, tmp_path: Path) -> None:
    usual = [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Prepend("\u2581")]
    require_bounded_growth(made(*usual, normalizers.Replace(" ", "\u2581")), tmp_path)
    assert load_tokenizer(tiny_model)("the river")["input_ids"]


def of_its_file(folder: Path) -> None:
    """Make a folder's tokenizer what tokenizer.json says: of BERT's class transformers 5 reads the pieces alone."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def test_a_folders_tokenizer_is_checked_when_it_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    found["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 5000}
    file.write_text(json.dumps(found), encoding="utf-8")
    of_its_file(folder)
    with pytest.raises(UserError, match="could make 5,000 characters"):
        load_tokenizer(folder)


def split_by(pattern: str) -> PreTrainedTokenizerFast:
    tokenizer = made()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return tokenizer


@pytest.mark.parametrize("pattern", [r"(?:[a-z]|[a-y]){20}[A-Z0-9]", r"(a+)+$", r"[a-z]*[a-z]*[a-z]*[A-Z]"])
def test_patterns_that_take_seconds_for_a_few_words_are_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: its patterns step back without end \("):
        require_quick_patterns(split_by(pattern), tmp_path)


@pytest.mark.parametrize("pattern", [*SPLITS, r" {2,}", r"\s+$", r"\p{N}{1,3}(?=(?:\p{N}{3})*\b)"])
def test_patterns_in_use_are_quick(pattern: str, tmp_path: Path) -> None:
    require_quick_patterns(split_by(pattern.removeprefix("digits, then ")), tmp_path)


def test_slow_patterns_are_refused_when_a_folder_is_read(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    pattern = {"Regex": "(a+)+$"}
    found["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    file.write_text(json.dumps(found), encoding="utf-8")
    of_its_file(folder)
    with pytest.raises(UserError, match="step back without end"):
        load_tokenizer(folder)


def test_a_pattern_that_steps_back_for_ever_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oniguruma gives up, and tokenizers makes a panic of it, which is no Exception."""
    tokenizer = made()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")

    def labels(_: list[str]) -> int:
        return len(tokenizer("a" * 40 + "!")["input_ids"])

    monkeypatch.setattr(cli, "dispatch", labels)
    monkeypatch.setattr(cli, "forget_output", lambda: None)
    monkeypatch.setattr(sys, "argv", ["hfcompress", "predict"])
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # main puts another in its place
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "hfcompress: the tokenizer gave up on a text (Onig: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "albert", "gpt2", "qwen2", "deberta-v2"])
def test_a_folder_without_a_tokenizers_pieces_is_refused(kind: str, tmp_path: Path) -> None:
    """Of such a folder transformers 5 makes a tokenizer for which every word is unknown, or nothing."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(tmp_path)
