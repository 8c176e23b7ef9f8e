import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from hfcompress.cli.language import summarize as summarize_verb
from hfcompress.errors import UserError
from hfcompress.evaluation.long_documents import (
    Frame,
    Tokens,
    document_text,
    ending_ids,
    pieces,
    shortened,
    spans,
    summarize,
    tokenized,
)
from hfcompress.folders.escaping import terminal
from tests.cli.test_cli import ROOT, hfcompress, refused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = (
    "The cat sat on the mat. The rat ate the oat! Did the bat, e.g. 3.14 of it, see 日本 and Zoë? No.\n\nA heading\n\n"
)
CONTEXT = 128
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with 128 positions, and a byte-level BPE: so that its answers have broken characters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    out = tmp_path_factory.mktemp("language") / "model"
    write_tokenizer(out)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.4,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    return out


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


@pytest.fixture
def tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from hfcompress.architectures.models import load_tokenizer

    return load_tokenizer(folder)


class Echo:
    """A decoder that answers with the first tokens after the prompt's head, and notes what it was asked."""

    def __init__(self, context: int, head: int, length: int) -> None:
        self.context, self.head, self.answer_length = context, head, length
        self.ids: list[int] = []
        self.prompts: list[list[int]] = []

    @property
    def length(self) -> int:
        return len(self.ids)

    def rewind(self, length: int) -> None:
        del self.ids[length:]

    def append(self, ids: list[int], all_logits: bool = False) -> Any:
        assert self.length + len(ids) <= self.context
        if not self.ids:
            self.prompts.append(list(ids))
        logits = np.zeros((len(ids) if all_logits else 1, 320), dtype=np.float32)
        for row, at in enumerate(range(self.length + len(ids) - len(logits), self.length + len(ids))):
            said = at + 1 - len(self.prompts[-1])
            logits[row, self.prompts[-1][self.head + said] if said < self.answer_length else 1] = 1
        self.ids += ids
        return logits


def text_of(tokenizer: "PreTrainedTokenizerBase", ids: Any) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_every_token_is_in_one_part_and_parts_end_where_sentences_do(tokenizer: "PreTrainedTokenizerBase") -> None:
    document = tokenized(tokenizer, TEXT * 20)
    parts = spans(len(document.ids), 100, document.cuts)
    assert [start for start, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == len(document.ids)
    assert all(0 < end - start <= 100 for start, end in parts)
    texts = [text_of(tokenizer, document.ids[start:end]) for start, end in parts]
    assert "".join(texts) == TEXT * 20
    ends = (".", "!", "?", "A heading")  # an empty line ends a sentence too
    assert all(text.rstrip().endswith(ends) for text in texts)


def test_a_long_sentence_is_cut_between_words_and_a_long_word_between_characters(
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    sentence = " ".join(["rat", "catalogue", "oats"] * 60)
    document = tokenized(tokenizer, sentence)
    texts = [text_of(tokenizer, document.ids[a:b]) for a, b in spans(len(document.ids), 50, document.cuts)]
    assert len(texts) > 4
    assert "".join(texts) == sentence
    assert {word for text in texts for word in text.split()} == {"rat", "catalogue", "oats"}
    document = tokenized(tokenizer, "字" * 100)  # three tokens each
    texts = [text_of(tokenizer, document.ids[a:b]) for a, b in spans(len(document.ids), 50, document.cuts)]
    assert [len(text) for text in texts] == [16] * 6 + [4]


def test_spans_without_a_place_to_cut_keep_the_limit() -> None:
    assert spans(10, 4, ()) == [(0, 4), (4, 8), (8, 10)]
    assert spans(4, 4, ()) == [(0, 4)]
    assert spans(10, 4, (np.array([3, 9]), np.array([5, 6]))) == [(0, 3), (3, 6), (6, 10)]


def test_segments_change_no_token(tokenizer: "PreTrainedTokenizerBase", monkeypatch: pytest.MonkeyPatch) -> None:
    text = TEXT * 10
    whole = tokenized(tokenizer, text)
    monkeypatch.setattr("hfcompress.evaluation.long_documents.SEGMENT", 100)
    monkeypatch.setattr("hfcompress.evaluation.long_documents.BATCH", 3)
    pieced = tokenized(tokenizer, text)
    assert text_of(tokenizer, pieced.ids) == text
    assert whole.ids.tolist() == pieced.ids.tolist()
    for one, other in zip(whole.cuts, pieced.cuts, strict=True):
        assert one.tolist() == other.tolist()


def test_a_million_words_are_cut(tokenizer: "PreTrainedTokenizerBase") -> None:
    text = "The party shall, under this licence, not sit on the mat. " * 91_000
    document = tokenized(tokenizer, text)
    parts = spans(len(document.ids), 2000, document.cuts)
    assert len(text.split()) > 1_000_000
    assert sum(end - start for start, end in parts) == len(document.ids)


def test_special_tokens_in_a_document_are_ordinary_text(tokenizer: "PreTrainedTokenizerBase") -> None:
    document = tokenized(tokenizer, "The cat </s> sat.")
    assert not ending_ids(tokenizer) & set(document.ids.tolist())
    assert text_of(tokenizer, document.ids) == "The cat </s> sat."


def test_what_is_no_text_is_refused() -> None:
    for data, words in (
        (b"%PDF\0\1", "is binary: it holds NUL bytes"),
        ("text".encode("utf-16"), "iconv -f UTF-16"),
        (b"caf\xe9", "is not UTF-8 (byte 3)"),
        (b" \n", "holds no text"),
        (b"", "holds no text"),
    ):
        with pytest.raises(UserError) as error:
            document_text(data, "a.txt")
        assert words in str(error.value)
    assert document_text(b"\xef\xbb\xbfcaf\xc3\xa9", "a.txt") == "café"


def test_a_document_that_fits_is_asked_once(tokenizer: "PreTrainedTokenizerBase") -> None:
    frame, told = Frame.of(tokenizer), list[str]()
    decoder = Echo(CONTEXT, len(frame.head), 9)
    text = "The cat sat on the mat. The rat ate."
    found = list(summarize(decoder, tokenizer, text, max_new_tokens=30, lookup=0, say=told.append))
    assert text.startswith("".join(found).rstrip())
    assert len(found) > 1
    assert (len(decoder.prompts), told) == (1, [])
    assert text_of(tokenizer, decoder.prompts[0]) == f"<s>Text:\n{text}\n\nSummary:\n"


@pytest.mark.parametrize("length", [0, 1, 7, 30])
@pytest.mark.parametrize("lookup", [0, 8])
def test_summaries_are_summarized_until_one_is_left(
    tokenizer: "PreTrainedTokenizerBase", length: int, lookup: int
) -> None:
    frame, told = Frame.of(tokenizer), list[str]()
    decoder = Echo(CONTEXT, len(frame.head), length)
    text = TEXT * 40
    found = "".join(summarize(decoder, tokenizer, text, max_new_tokens=30, lookup=lookup, say=told.append))
    assert all(len(prompt) + 30 <= CONTEXT for prompt in decoder.prompts)
    assert found == "" if length == 0 else text.startswith(found.rstrip())
    rounds = [line for line in told if line.endswith("parts")]
    first = int(rounds[0].split()[-2])
    seen = "".join(
        text_of(tokenizer, prompt[len(frame.head) : -len(frame.tail)]) for prompt in decoder.prompts[:first]
    )
    assert seen == text.strip()
    if length == 30:
        assert len(rounds) > 2


def test_every_round_has_at_most_half_the_parts() -> None:
    counts = []
    limit, most = 66, 32

    def answer(ids: list[int]) -> Iterator[int]:
        return iter(ids[:most])

    document = Tokens(np.arange(5000), (np.arange(0, 5000, 40),))
    list(shortened(document, limit, answer, [0], counts.append))
    rounds = [int(line.split()[-2]) for line in counts if line.endswith("parts")]
    assert len(rounds) > 3
    assert all(later <= -(-earlier // 2) for earlier, later in pairwise(rounds))


def test_a_context_that_is_too_small_is_refused(tokenizer: "PreTrainedTokenizerBase") -> None:
    decoder = Echo(CONTEXT, 0, 5)
    for options in ({"max_new_tokens": 50}, {"max_new_tokens": 20, "context": 60}, {"max_new_tokens": 500}):
        with pytest.raises(UserError, match="ask for a shorter summary"):
            summarize(decoder, tokenizer, TEXT * 9, lookup=0, say=print, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds no text"):
        summarize(decoder, tokenizer, " \n", max_new_tokens=5, lookup=0, say=print)


def test_the_chat_template_is_the_frame(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.chat_template = TEMPLATE
    frame = Frame.of(tokenizer)
    assert text_of(tokenizer, frame.head).startswith("<|user|>Summarize the following text")
    assert text_of(tokenizer, frame.tail) == "</s><|assistant|>"
    assert frame.tail[0] == tokenizer.eos_token_id
    tokenizer.chat_template = "nothing"
    with pytest.raises(UserError, match="leaves out what the user says"):
        Frame.of(tokenizer)


def test_no_piece_holds_half_a_character(tokenizer: "PreTrainedTokenizerBase") -> None:
    text = "日本 is Zoë's 🙂 word"
    ids = tokenizer(text)["input_ids"]
    found = list(pieces(tokenizer, iter(ids)))
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)
    assert "".join(pieces(tokenizer, iter(tokenizer("Zoë 🙂")["input_ids"][:-1]))) == "Zoë "


def test_pieces_are_the_text_of_any_tokens(tokenizer: "PreTrainedTokenizerBase") -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(2, 300, 40).tolist()
        assert "".join(pieces(tokenizer, iter(ids))) == text_of(tokenizer, ids).rstrip("\ufffd").lstrip()


def test_the_command_summarizes_a_file_and_standard_input(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 4, encoding="utf-8")
    options = ("--max-new-tokens", "16", "--threads", "1", "--stats")
    by_input = hfcompress("summarize", folder, "-", *options, stdin=TEXT * 4)
    assert by_input.returncode == 0, by_input.stderr[-2000:]
    assert by_input.stdout.endswith("\n")
    assert "parts" in by_input.stderr
    assert "peak_rss_mb" in by_input.stderr.splitlines()[-1]
    code = summarize_verb(str(folder), tmp_path / "a.txt", max_new_tokens=16, lookup=0, threads=1, format="json")
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert terminal(found["summary"]) + "\n" == by_input.stdout
    assert found["stats"]["passes"] == found["stats"]["new_tokens"] > 0
    assert found["stats"]["guessed"] == 0


def test_the_model_of_a_run_is_the_one_that_its_verdicts_are_about(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "4-small")
    report = {
        "models": [{"name": "base", "path": None}, {"name": "small", "path": "4-small"}],
        "verdicts": [{"candidate": "small"}],
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "details.json").write_text(json.dumps({"max_length": 64}))
    (tmp_path / "a.txt").write_text("A text.", encoding="utf-8")
    assert summarize_verb(str(tmp_path), tmp_path / "a.txt", max_new_tokens=4, threads=1) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_the_command_refuses_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A text.", encoding="utf-8")
    assert "is binary" in refused("summarize", folder, "-", stdin=b"a\0b")
    assert "--lookup -1: must be at least 0" in refused("summarize", folder, tmp_path / "a.txt", "--lookup", "-1")
    with pytest.raises(UserError, match=r"^threads 100000: must be at most 1024$"):
        summarize_verb(str(folder), tmp_path / "a.txt", threads=100_000)
    for model, file, words in (
        (folder, tmp_path / "nowhere.txt", "No such file or directory; give a text file"),
        (folder, tmp_path, "Is a directory"),
        (tmp_path, tmp_path / "a.txt", "finished run"),
    ):
        with pytest.raises(UserError, match=words):
            summarize_verb(str(model), file)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(UserError, match=r"labels texts, and is no language model .*hfcompress predict"):
        summarize_verb(str(tmp_path), tmp_path / "a.txt")


def test_an_interrupt_ends_the_line_and_nothing_more(folder: Path, tmp_path: Path) -> None:
    """The model is made to write for ever, a piece each 50 ms."""
    code = (
        "import signal, sys, time, hfcompress.evaluation.long_documents as s\n"
        # a shell's background job ignores it, and so do its children
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def slowly(*args, **kwargs):\n"
        "    while True:\n"
        "        yield 'word '\n"
        "        time.sleep(0.05)\n"
        "s.summarize = slowly\n"
        f"sys.argv = ['hfcompress', 'summarize', {str(folder)!r}, {str(tmp_path / 'a.txt')!r}, '--threads', '1']\n"
        "from hfcompress.cli import main; main()"
    )
    (tmp_path / "a.txt").write_text("A text.", encoding="utf-8")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ.copy(), text=True, **pipes)
    assert run.stdout is not None
    assert run.stdout.read(4) == "word"  # it streams
    run.send_signal(signal.SIGINT)
    out, messages = run.communicate(timeout=60)
    assert run.returncode == 130
    assert out.endswith("\n")
    assert "Traceback" not in messages
    assert "interrupted" in messages


@pytest.mark.parametrize("text", ["." * 300_000, "x" * 300_000, "。" * 100_000, "a.b" * 100_000])
def test_a_text_without_a_space_is_cut_into_all_of_its_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
    found = tokenized(tokenizer, text)
    assert tokenizer.decode(found.ids.tolist(), clean_up_tokenization_spaces=False) == text
    assert max(end - start for start, end in spans(len(found.ids), 1000, found.cuts)) <= 1000
