"""Summaries of documents of any length: parts that the model can hold, and then summaries of the summaries.

A document that does not fit is cut at ends of sentences; each part is summarized, the summaries are joined and
treated the same way, until they fit: the hierarchical merging of Wu et al. 2021, "Recursively Summarizing Books with
Human Feedback". Everything is greedy, so that the same document gives the same summary.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.errors import UserError
from hfcompress.evaluation.chat import around, template_of
from hfcompress.evaluation.generation import Stats, generate
from hfcompress.evaluation.summaries import sentence_ends, word_ends
from hfcompress.formats.runtimes.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array = np.ndarray[Any, Any]

INSTRUCTION = "Summarize the following text in a few sentences. Answer with the summary alone.\n\n"
PLAIN = ("Text:\n", "\n\nSummary:\n")  # around a document, for a model that was not trained to chat
MARK = "@@the-document@@"  # holds the document's place while the chat template is filled
SEGMENT = 20_000  # characters that are tokenized at once
BATCH = 64  # segments
BROKEN = "\ufffd"  # what a tokenizer decodes half a character to


def document_text(data: bytes, name: str) -> str:
    """A file's text.

    Raises:
        UserError: it holds no text, or is not UTF-8 text at all.
    """
    if b"\0" in data:
        raise UserError(
            f"{name} is binary: it holds NUL bytes; give its text as UTF-8 (of UTF-16: iconv -f UTF-16 -t UTF-8)"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8 (byte {error.start}); convert it, for instance with iconv -t UTF-8"
        ) from None
    if not text.strip():
        raise UserError(f"{name} holds no text")
    return text


def summarize(
    decoder: Decoder,
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    *,
    max_new_tokens: int,
    lookup: int,
    say: Callable[[str], None],
    ends: Iterable[int] = (),
    context: int | None = None,
    stats: Stats | None = None,
) -> Iterator[str]:
    """The pieces of a summary, as they are written.

    Args:
        max_new_tokens: of the summary, and of each part's summary.
        lookup: see `generate`.
        say: is told what is being read, when the document has several parts.
        ends: tokens that end an answer beside the tokenizer's special ones (see `end_tokens`).
        context: tokens of prompt, part and summary together; what the decoder holds when not given, and never more.
        stats: where the cost of all answers is added.

    Raises:
        UserError: the document is empty, or the context is too small for the prompt and the answer.
    """
    if not text.strip():
        raise UserError("the document holds no text")
    frame = Frame.of(tokenizer)
    room = min(context or decoder.context, decoder.context) - len(frame.head) - len(frame.tail) - max_new_tokens
    document, joint = tokenized(tokenizer, text.strip()), plain_ids(tokenizer, "\n")
    # Two summaries must fit into a part: only then is every round shorter than the one before.
    if (needed := 2 * (max_new_tokens + len(joint))) > room < len(document.ids):
        raise UserError(
            f"--max-new-tokens {max_new_tokens}: of a document of {len(document.ids):,} tokens only {max(room, 0):,} "
            f"fit beside prompt and summary, and {needed:,} are needed; ask for a shorter summary or allow a longer "
            "context"
        )
    stop = ending_ids(tokenizer) | set(ends)

    def answer(ids: list[int]) -> Iterator[int]:
        prompt = [*frame.head, *ids, *frame.tail]
        return generate(decoder, prompt, max_new_tokens=max_new_tokens, stop=stop, lookup=lookup, stats=stats)

    return pieces(tokenizer, shortened(document, room, answer, joint, say))


@dataclass(frozen=True)
class Tokens:
    """A text's tokens, int64 [tokens], and where it may be cut: ascending token numbers, the best places first."""

    ids: Array
    cuts: tuple[Array, ...]


def shortened(
    document: Tokens,
    room: int,
    answer: Callable[[list[int]], Iterator[int]],
    joint: list[int],
    say: Callable[[str], None],
) -> Iterator[int]:
    """The tokens of the summary of the summaries; only of the last answer are they given out as they come.

    Summaries are joined as tokens, not as text, so that they are as long as they were generated.
    """
    while len(parts := spans(len(document.ids), room, document.cuts)) > 1:
        say(f"{len(document.ids):,} tokens in {len(parts)} parts")
        written = []
        for number, (start, end) in enumerate(parts, 1):
            say(f"part {number} of {len(parts)}")
            if ids := list(answer(document.ids[start:end].tolist())):
                written.append([*ids, *joint])
        if not written:
            return
        ends = np.cumsum([len(ids) for ids in written])
        document = Tokens(np.concatenate([np.array(ids, dtype=np.int64) for ids in written]), (ends,))
    yield from answer(document.ids.tolist())


