"""The statistics say "shown" only when they may, and count whole groups as the evidence they are."""

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, f1_score, recall_score

from hfcompress.evaluation.drawn import Drawn, paired_difference
from hfcompress.evaluation.metrics import METRICS
from hfcompress.evaluation.metrics.confusion import class_recall
from hfcompress.evaluation.statistics import Difference, n_needed, verdict

RNG = np.random.default_rng(0)
ACCURACY, MACRO_F1 = METRICS["accuracy"], METRICS["macro_f1"]


def drawn(labels: np.ndarray, predicted: np.ndarray, groups: list[str], resamples: int = 2000, seed: int = 0) -> Drawn:
    return Drawn(predicted, labels, groups, resamples=resamples, seed=seed)


def singles(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def test_metrics_of_confusion_matrices_are_scikit_learns() -> None:
    labels, predicted = RNG.integers(0, 4, 300), RNG.integers(0, 5, 300)
    found = drawn(labels, predicted, singles(300))
    assert found.value(ACCURACY) == pytest.approx(accuracy_score(labels, predicted))
    assert found.value(MACRO_F1) == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    matrix = found.sums(ACCURACY).sum(axis=0)
    assert class_recall(matrix)[:4] == pytest.approx(recall_score(labels, predicted, average=None, labels=range(4)))


def test_a_draw_is_of_whole_groups() -> None:
    groups = ["a"] * 5 + ["b"] * 3
    weights = drawn(np.zeros(8, int), np.zeros(8, int), groups, 200, seed=1).weights
    assert set(weights @ [5, 3]) == {6, 8, 10}


def test_without_clusters_the_interval_is_scipys() -> None:
    labels = np.zeros(400, int)
    predicted = (RNG.random(400) < 0.3).astype(int)
    ours = drawn(labels, predicted, singles(400), 4000).interval(ACCURACY)
    theirs = bootstrap(
        ((predicted == labels).astype(float),), np.mean, n_resamples=4000, method="percentile", random_state=0
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_clustered_data_is_covered_only_by_whole_groups() -> None:
    """Groups of ten that are right or wrong together: 95% intervals that ignore this cover far too seldom."""
    covered = {"groups": 0, "texts": 0}
    trials = 150
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        right = np.repeat(rng.random(60) < 0.8, 10)
        labels, predicted = np.zeros(600, int), (~right).astype(int)
        names = [str(i // 10) for i in range(600)]
        for kind, groups in (("groups", names), ("texts", singles(600))):
            low, high = drawn(labels, predicted, groups, 400, trial).interval(ACCURACY)
            covered[kind] += low <= 0.8 <= high
    assert covered["groups"] / trials > 0.88
    assert covered["texts"] / trials < 0.65


def pair(n: int, flips_lost: int, flips_gained: int = 0) -> tuple[Drawn, Drawn]:
    """A reference with 80% right, and a candidate that lost and gained so many texts."""
    labels = np.zeros(n, int)
    reference = (np.arange(n) >= 0.8 * n).astype(int)
    candidate = reference.copy()
    candidate[:flips_lost] = 1
    candidate[n - flips_gained :] = 0
    return drawn(labels, reference, singles(n)), drawn(labels, candidate, singles(n))


def difference(n: int, lost: int, gained: int = 0) -> Difference:
    return paired_difference(*pair(n, lost, gained), ACCURACY, 0.95)


def test_the_same_predictions_are_shown_to_be_as_good() -> None:
    found = difference(500, 0)
    assert (found.difference, found.standard_error) == (0, 0)
    assert verdict(found, 0.01) == "shown"
    assert n_needed(found, 0.01) == 299  # 0.99^299 < 0.05: the rule of three


def test_what_no_text_shows_is_not_shown() -> None:
    """A loss of 2% is missed altogether by 148 texts in one of twenty cases, by 149 in fewer."""
    assert verdict(difference(148, 0), 0.02) == "cannot be shown"
    assert verdict(difference(149, 0), 0.02) == "shown"
    assert n_needed(difference(10, 0), 0.02) == 149
    assert verdict(difference(500, 0), 0.0) == "cannot be shown"


@pytest.mark.parametrize("n", [5, 10, 20, 30])
def test_a_few_texts_seldom_accept_a_model_that_is_too_bad(n: int) -> None:
    """True drop 0.05, allowed 0.02: the bootstrap alone accepts 81% of these models at n = 5 and 22% at 30."""
    shown = 0
    for trial in range(100):
        lost = (np.random.default_rng(trial).random(n) < 0.05).astype(int)
        right, names = np.zeros(n, int), singles(n)
        models = drawn(right, right, names, 200, trial), drawn(right, lost, names, 200, trial)
        found = paired_difference(*models, ACCURACY, 0.95)
        shown += verdict(found, 0.02) == "shown"
    assert shown / 100 <= 0.05


def test_one_group_decides_nothing() -> None:
    """All its draws are the same, so the bootstrap alone would be certain."""
    right, lost = np.zeros(200, int), (np.arange(200) < 20).astype(int)
    one = ["contract"] * 200
    assert n_needed(difference(200, 0), 0.02) == 149
    same, worse = drawn(right, right, one), drawn(right, lost, one)
    found = paired_difference(same, same, ACCURACY, 0.95)
    assert verdict(found, 0.02) == "cannot be shown"
    assert n_needed(found, 0.02) is None  # more texts of that contract would show nothing
    assert verdict(paired_difference(same, worse, ACCURACY, 0.95), 0.02) == "cannot be shown"


def test_a_model_that_lost_much_exceeds_the_limit() -> None:
    found = difference(1000, 100)
    assert found.difference == pytest.approx(-0.1)
    assert verdict(found, 0.02) == "exceeded"
    assert n_needed(found, 0.02) is None


def test_too_few_texts_decide_nothing_and_the_needed_number_is_told() -> None:
    found = difference(100, 6, 6)
    assert verdict(found, 0.02) == "cannot be shown"
    needed = n_needed(found, 0.02)
    assert needed is not None
    assert 500 < needed < 2000
    assert verdict(difference(2 * needed, round(0.12 * needed), round(0.12 * needed)), 0.02) == "shown"


def test_the_lower_bound_is_the_normal_one_for_many_texts() -> None:
    found = difference(4000, 120, 80)
    error = np.sqrt((200 / 4000 - 0.01**2) / 4000)
    assert found.standard_error == pytest.approx(error, rel=0.05)
    assert found.lower_bound == pytest.approx(-0.01 - 1.645 * error, abs=0.0008)


def test_at_the_edge_of_the_limit_a_wrong_acceptance_is_as_rare_as_stated() -> None:
    """The candidate's true drop is exactly the allowed one: "shown" may come in 5% of the cases."""
    shown, trials = 0, 300
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        u = rng.random(800)
        reference, candidate = (u < 0.2).astype(int), ((u < 0.17) | (u > 0.95)).astype(int)  # true drop 0.02
        labels = np.zeros(800, int)
        names = singles(800)
        models = drawn(labels, reference, names, 400, trial), drawn(labels, candidate, names, 400, trial)
        found = paired_difference(*models, ACCURACY, 0.95)
        shown += verdict(found, 0.02) == "shown"
    assert shown / trials < 0.09


def test_macro_f1_has_a_bound_too() -> None:
    labels = RNG.integers(0, 3, 300)
    worse = np.where(RNG.random(300) < 0.2, 0, labels)
    models = drawn(labels, labels, singles(300)), drawn(labels, worse, singles(300))
    found = paired_difference(*models, MACRO_F1, 0.95)
    assert found.lower_bound < found.difference < found.upper_bound < 0
