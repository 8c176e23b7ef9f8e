"""How good summaries are: ROUGE against references, copying, length, and whether they say what the source does not.

ROUGE: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries". Copying: coverage, density and compression
of Grusky, Naaman and Artzi 2018, "Newsroom", section 4. Neither tells whether a summary is true. The faithfulness
check finds one kind of error only: numbers and names that the source does not hold (the entities of Nan et al. 2021,
"Entity-level Factual Consistency of Abstractive Text Summarization", by spelling alone).
"""

import re
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np

from hfcompress.errors import needs
from hfcompress.evaluation.drawn import group_weights, percentiles
from hfcompress.evaluation.statistics import Difference

Array = np.ndarray[Any, Any]

ROUGE = ("rouge1", "rouge2", "rougeL")
LONGEST_NGRAM = 4
COPYING = ("coverage", "density", *(f"copied_{n}grams" for n in range(1, LONGEST_NGRAM + 1)))
MEASURES = (*ROUGE, *COPYING, "words", "compression", "unsupported")

# A full stop ends a sentence only before a space ("3.14", "example.org"); a Chinese or Japanese one always does. An
# abbreviation before a space ("Art. 5") is taken for an end too: as a place to cut or to count, that does little harm.
# Possessive, and only from the first stop of a run: each character is looked at once, however many dots there are.
SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]]*+(?=\s|$)|[。！？]++[」』”’）]*+|(?<=\S)(?=[ \t]*+\n\s*\n)")
WORD_END = re.compile(r"(?<=\S)(?=\s)")
WORD = re.compile(r"\w+(?:['’]\w+)?")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
NAME = re.compile(r"[^\W\d_]\w*(?:-\w+)*")


def sentence_ends(text: str) -> Array:
    """Characters after which a sentence ends, ascending; an empty line ends one too."""
    return np.array([match.end() for match in SENTENCE_END.finditer(text)], dtype=np.int64)


def word_ends(text: str) -> Array:
    """Characters after which a word ends, ascending."""
    return np.array([match.end() for match in WORD_END.finditer(text)], dtype=np.int64)


def sentences(text: str) -> list[str]:
    """A text's sentences, without the space around them."""
    ends = [0, *sentence_ends(text).tolist(), len(text)]
    cut = (text[start:end].strip() for start, end in pairwise(ends))
    return [sentence for sentence in cut if sentence]


def lead(text: str, count: int) -> str:
    """The first sentences of a text: the baseline that a summary must beat."""
    return " ".join(sentences(text)[:count])


def words(text: str) -> list[str]:
    return WORD.findall(text.lower().replace("’", "'"))