def spans(length: int, limit: int, cuts: tuple[Array, ...]) -> list[tuple[int, int]]:
    """Cut `length` items into runs of at most `limit`, each as long as the best places to cut allow.

    Args:
        cuts: ascending places, the best kind first; where no place of any kind is in reach, a run has `limit` items.

    Returns: (start, end) of each run, end exclusive; together they are all items, each once.
    """
    found = [0]
    while length - found[-1] > limit:
        start, furthest = found[-1], found[-1] + limit
        for places in cuts:
            at = int(np.searchsorted(places, furthest, side="right")) - 1
            if at >= 0 and places[at] > start:
                furthest = int(places[at])
                break
        found.append(furthest)
    return list(pairwise([*found, length]))


def tokenized(tokenizer: "PreTrainedTokenizerBase", text: str) -> Tokens:
    """All tokens of a text, which may be cut at ends of sentences, else between words, else between characters.

    The text is tokenized in segments of bounded size: a tokenizer's time and memory for one long text are not. Words
    that spell a special token, such as </s>, are read as ordinary text.
    """
    sentences, words = sentence_ends(text), word_ends(text)
    segments = spans(len(text), SEGMENT, (sentences, words))
    ids, starts = [], []
    for first in range(0, len(segments), BATCH):
        batch = segments[first : first + BATCH]
        encoded = tokenizer(
            [text[start:end] for start, end in batch],
            add_special_tokens=False,
            return_offsets_mapping=True,
            split_special_tokens=True,
            verbose=False,
        )
        ids += [np.array(part, dtype=np.int64) for part in encoded["input_ids"]]
        for (start, _), offsets in zip(batch, encoded["offset_mapping"], strict=True):
            starts.append(start + np.array(offsets, dtype=np.int64).reshape(-1, 2)[:, 0])
    begins = np.maximum.accumulate(np.concatenate(starts))
    characters = np.flatnonzero(np.diff(begins)) + 1  # a character may be several tokens, which begin alike
    return Tokens(
        np.concatenate(ids), (np.searchsorted(begins, sentences), np.searchsorted(begins, words), characters)
    )


@dataclass(frozen=True)
class Frame:
    """The tokens before and after a document."""

    head: list[int]
    tail: list[int]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Frame":
        """What the tokenizer's chat template puts around a request, or a plain frame where it has none.

        Raises:
            UserError: see `chat.around`.
        """
        if template_of(tokenizer) is None:
            begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            return cls([*begin, *plain_ids(tokenizer, PLAIN[0])], plain_ids(tokenizer, PLAIN[1]))
        # Thinking is for templates that know it: the answer is to be the summary alone.
        head, tail = around(tokenizer, INSTRUCTION + MARK, MARK, add_generation_prompt=True, enable_thinking=False)
        return cls(plain_ids(tokenizer, head), plain_ids(tokenizer, tail))


def plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def ending_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Special tokens: models end an answer with one or another of them, and none belongs into a summary."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def pieces(tokenizer: "PreTrainedTokenizerBase", ids: Iterator[int]) -> Iterator[str]:
    """Tokens as text, as soon as it is certain: a character whose bytes have not all come is held back.

    A token's text can depend on the one before it (a word's leading space), so each piece is what decoding becomes
    longer by; what was given out already is decoded again only as far as the piece before, which keeps a long text's
    time in proportion to its length.
    """
    kept: list[int] = []
    told, begun = 0, False  # kept[:told] has been given out
    for token in ids:
        kept.append(token)
        before, now = decoded(tokenizer, kept[:told]), decoded(tokenizer, kept)
        if now.endswith(BROKEN) or len(now) <= len(before):
            continue
        piece = now[len(before) :] if begun else now[len(before) :].lstrip()
        kept, told = kept[told:], len(kept) - told
        if piece:
            begun = True
            yield piece
    rest = decoded(tokenizer, kept)[len(decoded(tokenizer, kept[:told])) :].rstrip(BROKEN)
    if rest:
        yield rest if begun else rest.lstrip()


def decoded(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)
