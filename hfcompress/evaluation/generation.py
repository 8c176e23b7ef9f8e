"""Greedy generation, and the same faster: guesses that are looked up in the text so far and verified in one pass.

Prompt-lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding) is speculative decoding (Leviathan
et al. 2023, "Fast Inference from Transformers via Speculative Decoding") without a draft model: what followed the last
few tokens when they last occurred is guessed to follow again. A summary repeats names and phrases of its document, so
the guess is often right; a wrong one costs a somewhat longer pass, never another text.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hfcompress.errors import UserError
from hfcompress.formats.runtimes.decoder import Decoder

# Tokens that must have occurred before, the longer match first. On stories260k guessing after one token alone saves a
# few passes more (49% instead of 45%, 8 ahead), but then three of four passes read a guess and only 16% of the tokens
# are right, not 36%: in torch, where a pass of 9 tokens takes 2.2 times one of 1 (fp32, 1 core), nothing is gained.
NGRAMS = (3, 2)


@dataclass
class Stats:
    """What generating cost, summed over the answers it is handed to."""

    answers: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    """Also the token that ends an answer."""
    first_token_s: float = 0.0
    """Seconds until the first token of an answer: to read its prompt."""
    later_s: float = 0.0
    """Seconds for all tokens but the first."""
    proposed: int = 0
    accepted: int = 0
    passes: int = 0
    """Times that the model ran, the prompt's included."""

    @property
    def ms_per_token(self) -> float | None:
        """Of all tokens but an answer's first; None where there are no others."""
        later = self.new_tokens - self.answers
        return 1e3 * self.later_s / later if later > 0 else None


def generate(
    decoder: Decoder,
    prompt: list[int],
    *,
    max_new_tokens: int,
    stop: set[int],
    lookup: int = 0,
    stats: Stats | None = None,
) -> Iterator[int]:
    """The most likely next token, again and again, until one of `stop` (not yielded), the limit or a full context.

    With `lookup` the tokens are the same as without, as far as the runtime computes a token's logits alike alone and
    among others: in exact arithmetic always, in floating point unless two tokens are all but equally likely.

    Args:
        decoder: what it held before is forgotten.
        prompt: at least one token, and no more than the context.
        lookup: tokens to guess ahead at most; 0 for one token a pass.
        stats: where the cost is added.

    Raises:
        UserError: the model's logits are nan.
    """
    stats = Stats() if stats is None else stats
    begun = time.perf_counter()
    decoder.rewind(0)
    likely = decoder.append(prompt)[-1]
    if np.isnan(likely).any():
        raise UserError("the model answers with no numbers (nan): its weights are damaged; fetch or make it again")
    token = int(likely.argmax())
    stats.first_token_s += time.perf_counter() - begun
    stats.answers += 1
    stats.passes += 1
    stats.prompt_tokens += len(prompt)
    left = max_new_tokens
    past, fresh = Past(prompt), [token]
    while True:
        for token in fresh:
            stats.new_tokens += 1
            if token in stop:
                return
            past.add(token)
            yield token
        left -= len(fresh)
        if left <= 0 or decoder.length >= decoder.context:
            return
        begun = time.perf_counter()
        # A pass yields one token more than it guesses right, and reads one more than it guesses.
        guess = past.guess(min(lookup, left - 1, decoder.context - decoder.length - 1))
        fresh = next_tokens(decoder, token, guess)
        stats.later_s += time.perf_counter() - begun
        stats.passes += 1
        stats.proposed += len(guess)
        stats.accepted += len(fresh) - 1


def next_tokens(decoder: Decoder, token: int, guess: list[int]) -> list[int]:
    """Read `token`, and the guess as far as it is right: the right guesses and the free token after them."""
    logits = decoder.append([token, *guess], all_logits=bool(guess))
    chosen = [int(choice) for choice in logits.argmax(axis=1)]
    right = agreeing(guess, chosen)
    decoder.rewind(decoder.length - (len(guess) - right))
    return chosen[: right + 1]


def agreeing(guess: list[int], chosen: list[int]) -> int:
    """How many guesses from the first on are what the model itself chose at their place."""
    right = 0
    while right < len(guess) and guess[right] == chosen[right]:
        right += 1
    return right


class Past:
    """The tokens so far, and where each short run of them last went on. Adding a token takes constant time."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Only now does the run that ends before `token` go on somewhere."""
        for size in NGRAMS:
            if len(self.tokens) >= size:
                self.after[tuple(self.tokens[-size:])] = len(self.tokens)
        self.tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """At most `count` tokens that followed when the last few tokens occurred before; none if they never did."""
        for size in NGRAMS if count > 0 else ():
            place = self.after.get(tuple(self.tokens[-size:]))
            if place is not None:
                return self.tokens[place : place + count]
        return []
