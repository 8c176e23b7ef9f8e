"""The vocabulary is trimmed to what the corpus uses; nothing about the corpus changes, any text can still be read."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.normalizers import Replace
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
)

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.compress.embeddings import trim_vocabulary
from hfcompress.compress.embeddings.trim_vocabulary import TrimVocabulary, read_texts
from hfcompress.errors import UserError
from hfcompress.recipes import tiny
from hfcompress.tasks import vocabulary
from hfcompress.tasks.text_classification import TextClassification


def trimmed(out: Path, model: Path, task: TextClassification, **options: Any) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    return TrimVocabulary(**options)(out, model=model, task=task)


def logits(folder: Path, texts: list[str]) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(**tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")).logits


def test_outputs_on_the_corpus_are_bit_equal_and_the_model_is_smaller(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    measured = trimmed(tmp_path, tiny_model, tiny_task)
    texts = tiny_task.data.texts("train")[:50]
    assert torch.equal(logits(tiny_model, texts), logits(tmp_path, texts))
    assert measured["pieces"] < measured["pieces_before"]
    assert measured["corpus_texts_cut_differently"] == 0.0
    assert measured["parameters_before"]["word_embeddings"] == measured["pieces_before"] * 64
    numbers = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert not {"unused", "never"} & set(numbers)
    assert (tmp_path / "vocab.txt").read_text().split("\n")[:-1] == list(numbers)
    assert list(numbers.values()) == list(range(measured["pieces"]))
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == measured["pieces"]
    json.dumps(measured, allow_nan=False)


def test_a_tokenizer_whose_class_the_models_config_alone_says_is_trimmed(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    """As in the folders of BERT on the Hub."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    file = base / "tokenizer_config.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    del described["tokenizer_class"]
    file.write_text(json.dumps(described), encoding="utf-8")
    trimmed(tmp_path / "out", base, tiny_task)
    texts = tiny_task.data.texts("train")[:8]
    assert torch.equal(logits(base, texts), logits(tmp_path / "out", texts))


@pytest.mark.parametrize("lower", [True, False])
def test_pieces_are_those_of_the_tokenizer_that_is_used(
    lower: bool, tmp_path: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    """transformers obeys do_lower_case of tokenizer_config.json where tokenizer.json says otherwise."""
    base, data = tmp_path / "base", tmp_path / "data"
    shutil.copytree(tiny_model, base)
    config, tokenizer = base / "tokenizer_config.json", base / "tokenizer.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"do_lower_case": lower}))
    content = json.loads(tokenizer.read_text())
    content["normalizer"]["lowercase"] = not lower
    tokenizer.write_text(json.dumps(content))
    data.mkdir()
    for split in ("train", "validation", "test"):
        rows = [row | {"text": row["text"].title()} for row in tiny.rows(split)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TextClassification(dataset=str(data), max_length=32)
    measured = trimmed(tmp_path / "out", base, task)
    texts = task.data.texts("train")[:9]
    assert measured["corpus_texts_cut_differently"] == 0
    assert torch.equal(logits(base, texts), logits(tmp_path / "out", texts))
    stored = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert stored.encode(texts[0]).tokens == AutoTokenizer.from_pretrained(tmp_path / "out")(texts[0]).tokens()
    assert ("apple" in stored.get_vocab()) is lower


def test_any_text_can_still_be_spelled_out(tmp_path: Path, tiny_model: Path, tiny_task: TextClassification) -> None:
    measured = trimmed(tmp_path, tiny_model, tiny_task)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    pieces = tokenizer.tokenize("unused Quixotic 42!")
    assert "[UNK]" not in pieces
    assert pieces[:6] == ["u", "##n", "##u", "##s", "##e", "##d"]
    assert measured["unseen_text"]["after"]["unknown_rate"] <= measured["unseen_text"]["before"]["unknown_rate"]
    assert tokenizer.tokenize("☃") == ["[UNK]"]


ODD_TEXTS = ["a  party\ta\x1cparty a\u00a0b", "[MASK] apple [SEP]pear", "Äpple", " ", "", "apple.pear", "apple pear"]


@pytest.mark.parametrize("a_space_is", ["a boundary", "a letter", "in an added token"])
def test_pieces_are_counted_as_in_the_whole_texts(
    a_space_is: str, tiny_model: Path, tiny_task: TextClassification, tmp_path: Path
) -> None:
    """Also by a tokenizer to which a space is a letter: there a text may not be parted at it."""
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    if a_space_is == "a letter":
        tokenizer.normalizer = Replace(" ", "x")
    if a_space_is == "in an added token":
        tokenizer.add_tokens(["apple pear"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = tiny_task.data.texts("train")[:20] + ODD_TEXTS
    expected = Counter(number for text in texts for number in tokenizer.encode(text, add_special_tokens=False).ids)
    assert vocabulary.count_pieces(tmp_path, texts) == expected


def test_special_tokens_keep_their_meaning(tmp_path: Path, tiny_model: Path, tiny_task: TextClassification) -> None:
    trimmed(tmp_path, tiny_model, tiny_task)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("river", padding="max_length", max_length=5)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "river", "[SEP]", "[PAD]", "[PAD]"]
    assert all(tokenizer.convert_ids_to_tokens(i) == t for t, i in tokenizer.get_added_vocab().items())


def test_a_smaller_vocabulary_keeps_the_most_frequent_pieces_and_says_what_it_costs(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    measured = trimmed(tmp_path, tiny_model, tiny_task, vocabulary_size=150)
    assert measured["pieces"] == 150
    assert 0 < measured["corpus_texts_cut_differently"] <= 1
    with pytest.raises(UserError, match=r"vocabulary_size 20"):
        trimmed(tmp_path, tiny_model, tiny_task, vocabulary_size=20)


def test_pieces_of_extra_text_stay(tmp_path: Path, tiny_model: Path, tiny_task: TextClassification) -> None:
    extra = tmp_path / "extra.txt"
    extra.write_text("unused\n", encoding="utf-8")
    trimmed(tmp_path / "out", tiny_model, tiny_task, extra_text=extra)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("unused never")[0] == "unused"


def test_rows_in_the_wrong_place_fail_the_stage(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trim_vocabulary.trim_embeddings
    monkeypatch.setattr(
        trim_vocabulary, "trim_embeddings", lambda network, rows: original(network, [*rows[1:], rows[0]])
    )
    with pytest.raises(RuntimeError, match=r"not bit-equal"):
        trimmed(tmp_path, tiny_model, tiny_task)


def test_a_piece_that_was_needed_and_is_gone_fails_the_stage(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = vocabulary.kept_pieces

    def forgetful(*arguments: Any) -> list[str]:
        return [piece for piece in original(*arguments) if piece != "river"]

    monkeypatch.setattr(vocabulary, "kept_pieces", forgetful)
    with pytest.raises(RuntimeError, match=r"cut into other pieces"):
        trimmed(tmp_path, tiny_model, tiny_task)


def test_the_plan_predicts_the_trimmed_vocabulary(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    measured = trimmed(tmp_path, tiny_model, tiny_task)
    shape = Shape(4, 64, 4, 128, vocab_size=measured["pieces_before"], tokenizer_folder=tiny_model)
    predicted = TrimVocabulary().predict(shape, task=tiny_task)
    assert predicted.vocab_size == measured["pieces"]
    assert predicted.tokenizer_bytes == pytest.approx(vocabulary.tokenizer_bytes(tmp_path), rel=0.1)


def test_a_language_models_base_is_trimmed_without_its_head(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    """google-bert/bert-*: a masked language model, whose head has the vocabulary's size."""
    base = tiny.write_model(tmp_path / "base")
    config = BertConfig.from_pretrained(base)
    BertForMaskedLM(config).save_pretrained(base)
    first, second = trimmed(tmp_path / "a", base, tiny_task), trimmed(tmp_path / "b", base, tiny_task)
    assert first == second
    loaded = AutoModel.from_pretrained(tmp_path / "a")
    assert loaded.get_input_embeddings().weight.shape[0] == first["pieces"]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_what_cannot_be_trimmed_is_named(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        vocabulary.read_tokenizer(tmp_path)
    content = json.loads((tiny_model / "tokenizer.json").read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"content": "[LAW]", "id": 9999})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"\[LAW\].*--no-trim-vocabulary"):
        vocabulary.read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {}}, "added_tokens": []}))
    with pytest.raises(UserError, match=r"BPE"):
        vocabulary.read_tokenizer(tmp_path)


def test_text_files_are_read_by_line_and_what_is_wrong_is_named(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one\n\n  \ntwo\n", encoding="utf-8")
    assert read_texts(file) == ["one", "two"]
    file.write_text("\ufeffone\u2028two\x0c\r\nthree", encoding="utf-8")
    assert read_texts(file) == ["one\u2028two\x0c", "three"]
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"not UTF-8 text \(line 1"):
        read_texts(file)
    with pytest.raises(UserError, match=r"no such file"):
        read_texts(tmp_path / "none.txt")


def test_a_padding_token_that_moves_is_refused_where_positions_are_counted_from_it() -> None:
    config = AutoConfig.for_model("roberta", pad_token_id=1)
    trim_vocabulary.require_same_positions(config, 1)
    with pytest.raises(UserError, match=r"padding token at 0, and a roberta counts positions from behind 1"):
        trim_vocabulary.require_same_positions(config, 0)
    trim_vocabulary.require_same_positions(AutoConfig.for_model("bert", pad_token_id=1), 0)
