"""The linear baseline learns, and gives a score for every class of the task."""

import numpy as np
import pytest

from hfcompress.errors import UserError
from hfcompress.tasks import linear as baseline

WORDS = {0: "grant permission copy modify", 1: "disclose source derivative copyleft", 2: "fee payment vendor price"}
TEXTS = [
    f"{word} {other} common words" for words in WORDS.values() for word in words.split() for other in words.split()
]
LABELS = [label for label in WORDS for _ in range(16)]


def test_a_separable_task_is_learned() -> None:
    pipeline = baseline.fit(TEXTS, LABELS)
    found = baseline.scores(pipeline, ["please grant permission", "the source of a derivative", "payment of a fee"], 3)
    assert found.argmax(axis=1).tolist() == [0, 1, 2]


def test_labels_without_relation_to_the_texts_are_not_learned() -> None:
    """The broken case: shuffled labels score no better than chance on texts that were not seen."""
    labels = np.random.default_rng(0).permutation(LABELS).tolist()
    pipeline = baseline.fit(TEXTS[::2], labels[::2])
    found = baseline.scores(pipeline, TEXTS[1::2], 3).argmax(axis=1)
    assert np.mean(found == np.array(labels[1::2])) < 0.6


def test_two_classes_and_a_class_never_seen_have_their_columns() -> None:
    seen = [i for i, label in enumerate(LABELS) if label != 1]
    texts, labels = [TEXTS[i] for i in seen], [LABELS[i] for i in seen]
    found = baseline.scores(baseline.fit(texts, labels), texts, 3)
    assert found.shape == (32, 3)
    assert found.argmax(axis=1).tolist() == labels
    assert (found[:, 1] < found[:, [0, 2]].min()).all()


def test_the_same_texts_give_the_same_scores() -> None:
    one, other = (baseline.scores(baseline.fit(TEXTS, LABELS), TEXTS, 3) for _ in range(2))
    assert np.array_equal(one, other)


def test_size_counts_coefficients_and_vocabulary() -> None:
    parameters, size = baseline.size(baseline.fit(TEXTS, LABELS))
    assert size > 4 * parameters > 0


def test_unseen_probabilities_know_nothing_of_a_texts_own_group() -> None:
    """A word that only one group uses betrays its label to a model that saw the group, and to no other."""
    labels = [i % 2 for i in range(60)]
    groups = [str(i // 2 % 10) for i in range(60)]  # ten groups of three pairs, both labels in each
    texts = [f"word{group}{label} filler text" for group, label in zip(groups, labels, strict=True)]
    seen = baseline.scores(baseline.fit(texts, labels), texts, 2).argmax(axis=1)
    assert (seen == labels).all()
    unseen = baseline.unseen_probabilities(texts, labels, groups, 2)
    assert unseen.sum(axis=1) == pytest.approx(np.ones(60))
    assert np.abs(unseen[:, 0] - 0.5).max() < 0.1


def test_unseen_probabilities_are_calibrated() -> None:
    """Where every fifth label is wrong, the answers are about four fifths sure."""
    texts, truth = TEXTS * 10, LABELS * 10
    labels = [(label + (i % 5 == 0)) % 3 for i, label in enumerate(truth)]
    sure = baseline.unseen_probabilities(texts, labels, [str(i) for i in range(len(texts))], 3)
    right = np.mean(sure.argmax(axis=1) == np.array(labels))
    assert right == pytest.approx(0.8, abs=0.05)
    assert sure.max(axis=1).mean() == pytest.approx(right, abs=0.1)


def test_one_group_cannot_be_cross_fitted() -> None:
    with pytest.raises(UserError, match="two groups"):
        baseline.unseen_probabilities(TEXTS, LABELS, ["same"] * len(TEXTS), 3)
