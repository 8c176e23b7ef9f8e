"""A WordPiece vocabulary, counted on a corpus and cut to what it uses. No weights, no torch."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.architectures.models import load_tokenizer
from hfcompress.errors import OptionError, UserError
from hfcompress.folders.foreign_files import LARGEST_TOKENIZER, read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""What the tokenizers of the encoders in the table are saved as."""


def tokenizer_kind(folder: Path) -> str | None:
    """Return what a folder's tokenizer.json is: "WordPiece", "BPE", "Unigram", ...; None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    model = read_object(path, LARGEST_TOKENIZER).get("model")
    return str(model.get("type", "WordPiece")) if isinstance(model, dict) else None


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """tokenizer.json of a WordPiece tokenizer, with the normalizer that is used.

    Where tokenizer_config.json says another do_lower_case than tokenizer.json, transformers obeys the former.

    Raises:
        UserError: the folder has none, it is of another kind, or tokens were added to it outside its vocabulary.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no tokenizer.json; save it with a fast tokenizer: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    content = read_object(path, LARGEST_TOKENIZER)
    if content["model"].get("type", "WordPiece") != "WordPiece" or not isinstance(content["model"]["vocab"], dict):
        raise UserError(
            f"{path} is a {content['model'].get('type')} tokenizer; only WordPiece vocabularies (BERT's) can "
            "be trimmed: --no-trim-vocabulary, or, where the recipe has no such option, another --base"
        )
    outside = [e["content"] for e in content["added_tokens"] if e["content"] not in content["model"]["vocab"]]
    if outside:
        raise UserError(
            f"{path} has tokens that were added outside its vocabulary ({', '.join(outside[:4])}); such a vocabulary "
            "cannot be trimmed: --no-trim-vocabulary"
        )
    content["normalizer"] = json.loads(tokenizer_in_use(folder).to_str())["normalizer"]
    return content


def tokenizer_in_use(folder: Path) -> "Tokenizer":
    """The tokenizer as transformers loads it.

    Raises:
        UserError: there is none that can be read, or it is no fast one.
    """
    from tokenizers import Tokenizer

    if files_agree(folder):  # then torch need not be loaded
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = getattr(load_tokenizer(folder), "backend_tokenizer", None)
    if tokenizer is None:
        raise UserError(f"{folder} has no fast tokenizer; its vocabulary cannot be trimmed: --no-trim-vocabulary")
    found: Tokenizer = tokenizer
    return found


def files_agree(folder: Path) -> bool:
    """Return whether transformers uses tokenizer.json as it is.

    A BERT's tokenizer takes how words are normalized from tokenizer_config.json, and where that does not say it from
    its own defaults.
    """
    if not any((folder / name).is_file() for name in ("config.json", "tokenizer_config.json")):
        return True
    file = folder / "tokenizer_config.json"
    config = read_object(file) if file.is_file() else {}
    normalizer = read_object(folder / "tokenizer.json", LARGEST_TOKENIZER).get("normalizer") or {}
    wanted = {
        "lowercase": config.get("do_lower_case", True),
        "strip_accents": config.get("strip_accents"),
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
    }
    of_bert = normalizer.get("type") == "BertNormalizer" and config.get("tokenizer_class") in (
        "BertTokenizer",
        "BertTokenizerFast",
    )
    return of_bert and all(normalizer.get(field) == value for field, value in wanted.items())


