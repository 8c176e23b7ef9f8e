"""Small text classifiers of the encoders beside BERT, random weights, with tokenizers that fit the tiny task."""

import json
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizerFast,
)

from hfcompress.recipes import tiny

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
NAMES = {"id2label": dict(enumerate(sorted(tiny.WORDS))), "label2id": {n: i for i, n in enumerate(sorted(tiny.WORDS))}}


def write_roberta(folder: Path, data: Path) -> Path:
    """A byte-level BPE tokenizer of the data's train split, and 64 positions behind the padding row."""
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = ByteLevelBPETokenizer()
    texts = [json.loads(line)["text"] for line in lines]
    tokenizer.train_from_iterator(texts, vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    folder.mkdir(parents=True)
    tokenizer.save_model(str(folder))
    fast = RobertaTokenizerFast.from_pretrained(str(folder), model_max_length=64)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=66,
        type_vocab_size=1,
        **NAMES,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def write_wordpiece(folder: Path, tokenizer_class: str) -> int:
    """Write the tiny BERT's tokenizer under another class, and return how many words it has."""
    tiny.write_model(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    described = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    described["tokenizer_class"] = tokenizer_class
    (folder / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
    return len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())


def write_distilbert(folder: Path, data: Path) -> Path:
    """BERT's tokenizer, and a model without token types."""
    rows = write_wordpiece(folder, "DistilBertTokenizer")
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=rows, dim=64, n_layers=4, n_heads=4, hidden_dim=128, max_position_embeddings=64, **NAMES
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    return folder


def write_electra(folder: Path, data: Path) -> Path:
    """BERT's tokenizer, and embeddings as wide as the layers."""
    rows = write_wordpiece(folder, "ElectraTokenizer")
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=rows,
        embedding_size=64,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        **NAMES,
    )
    ElectraForSequenceClassification(config).save_pretrained(folder)
    return folder


WRITERS = {"roberta": write_roberta, "distilbert": write_distilbert, "electra": write_electra}
