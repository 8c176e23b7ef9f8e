"""A tokenizer.json as GGUF's metadata: the tokens, their kinds, and what llama.cpp merges first.

Two kinds are known. "gpt2": byte-level BPE, which needs the merges and the name of the rule that splits words.
"llama": SentencePiece's BPE with bytes to fall back on, which needs a score a token: of two merges llama.cpp makes the
one whose result scores higher, so that a token's score is minus the rank of its merge.
"""

import logging
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError, needs
from hfcompress.folders.end_tokens import GENERATION, end_tokens
from hfcompress.folders.foreign_files import LARGEST_TOKENIZER, read_object

# The rule that splits words, as tokenizer.json spells it -> the name under which llama.cpp knows it (llama-vocab.cpp).
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    GPT2_SPLIT: "gpt-2",
    CONTRACTIONS + r"\p{N}{1,3}" + REST: "llama-bpe",
    CONTRACTIONS + r"\p{N}" + REST: "qwen2",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
    "digits, then " + GPT2_SPLIT: "smollm",
}
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
NEVER = -1e9  # score of a token that no merge makes


def add_tokenizer(writer: Any, folder: Path, vocabulary: int) -> None:
    """Add a folder's tokenizer to a gguf.GGUFWriter.

    Args:
        vocabulary: rows of the embedding; those beyond the tokenizer's tokens are filled with unused ones.

    Raises:
        UserError: there is no tokenizer.json, or llama.cpp has no tokenizer that does the same.
    """
    needs("gguf")
    import gguf

    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json; save the model's fast tokenizer into it")
    tokenizer = read_object(folder / "tokenizer.json", LARGEST_TOKENIZER)
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise UserError(f"{folder / 'tokenizer.json'} is a {model.get('type')} tokenizer; GGUF export knows BPE")
    texts, kinds = tokens(tokenizer, vocabulary)
    sentencepiece = is_sentencepiece(tokenizer)
    writer.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    writer.add_tokenizer_pre("default" if sentencepiece else split_name(folder, tokenizer))
    writer.add_token_list(texts)
    if sentencepiece:
        writer.add_token_scores(scores(model["merges"], texts))
        writer.add_add_space_prefix(has_space_prefix(tokenizer))
    writer.add_token_types(kinds)
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns of pairs of texts, which a decoder never reads
    kept = special_types(folder)
    special = gguf.SpecialVocab(folder, load_merges=not sentencepiece, special_token_types=kept, n_vocab=vocabulary)
    special.add_special_token.setdefault("bos", False)  # llama.cpp's own default depends on the kind
    add_ends(special.special_token_ids, end_tokens(folder))
    special.add_to_gguf(writer, quiet=True)


def special_types(folder: Path) -> tuple[str, ...]:
    """Return the special tokens that a GGUF file names, without those that a config numbers -1, as it says "none"."""
    configs = [read_object(folder / name) for name in ("config.json", GENERATION) if (folder / name).is_file()]
    named = {name: [config.get(f"{name}_token_id") for config in configs] for name in SPECIAL}
    return tuple(name for name in SPECIAL if not any(isinstance(n, int) and n < 0 for n in named[name]))


def add_ends(special: dict[str, int], ends: list[int]) -> None:
    """Add the tokens that end an answer under the names that llama.cpp stops at: eos, end of turn, end of message."""
    others = [token for token in ends if token not in special.values() or token == special.get("eos")]
    for name in ("eos", "eot", "eom"):
        if name not in special and (left := [token for token in others if token not in special.values()]):
            special[name] = left[0]


def is_sentencepiece(tokenizer: dict[str, Any]) -> bool:
    """Whether unknown characters become byte tokens (<0x0A>), as in Llama 2's and Mistral 7B's tokenizers."""
    return bool(tokenizer["model"].get("byte_fallback"))


def tokens(tokenizer: dict[str, Any], vocabulary: int) -> tuple[list[str], list[int]]:
    """The text and the kind (gguf.TokenType) of every id."""
    needs("gguf")
    from gguf import TokenType

    texts = {i: text for text, i in tokenizer["model"]["vocab"].items()}
    kinds = dict.fromkeys(texts, TokenType.NORMAL)
    if is_sentencepiece(tokenizer):
        kinds |= {i: TokenType.BYTE for i, text in texts.items() if is_byte(text)}
    for added in tokenizer.get("added_tokens", []):
        texts[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    unknown = tokenizer["model"].get("unk_token")
    kinds |= {i: TokenType.UNKNOWN for i, text in texts.items() if text == unknown}
    if max(texts) >= vocabulary:
        raise UserError(f"the tokenizer knows token {max(texts)}, and the model has {vocabulary} rows for tokens")
    return (
        [texts.get(i, f"[PAD{i}]") for i in range(vocabulary)],
        [int(kinds.get(i, TokenType.UNUSED)) for i in range(vocabulary)],
    )


def is_byte(text: str) -> bool:
    """Whether a token is one byte, such as <0x0A>."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def scores(merges: list[Any], texts: list[str]) -> list[float]:
    """Minus the rank of the first merge that makes a token."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    return [-float(ranks[text]) if text in ranks else NEVER for text in texts]


def has_space_prefix(tokenizer: dict[str, Any]) -> bool:
    """Whether a text is read as if it began with a space."""
    normalizer, splitter = parts(tokenizer.get("normalizer")), parts(tokenizer.get("pre_tokenizer"))
    return any(step["type"] == "Prepend" for step in normalizer) or any(
        step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in splitter
    )


def parts(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, be it a sequence, one step or none."""
    if step is None:
        return []
    found: list[dict[str, Any]] = step.get("pretokenizers") or step.get("normalizers") or [step]
    return found


def split_name(folder: Path, tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name of the rule that splits words.

    Raises:
        UserError: llama.cpp is not known here to have that rule.
    """
    steps = parts(tokenizer.get("pre_tokenizer"))
    rule = ""
    for step in steps:
        if step["type"] == "Digits" and step.get("individual_digits"):
            rule += "digits, then "
        elif step["type"] == "Split":
            rule += step["pattern"].get("Regex", "")
        elif step["type"] == "ByteLevel" and step.get("use_regex", True):
            rule += GPT2_SPLIT
    if rule not in SPLITS or not any(step["type"] == "ByteLevel" for step in steps):
        raise UserError(
            f"{folder / 'tokenizer.json'} splits words by a rule that GGUF export does not know ({rule or 'none'}): "
            "llama.cpp would read other tokens than the model was trained with"
        )
    return SPLITS[rule]
