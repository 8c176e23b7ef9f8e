"""What a text classifier can be given: how many tokens it has positions for, and which inputs it takes."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfcompress.architectures.loading import says_what_does_not_fit
from hfcompress.architectures.pretrained import stock_config
from hfcompress.errors import UserError
from hfcompress.folders.foreign_files import read_object
from hfcompress.folders.guard import read_config

Array = np.ndarray[Any, Any]
POSITIONS = ("max_position_embeddings", "n_positions", "max_encoder_position_embeddings", "max_seq_len")
# Their first position is that of the padding token + 1: so many rows of the table are never used.
AFTER_PADDING = {
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
NO_TABLE = {"bloom", "funnel", "mt5", "t5", "transfo-xl", "umt5", "xlnet"}  # relative positions alone
TABLE_UNLESS = {"deberta": "position_biased_input", "deberta-v2": "position_biased_input"}  # this field is false
PADDING_ROW = 1  # of AFTER_PADDING, where config.json does not say it
ALWAYS_PADDING_ROW = {"mpnet"}  # whatever its config.json says
LONGEST = 8192  # tokens read by a model that says no limit: what attention holds of a longer text takes gigabytes
SAID_WHEN_UNLIMITED = 10**9  # a tokenizer_config.json without a limit says 10^30
PASSAGE = "the party of the first part shall deliver, under this agreement, what the second part has paid for. "


def usable_positions(config: Mapping[str, Any]) -> int | None:
    """Return the tokens that a model has positions for; None where nothing limits them.

    Args:
        config: the fields of its config.json.
    """
    kind = config.get("model_type")
    if kind in NO_TABLE or config.get("position_embedding_type") == "rotary":
        return None
    if config.get(TABLE_UNLESS.get(str(kind), "")) is False:
        return None
    rows = next((config[name] for name in POSITIONS if isinstance(config.get(name), int)), 0)
    if rows <= 0:
        return None
    if kind not in AFTER_PADDING:
        return int(rows)
    padding = None if kind in ALWAYS_PADDING_ROW else config.get("pad_token_id")
    return int(rows) - (PADDING_ROW if padding is None else int(padding)) - 1


def decoder_positions(folder: Path, config: Any) -> int:
    """Return the tokens that a causal LM holds.

    Args:
        folder: the model's; config: transformers' of it.

    Raises:
        UserError: its config does not say a number, as of models with relative positions or none.
    """
    found = [getattr(config, name, None) for name in (*POSITIONS, "seq_length")]
    if positions := next((number for number in found if isinstance(number, int) and number > 0), None):
        return positions
    raise UserError(
        f"{folder / 'config.json'} does not say how many tokens the model holds; set max_position_embeddings there"
    )


def require_rows(ids: Iterable[int], rows: int) -> None:
    """Refuse tokens that a causal LM's embedding has no rows for.

    Raises:
        UserError: the tokenizer has given one, as after tokens were added to it alone.
    """
    if (largest := max(ids)) >= rows:
        raise UserError(
            f"the tokenizer gives token {largest} for a text, and the model has {rows:,} rows for tokens: tokens were "
            "added to the tokenizer alone; give the tokenizer that was saved with these weights"
        )


def require_room(ids: Sequence[int], length: int, context: int) -> None:
    """Refuse to read no token, or more than a causal LM's context has room for behind `length` tokens.

    Raises:
        UserError: it cannot be read.
    """
    if not ids:
        raise UserError("there is no token to read; give a text")
    if length + len(ids) > context:
        raise UserError(f"{length + len(ids):,} tokens are more than the model's context of {context:,}")


def text_limit(folder: Path) -> int:
    """Return the tokens to which a text is cut for a model's folder: its tokenizer's limit, at most its positions."""
    limits = [usable_positions(read_config(folder)), tokenizer_limit(folder)]
    return min((limit for limit in limits if limit is not None), default=LONGEST)


def tokenizer_limit(folder: Path) -> int | None:
    """Return the `model_max_length` of a folder's tokenizer_config.json, where it says a number of tokens.

    Raises:
        UserError: the file is damaged.
    """
    try:
        limit = int(read_object(folder / "tokenizer_config.json")["model_max_length"])
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return None
    return limit if 0 < limit < SAID_WHEN_UNLIMITED else None


def require_positions(config: Mapping[str, Any], option: str, tokens: int, model: str) -> None:
    """Refuse a length that a model has no positions for.

    Args:
        option: as it is typed; tokens: its value.
        model: what the message calls the model.

    Raises:
        UserError: with both numbers.
    """
    positions = usable_positions(config)
    if positions is not None and tokens > positions:
        raise UserError(f"{option} {tokens}: {model} has {positions} positions; give no more than that")


def full_config(folder: Path) -> dict[str, Any]:
    """Return the fields of a folder's config.json, with the defaults of its class for what it does not say.

    Raises:
        UserError: it is damaged, or of no kind of model that transformers knows.
    """
    with says_what_does_not_fit(folder):
        found: dict[str, Any] = stock_config(folder).to_dict()
    return found


def inputs_of(network: Any) -> set[str]:
    """Return the names of what a network's forward takes."""
    return set(inspect.signature(network.forward).parameters)


def complete(encoded: Mapping[str, Any], names: Iterable[str]) -> dict[str, Array]:
    """Return the inputs that a model takes, int64 [texts, tokens], of texts of one length.

    What a tokenizer makes and the model does not take is left out. Token types that the model asks for and the
    tokenizer does not make are 0; positions count from 0.

    Args:
        encoded: of the tokenizer: input_ids and others, lists or arrays of equal length.
        names: of the model's inputs.

    Raises:
        UserError: the model asks for what no text has.
    """
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.broadcast_to(np.arange(ids.shape[-1]), ids.shape),
    }
    known |= {name: np.asarray(values, dtype=np.int64) for name, values in encoded.items()}
    wanted = list(names)
    if foreign := [name for name in wanted if name not in known]:
        raise UserError(f"the model asks for the input {foreign[0]}, which no text has; give a text classifier")
    return {name: np.ascontiguousarray(known[name]) for name in wanted}


def full_request(tokenizer: Any, length: int, batch: int, rows: int | None = None) -> dict[str, Array]:
    """Return texts of exactly `length` tokens, [batch, length]: random ordinary ones where a real text has them.

    Special tokens stand where the tokenizer puts them: some models read the class at one.

    Args:
        rows: of the model's embeddings, where the tokenizer may have more tokens.
    """
    passage = PASSAGE * (length // len(PASSAGE.split()) + 1)
    encoded = dict(tokenizer(passage, truncation=True, max_length=length, return_special_tokens_mask=True))
    special = np.asarray(encoded.pop("special_tokens_mask"), dtype=bool)
    count = min(len(tokenizer), rows or len(tokenizer))
    ordinary = np.setdiff1d(np.arange(count // 2, count), tokenizer.all_special_ids)
    if not len(ordinary):
        ordinary = np.arange(count)
    drawn = np.random.default_rng(0).choice(ordinary, (batch, len(special)))
    ids = np.where(special, encoded["input_ids"], drawn)
    return {name: ids if name == "input_ids" else np.tile(values, (batch, 1)) for name, values in encoded.items()}
