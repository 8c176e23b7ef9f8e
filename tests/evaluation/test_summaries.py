import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcompress.errors import UserError
from hfcompress.evaluation.summaries import (
    MEASURES,
    copying,
    fragments,
    lead,
    paired_difference,
    rouge,
    score,
    sentences,
    summary,
    unsupported,
)
from hfcompress.tasks.summarization import Summarization

SOURCE = "the cat sat on the mat and the dog ran away"


def test_rouge_by_hand() -> None:
    """3 of 3 and 3 of 6 words; 1 of 2 and 1 of 5 pairs; the longest common subsequence is "the cat mat"."""
    found = rouge("the cat mat", ["the cat sat on the mat"])
    assert found["rouge1"] == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert found["rouge2"] == pytest.approx(2 * 0.5 * 0.2 / 0.7)
    assert found["rougeL"] == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert rouge("cats running", ["cat runs"])["rouge1"] == 1  # stems


def test_rouge_takes_the_best_reference_of_each_measure() -> None:
    assert rouge("a b c", ["x y z", "c b a", "a b x"]) == pytest.approx(
        {"rouge1": 1.0, "rouge2": 0.5, "rougeL": 2 / 3}
    )
    assert rouge("", ["a"]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}


def test_copied_ngrams_by_hand() -> None:
    """ "the cat ran away home": "the cat" and "ran away" are fragments, "home" is new."""
    found = copying(SOURCE, "The cat ran away home.")
    assert found["coverage"] == pytest.approx(4 / 5)
    assert found["density"] == pytest.approx((4 + 4) / 5)
    assert [found[f"copied_{n}grams"] for n in (1, 2, 3, 4)] == pytest.approx([4 / 5, 2 / 4, 0, 0])
    whole = copying(SOURCE, SOURCE)
    assert whole["coverage"] == 1
    assert whole["density"] == len(SOURCE.split())
    assert set(copying(SOURCE, "").values()) == {0}


def test_fragments_are_the_longest_from_left_to_right() -> None:
    assert fragments(list("abcabd"), list("abdxabc")) == [3, 3]
    assert fragments(list("ab"), list("ba")) == [1, 1]


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        ("We pay 1000 dollars, or 3.5 percent.", []),
        ("We pay 1500 dollars in 2021.", ["1500", "2021"]),
        ("It was Google that asked Oracle.", ["Oracle"]),
        ("Nobody knows NASA or the iPhone.", ["NASA", "iPhone"]),
        ("Maybe. Also this, I think.", []),  # first words, and I
        ("We measure CIFAR-100 and Zoë-Maria.", ["Zoë-Maria"]),
        ("Oracle, the Oracle, said Oracle.", ["Oracle"]),
        ("They took GOOGLE's word.", []),
    ],
)
def test_names_and_numbers_that_the_source_does_not_hold(said: str, missing: list[str]) -> None:
    source = "you pay 1,000 dollars or 3.5 percent to google for cifar 100. Zoë agrees."
    assert unsupported(source, said) == missing


def test_sentences_and_the_lead() -> None:
    text = 'Art is 3.14 long. "Is it?" Yes!\n\nA heading\n\nThe end。終わり。'
    assert sentences(text) == ["Art is 3.14 long.", '"Is it?"', "Yes!", "A heading", "The end。", "終わり。"]
    assert lead(text, 2) == 'Art is 3.14 long. "Is it?"'
    assert sentences("  ") == []


def scored(rng: np.random.Generator, shift: float, count: int = 60) -> list[dict[str, Any]]:
    return [{name: float(value) for name in MEASURES} for value in rng.random(count) + shift]


def test_means_have_intervals_that_cover_them() -> None:
    rows = scored(np.random.default_rng(0), 0)
    alone = summary(rows, [str(i) for i in range(60)], resamples=2000, seed=0)
    low, high = alone["ci95"]["rouge1"]
    mean = np.mean([row["rouge1"] for row in rows])
    assert alone["rouge1"] == pytest.approx(mean)
    assert low < mean < high
    spread = np.std([row["rouge1"] for row in rows]) / 60**0.5
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    assert (alone["n"], alone["groups"]) == (60, 60)