def count_pieces(folder: Path, texts: list[str]) -> "Counter[int]":
    """How often each piece id occurs in the whole texts, special tokens left out."""
    tokenizer = tokenizer_in_use(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    chunks = Counter(chunk for text in texts for chunk in (text.split(" ") if parts_at_spaces(tokenizer) else [text]))
    counts: Counter[int] = Counter()
    encodings = tokenizer.encode_batch_fast(list(chunks), add_special_tokens=False)
    for times, encoding in zip(chunks.values(), encodings, strict=True):
        for number in encoding.ids:
            counts[number] += times
    return counts


def parts_at_spaces(tokenizer: Any) -> bool:
    """Whether what stands between two spaces is cut alike wherever it stands: then each need be cut only once.

    So it is for BERT's: its normalizer looks at single characters, its pre-tokenizer parts at every space. Tokens that
    were added are found before that, also those with a space in them.
    """
    kinds = type(tokenizer.normalizer).__name__, type(tokenizer.pre_tokenizer).__name__
    spaced = any(" " in token.content for token in tokenizer.get_added_tokens_decoder().values())
    return kinds == ("BertNormalizer", "BertPreTokenizer") and not spaced


def kept_pieces(tokenizer: dict[str, Any], counts: "Counter[int]", size: int | None = None) -> list[str]:
    """The pieces that stay, in the order of their old ids.

    Special tokens stay, and every single character alone and as a continuation (##c), so that whatever could be
    spelled out before still can be. Greedy longest-match is not changed by leaving out pieces it never chose, so the
    corpus is cut into the same pieces as before. With `size`, only the most frequent others fit in.

    Raises:
        UserError: `size` is less than what must stay.
    """
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    prefix = tokenizer["model"].get("continuing_subword_prefix", "##")
    special = {entry["content"] for entry in tokenizer["added_tokens"]} | {tokenizer["model"]["unk_token"]}
    needed = {piece for piece in vocabulary if piece in special or len(piece.removeprefix(prefix)) == 1}
    used = [
        piece
        for piece, number in sorted(vocabulary.items(), key=lambda item: (-counts[item[1]], item[1]))
        if counts[number] and piece not in needed
    ]
    if size is not None:
        if size < len(needed):
            reason = "{n} pieces (special tokens and single characters) must stay; give more than that"
            raise OptionError("vocabulary_size", reason, size, n=len(needed))
        used = used[: size - len(needed)]
    return sorted(needed | set(used), key=lambda piece: vocabulary[piece])


def trimmed_tokenizer(tokenizer: dict[str, Any], pieces: list[str]) -> dict[str, Any]:
    """tokenizer.json with these pieces alone, numbered anew in their order."""
    number = {piece: i for i, piece in enumerate(pieces)}
    result: dict[str, Any] = json.loads(json.dumps(tokenizer))
    result["model"]["vocab"] = number
    for entry in result["added_tokens"]:
        entry["id"] = number[entry["content"]]
    processor = result.get("post_processor") or {}
    for token in processor.get("special_tokens", {}).values():  # TemplateProcessing
        token["ids"] = [number[name] for name in token["tokens"]]
    for side in ("sep", "cls"):  # BertProcessing
        if isinstance(processor.get(side), list):
            processor[side][1] = number[processor[side][0]]
    if isinstance(result.get("padding"), dict):
        result["padding"]["pad_id"] = number[result["padding"]["pad_token"]]
    return result


def write_tokenizer(source: Path, out: Path, tokenizer: dict[str, Any]) -> None:
    """Write tokenizer.json, vocab.txt and tokenizer_config.json for the trimmed vocabulary into `out`."""
    number: dict[str, int] = tokenizer["model"]["vocab"]
    text = json.dumps(tokenizer, ensure_ascii=False, indent=2)  # as the tokenizers library writes it
    (out / "tokenizer.json").write_text(text, encoding="utf-8")
    (out / "vocab.txt").write_text("".join(f"{piece}\n" for piece in number), encoding="utf-8")
    special = source / "special_tokens_map.json"
    if special.is_file():
        (out / special.name).write_bytes(special.read_bytes())
    path = source / "tokenizer_config.json"
    config: dict[str, Any] = read_object(path) if path.is_file() else {"tokenizer_class": "BertTokenizer"}
    if "added_tokens_decoder" in config:
        entries = config["added_tokens_decoder"].values()
        config["added_tokens_decoder"] = {str(number[entry["content"]]): entry for entry in entries}
    (out / path.name).write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")


def tokenizer_bytes(folder: Path) -> int:
    """What the files of a tokenizer take on disk."""
    return sum((folder / name).stat().st_size for name in TOKENIZER_FILES if (folder / name).is_file())
