"""The tokens that end an answer of a causal LM, and the files beside its weights that say how it is asked."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION = "generation_config.json"
TEMPLATES = "additional_chat_templates"
# What travels with a causal LM into every format, beside what its tokenizer saves.
BESIDE = (GENERATION, "chat_template.jinja", "chat_template.json", "LICENSE")


def end_tokens(folder: Path, tokenizer: "PreTrainedTokenizerBase | None" = None) -> list[int]:
    """Return the ids that end an answer, each once: generation_config.json's, config.json's, then the tokenizer's.

    A chat model's config.json often names the end of a text alone, and only generation_config.json the end of a turn
    (Phi-3's <|end|>, Gemma's <end_of_turn>), which need not be a special token of the tokenizer. Ids for which the
    embedding has no row (of a list that was written for another vocabulary) are left out: runtimes refuse them.

    Args:
        folder: a model's.
        tokenizer: the model's, where it is loaded already; without it its eos_token is not asked.
    """
    config = read_object(folder / "config.json")
    told = [read_object(folder / GENERATION), config, config.get("text_config") or {}]
    found = [number for source in told for number in ids_of(source.get("eos_token_id"))]
    if tokenizer is not None:
        found += ids_of(tokenizer.eos_token_id)
    rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return list(dict.fromkeys(n for n in found if not isinstance(rows, int) or n < rows))


def ids_of(value: Any) -> list[int]:
    """A config's entry, which is an id, several, or none."""
    values = value if isinstance(value, list | tuple) else [value]
    return [number for number in values if isinstance(number, int) and not isinstance(number, bool) and number >= 0]


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file's object; an empty one where there is no such file, or it is damaged: then nothing is said."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def copy_beside(model: Path, out: Path) -> None:
    """Copy what says how a causal LM is asked and where its answers end, as far as it is there."""
    for name in BESIDE:
        if (model / name).is_file():
            shutil.copyfile(model / name, out / name)
    copy_templates(model, out)


def copy_templates(model: Path, out: Path) -> None:
    """Copy the chat templates beside the default one."""
    if (model / TEMPLATES).is_dir():
        (out / TEMPLATES).mkdir(exist_ok=True)
        for file in sorted((model / TEMPLATES).glob("*.jinja")):
            shutil.copyfile(file, out / TEMPLATES / file.name)