def test_a_paired_difference_is_far_narrower_than_the_scores() -> None:
    reference, candidate = scored(np.random.default_rng(0), 0), scored(np.random.default_rng(0), -0.1)
    groups = [str(i // 2) for i in range(60)]
    found = paired_difference(reference, candidate, groups, "rougeL", confidence=0.95, resamples=500, seed=0)
    assert found.difference == pytest.approx(-0.1)
    assert found.lower_bound == pytest.approx(found.upper_bound)
    assert (found.n, found.groups) == (60, 30)
    one = paired_difference(reference, candidate, ["a"] * 60, "rougeL", confidence=0.95, resamples=9, seed=0)
    assert (one.lower_bound, one.upper_bound) == (-np.inf, np.inf)


def test_a_score_holds_every_measure() -> None:
    found = score(SOURCE, "the cat met Tom", ["a cat"])
    assert set(found) == {*MEASURES, "unsupported_words"}
    assert (found["words"], found["compression"]) == (4, 11 / 4)
    assert (found["unsupported"], found["unsupported_words"]) == (1, ["Tom"])


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file.parent


def test_a_task_reads_texts_and_lists_of_texts(tmp_path: Path) -> None:
    rows = [{"text": f"document {i}", "short": ["one", "", f"two {i}"], "who": "a"} for i in range(9)]
    options = {"document_column": "text", "summary_column": "short", "group_column": "who"}
    task = Summarization(str(write(tmp_path / "papers.jsonl", rows)), **options, max_documents=3)  # type: ignore[arg-type]
    found = task.data.splits["test"]
    assert found.documents == ["document 0", "document 4", "document 8"]
    assert found.references[1] == ["one", "two 4"]
    assert found.groups == ["a", "a", "a"]
    write(tmp_path / "train.jsonl", [row | {"text": f"more {i}", "who": "b"} for i, row in enumerate(rows)])
    more = Summarization(str(tmp_path), **options)  # type: ignore[arg-type]
    assert {split: len(rows.documents) for split, rows in more.data.splits.items()} == {"train": 9, "test": 9}
    assert more.fingerprint() != task.fingerprint()
    assert more.identity.startswith(f"{tmp_path.name}@")


def test_a_task_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no test split"):
        _ = Summarization(str(tmp_path)).data
    write(tmp_path / "test.jsonl", [{"document": "a", "summary": "b"}, {"document": " ", "summary": "c"}])
    with pytest.raises(UserError, match="document is empty in row 1 of the test split"):
        _ = Summarization(str(tmp_path)).data
    with pytest.raises(UserError, match=r"--documents\.summary-column short: the test split has no such column"):
        _ = Summarization(str(tmp_path), summary_column="short").data
    with pytest.raises(UserError, match="no such folder"):
        _ = Summarization(str(tmp_path / "nowhere")).data
    with pytest.raises(UserError, match="must be at least 1"):
        Summarization(str(tmp_path), max_documents=0)


@pytest.mark.slow
def test_the_lead_of_real_documents(real_data: Path) -> None:
    for name, column, count, least in (
        ("legal_summarization", "summary", 446, 0.2),
        ("scitldr", "summaries", 618, 0.3),
    ):
        # One paper of SciTLDR stands in its validation split, too.
        task = Summarization(str(real_data / name), summary_column=column, overlap="drop")
        rows = task.data.splits["test"]
        assert len(rows.documents) == count
        scores = [
            score(document, lead(document, 1), references)
            for document, references in zip(rows.documents, rows.references, strict=True)
        ]
        found = summary(scores, rows.groups, resamples=1000, seed=0)
        assert found["rouge1"] > least
        assert found["coverage"] == 1
        assert found["unsupported"] == 0
