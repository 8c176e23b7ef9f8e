"""What stands in two splits: then a test shows what a model remembers, not what it has learned."""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any, Literal

import numpy as np

from hfcompress.errors import UserError
from hfcompress.tasks.find_splits import SPLITS

Overlap = Literal["refuse", "drop"]

Array = np.ndarray[Any, Any]

SHINGLE = 3  # words in a row
NEAR = 0.8  # cosine of two texts' sets of such sequences: as the embedded data set has it
HASHES, BAND = 48, 3  # of MinHash: a pair with three quarters of all sequences in common is missed once in 5,000 times
MOST_TEXTS = 200_000  # beyond, only texts that are equal but for case and punctuation are counted


@dataclass(frozen=True)
class Keys:
    """One split: what may stand in another one too, a row each.

    `texts` are compared as they are but for space around them; None is not compared. `groups` are None where every
    row is a group of its own. Images stand here by a hash of their bytes.
    """

    texts: list[str | None]
    groups: list[str] | None
    what: str = "texts"


def checked(
    dataset: str, splits: dict[str, Keys], overlap: Overlap, option: str
) -> tuple[dict[str, list[int]], list[str]]:
    """Return the rows of every split that stay, and sentences about what was dropped.

    Args:
        dataset: its name, for messages.
        splits: train, validation and test, as far as they are there.
        overlap: refuse the data, or drop from train and validation what stands in test, from train what stands in
            validation.
        option: what the options' names begin with.

    Raises:
        UserError: a text or a group stands in two splits, and is not to be dropped; or dropping leaves nothing.
    """
    found = [line for one, other in pairs_of(splits) if (line := shared(splits, one, other))]
    everything = {split: list(range(len(keys.texts))) for split, keys in splits.items()}
    if not found:
        return everything, []
    if overlap == "refuse":
        rest = "train and validation" if "validation" in splits else "train"
        raise UserError(
            f"{option}.dataset {dataset}: {'; '.join(found)}; such a test proves nothing: split the data anew, or "
            f"take these rows out of {rest} with {option}.overlap drop"
        )
    kept = dict(everything)
    later: list[Keys] = []
    for split in reversed([split for split in SPLITS if split in splits]):
        keys = splits[split]
        texts = {text for other in later for text in stripped(other.texts)}
        groups = {group for other in later for group in other.groups or []}
        kept[split] = [
            row
            for row, text in enumerate(keys.texts)
            if (text is None or text.strip() not in texts) and (keys.groups is None or keys.groups[row] not in groups)
        ]
        if not kept[split]:
            raise UserError(
                f"{option}.overlap drop: every row of {split} stands in another split; split the data anew"
            )
        later.append(keys)
    dropped = {split: len(everything[split]) - len(rows) for split, rows in kept.items()}
    counts = ", ".join(f"{n} of {len(everything[split])} rows of {split}" for split, n in dropped.items() if n)
    return kept, [f"{'; '.join(found)}: {counts} left out."]


def pairs_of(splits: dict[str, Keys]) -> "list[tuple[str, str]]":
    return list(combinations([split for split in SPLITS if split in splits], 2))


def shared(splits: dict[str, Keys], one: str, other: str) -> str:
    """Return what two splits share as words: how many groups and texts, and one of each; empty where they do not."""
    left, right = splits[one], splits[other]
    parts = []
    if left.groups is not None and right.groups is not None:
        parts += counted("groups", set(left.groups), set(right.groups), other, one)
    parts += counted(right.what, set(stripped(left.texts)), set(stripped(right.texts)), other, one)
    return " and ".join(parts)


def counted(what: str, left: set[str], right: set[str], other: str, one: str) -> list[str]:
    if not (both := left & right):
        return []
    example = "" if what == "images" else f" ({excerpt(min(both))})"
    return [f"{len(both)} of {len(right)} {what} of {other} stand in {one} too{example}"]


def excerpt(text: str, most: int = 60) -> str:
    """Return the beginning of a text between quotation marks, on one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= most else line[:most] + "...")


def stripped(texts: Iterable[str | None]) -> list[str]:
    return [text.strip() for text in texts if text is not None]


def near_duplicates(splits: dict[str, Keys]) -> list[str]:
    """Return a sentence for each pair of splits that holds texts which are nearly equal: counted, not refused."""
    size = sum(len(keys.texts) for keys in splits.values())
    sketches = {s: Sketches([text or "" for text in keys.texts], size <= MOST_TEXTS) for s, keys in splits.items()}
    found = []
    for one, other in pairs_of(splits):
        rows = sketches[other].like(sketches[one])
        if rows:
            example = excerpt(splits[other].texts[rows[0]] or "")
            found.append(
                f"{len(rows)} of {len(splits[other].texts)} texts of {other} are near-duplicates of one in {one} "
                f"(such as {example})."
            )
    return found


def normal(text: str) -> str:
    """Return a text's words in lower case, without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


class Sketches:
    """The texts of a split as sets of word sequences, by hashes of which similar sets are found (MinHash, LSH).

    Broder, "On the resemblance and containment of documents" (1997).
    """

    def __init__(self, texts: list[str], sequences: bool) -> None:
        self.normal = [normal(text) for text in texts]
        self.whole = set(self.normal) - {""}
        self.shingles = {row: shingles(text) for row, text in enumerate(self.normal) if sequences}
        self.bands: dict[tuple[int, bytes], list[int]] = {}
        for row, found in self.shingles.items():
            for band in bands(found):
                self.bands.setdefault(band, []).append(row)

    def like(self, others: "Sketches") -> list[int]:
        """Return the rows that are nearly equal to one of the others', in order."""
        found = {row for row, text in enumerate(self.normal) if text in others.whole}
        seen: set[tuple[int, int]] = set()
        for band, rows in self.bands.items():
            near = others.bands.get(band, [])
            for row, other in ((row, other) for row in rows if row not in found for other in near):
                if row in found or (row, other) in seen:
                    continue
                seen.add((row, other))
                if cosine(self.shingles[row], others.shingles[other]) >= NEAR:
                    found.add(row)
        return sorted(found)


WEIGHTS, FACTORS, ADDENDS = np.split(
    np.random.default_rng(0).integers(1, 2**63, SHINGLE + 2 * HASHES, dtype=np.uint64) | np.uint64(1),
    [SHINGLE, SHINGLE + HASHES],
)


@lru_cache(maxsize=2**20)
def word_hash(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "replace"))


def shingles(text: str) -> Array:
    """Return hashes of a text's word sequences, uint64 [sequences], each once and in order."""
    words = np.array([word_hash(word) for word in text.split()], np.uint64)
    if len(words) < SHINGLE:
        return words[:0]
    sequences = np.lib.stride_tricks.sliding_window_view(words, SHINGLE)
    return np.unique((sequences * WEIGHTS).sum(axis=1, dtype=np.uint64) >> np.uint64(16))  # overflows: a hash


def bands(found: Array) -> list[tuple[int, bytes]]:
    """Return the keys under which texts with similar sets of sequences meet: few, and none for a text without any."""
    if not len(found):
        return []
    least = (FACTORS[:, None] * found + ADDENDS[:, None]).min(axis=1)  # the products overflow: that is the hash
    return [(i, least[i : i + BAND].tobytes()) for i in range(0, HASHES, BAND)]


def cosine(left: Array, right: Array) -> float:
    """Return the cosine of two sets as binary vectors."""
    return len(np.intersect1d(left, right, assume_unique=True)) / float(np.sqrt(len(left) * len(right)))
