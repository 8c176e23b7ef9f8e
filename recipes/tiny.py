"""A tiny task and a tiny BERT made from nothing: what most tests run on."""

import json
import random
import shutil
import string
from collections.abc import Callable
from pathlib import Path

from hfcompress.folders.files import PART, flush, write_whole
from hfcompress.folders.record import sha256

WORDS = {
    "apple": ["apple", "pear", "plum", "grape", "melon", "cherry"],
    "metal": ["iron", "steel", "copper", "zinc", "silver", "nickel"],
    "water": ["river", "ocean", "lake", "stream", "pond", "canal"],
}
FILLER = ["the", "a", "of", "and", "with", "shall", "party", "under", "this", "license", "must", "may", "not", "any"]
SIZES = {"train": 240, "validation": 60, "test": 90}


def made(folder: Path, write: Callable[[Path], object]) -> Path:
    """Return `folder` with what `write` writes there, which is not written again as long as its bytes are the same.

    The hashes lie beside the folder. Whoever calls this holds the lock of the run that it lies in.
    """
    hashes = folder.with_name(f"{folder.name}.sha256")
    if folder.is_dir() and hashes.is_file() and hashes.read_text(errors="replace") == listing(folder):
        return folder
    part = folder.with_name(folder.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write(part)
    flush([file for file in part.rglob("*") if file.is_file()])
    write_whole(hashes, listing(part))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def listing(folder: Path) -> str:
    """Every file below a folder with its SHA-256, as `sha256sum` prints them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return "".join(f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files)


def sentences(label: str, count: int, rng: random.Random) -> list[str]:
    """Filler with two words of the label's topic in it, and now and then one word of another topic."""
    texts = []
    for _ in range(count):
        words = rng.choices(FILLER, k=rng.randint(4, 24))
        topic = rng.choices(WORDS[label], k=2)
        if rng.random() < 0.3:
            topic.append(rng.choice(WORDS[rng.choice(sorted(WORDS))]))
        for word in topic:
            words.insert(rng.randrange(len(words) + 1), word)
        texts.append(" ".join(words))
    return texts


def rows(split: str, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(f"{split}-{seed}")
    per_label = SIZES[split] // len(WORDS)
    made = [
        {"text": text, "label": label, "group": f"{split}-{label}-{i // 3}"}
        for label in WORDS
        for i, text in enumerate(sentences(label, per_label, rng))
    ]
    rng.shuffle(made)
    return made


def write_dataset(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        lines = [json.dumps(row) for row in rows(split)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_gpt_neox(folder: Path, data: Path) -> Path:
    """A GPTNeoXForCausalLM with random weights and a tokenizer of the data's train split."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from hfcompress.training.pretrain import byte_pair_tokenizer

    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = byte_pair_tokenizer([json.loads(line)["text"] for line in lines], 300)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_model(
    folder: Path,
    *,
    layers: int = 4,
    hidden: int = 64,
    heads: int = 4,
    intermediate: int = 128,
    labels: list[str] | None = None,
    dropout: float = 0.1,
    seed: int = 0,
) -> Path:
    """A BertForSequenceClassification with random weights and a WordPiece tokenizer that fits the tiny task."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    words = FILLER + [word for topic in WORDS.values() for word in topic] + ["unused", "never", "##ing"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *words]
    vocabulary = list(dict.fromkeys(vocabulary))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    names = sorted(WORDS) if labels is None else labels
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder
