"""The beginning of a long text that gives a model all the tokens that it reads."""

from typing import Any

CHARACTERS = 16  # a token that it reads: more than nearly every text has, so that one try is enough
GROWTH = 4  # times the characters of the next try, where there were too few tokens
LAST_WORDS = 2  # of a part, which the rest of the text could change


def beginning(tokenizer: Any, text: str, max_length: int) -> str:
    """Return the beginning of a text whose first `max_length` tokens are those of the whole text.

    Words before the last ones of a part are split as they are in the whole text, since tokenizers split at spaces and
    signs first. Where that cannot be told (a tokenizer without words, or one that keeps the end of a text), and where
    the words are longer than the model reads, the text is returned as it is.

    Args:
        tokenizer: of transformers; max_length: tokens that the model reads, special ones included.
    """
    size = CHARACTERS * max_length + 256
    if not getattr(tokenizer, "is_fast", False) or tokenizer.truncation_side != "right":
        return text
    while size < len(text):
        part = text[:size]
        words = tokenizer(part, add_special_tokens=False, truncation=False, verbose=False).word_ids(0)
        last = next((word for word in reversed(words) if word is not None), -1)
        if sum(word is not None and word <= last - LAST_WORDS for word in words) >= max_length:
            return part
        size *= GROWTH
    return text