def rouge(summary: str, references: list[str]) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L with stemming; of several references each measure takes its best one."""
    needs("rouge_score")
    from rouge_score.rouge_scorer import RougeScorer

    best = RougeScorer(list(ROUGE), use_stemmer=True).score_multi(references, summary)
    return {name: float(best[name].fmeasure) for name in ROUGE}


def copying(source: str, summary: str) -> dict[str, float]:
    """How much of a summary is its source's words.

    Returns: coverage (share of words in fragments that stand in the source), density (mean length of the fragment
        that a word belongs to) and the share of n-grams that stand in the source; 0 where the summary is too short to
        have one.
    """
    there, said = words(source), words(summary)
    lengths = fragments(there, said)
    found = {
        "coverage": sum(lengths) / len(said) if said else 0.0,
        "density": sum(length * length for length in lengths) / len(said) if said else 0.0,
    }
    for n in range(1, LONGEST_NGRAM + 1):
        known, made = set(ngrams(there, n)), ngrams(said, n)
        found[f"copied_{n}grams"] = sum(ngram in known for ngram in made) / len(made) if made else 0.0
    return found


def ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def fragments(source: list[str], summary: list[str]) -> list[int]:
    """Lengths of the runs that a summary shares with its source, longest first from left to right (Grusky, fig. 3)."""
    places = defaultdict(list)
    for place, word in enumerate(source):
        places[word].append(place)
    found, start = [], 0
    while start < len(summary):
        longest = max((shared(source, place, summary, start) for place in places[summary[start]]), default=0)
        if longest:
            found.append(longest)
        start += max(longest, 1)
    return found


def shared(source: list[str], place: int, summary: list[str], start: int) -> int:
    """Words for which two texts go on alike."""
    length = 0
    while (
        place + length < len(source)
        and start + length < len(summary)
        and source[place + length] == summary[start + length]
    ):
        length += 1
    return length


def unsupported(source: str, summary: str) -> list[str]:
    """Numbers and names in a summary that its source does not hold, each once, in their order.

    A number is compared without its separators of thousands; a name in any case, part by part at hyphens. A name is a
    capitalised word within a sentence, or one with a capital inside (NASA, iPhone). Not seen: a first word, numbers in
    words, and a name or number of the source that is told of the wrong thing.
    """
    numbers = {plain_number(number) for number in NUMBER.findall(source)}
    known = {part for word in NAME.findall(source.lower()) for part in word.split("-")} | numbers
    found = []
    for sentence in sentences(summary):
        for match in re.finditer(f"{NUMBER.pattern}|{NAME.pattern}", sentence):
            token = match.group()
            if token[0].isdigit():
                missing = plain_number(token) not in numbers
            else:
                parts = token.lower().split("-")
                missing = is_name(token, first=match.start() == 0) and not known.issuperset(parts)
            if missing:
                found.append(token)
    return list(dict.fromkeys(found))


def is_name(word: str, *, first: bool) -> bool:
    inside = any(letter.isupper() for letter in word[1:])
    return inside or (word[0].isupper() and len(word) > 1 and not first)


def plain_number(number: str) -> str:
    return re.sub(r",(?=\d{3}(?!\d))", "", number)


def score(source: str, summary: str, references: list[str]) -> dict[str, Any]:
    """All MEASURES of one summary, and `unsupported_words`, the list behind `unsupported` (1 if there are any)."""
    length, missing = len(words(summary)), unsupported(source, summary)
    return {
        **rouge(summary, references),
        **copying(source, summary),
        "words": float(length),
        "compression": len(words(source)) / length if length else 0.0,
        "unsupported": float(bool(missing)),
        "unsupported_words": missing,
    }


def by_group(scored: list[dict[str, Any]], groups: list[str], measure: str) -> tuple[Array, Array]:
    """Sums of a measure and counts of documents, float64 [groups], groups in sorted order."""
    names, number = np.unique(np.array(groups), return_inverse=True)
    values = np.array([row[measure] for row in scored])
    return np.bincount(number, values, len(names)), np.bincount(number, minlength=len(names)).astype(np.float64)


def summary(scored: list[dict[str, Any]], groups: list[str], *, resamples: int, seed: int) -> dict[str, Any]:
    """The mean of every measure over the documents, with its 95% interval over draws of whole groups.

    Args:
        scored: `score` of each document; groups: which documents are not independent of each other, [documents].

    Returns: measure -> value; ci95: measure -> [low, high]; n, groups.
    """
    weights = group_weights(len(set(groups)), resamples, seed)
    found: dict[str, Any] = {"ci95": {}, "n": len(scored), "groups": len(set(groups))}
    for measure in MEASURES:
        sums, counts = by_group(scored, groups, measure)
        found[measure] = float(sums.sum() / counts.sum())
        found["ci95"][measure] = percentiles((weights @ sums) / (weights @ counts))
    return found


def paired_difference(
    reference: list[dict[str, Any]],
    candidate: list[dict[str, Any]],
    groups: list[str],
    measure: str,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Difference:
    """Candidate minus reference in a measure's mean over the same documents, with one-sided bounds at `confidence`.

    As in statistics.py, whole groups are drawn, the same ones for both. One group is one observation, of which
    nothing can be said: its bounds are then infinite.
    """
    sums, counts = by_group(reference, groups, measure)
    change = by_group(candidate, groups, measure)[0] - sums
    weights = group_weights(len(counts), resamples, seed)
    drawn = (weights @ change) / (weights @ counts)
    bounds = np.quantile(drawn, [1 - confidence, confidence]) if len(counts) > 1 else (-np.inf, np.inf)
    return Difference(
        float(change.sum() / counts.sum()),
        float(bounds[0]),
        float(bounds[1]),
        float(drawn.std(ddof=1)),
        confidence,
        int(counts.sum()),
        len(counts),
    )
