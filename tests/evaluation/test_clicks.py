"""The generated click log and its truth, and what is measured of a click model."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from hfcompress.budget import ClickBudget, verdicts
from hfcompress.errors import UserError
from hfcompress.evaluation import clicks
from hfcompress.evaluation.clicks import Judged
from hfcompress.evaluation.item_rates import item_rates, rate_scores
from hfcompress.evaluation.metrics.auc import placements
from hfcompress.evaluation.metrics.ctr import chosen_rows
from hfcompress.report.console import sentence
from hfcompress.rollout.stage import ab_events, request_lines
from hfcompress.tasks.click_log import CONTEXTS, ClickLog, World
from hfcompress.tasks.tabular_classification import COLUMNS, Clicks, hash_of, write_logs

SMALL = Clicks(users=800, items=900, categories=15, requests=3_000)


@pytest.fixture(scope="module")
def log() -> ClickLog:
    return SMALL.data.logs["test"]


def test_the_same_seed_gives_the_same_log_and_another_seed_another() -> None:
    again = World(800, 900, 15, 0).requests("test", 750, 4)
    assert hash_of({"test": again}, "") == hash_of({"test": SMALL.data.logs["test"]}, "")
    other = World(800, 900, 15, 1).requests("test", 750, 4)
    assert hash_of({"test": other}, "") != hash_of({"test": again}, "")


def test_clicks_come_as_often_as_the_truth_says() -> None:
    world = World(2_000, 2_000, 15, 0)
    log = world.requests("train", 50_000, 4)
    truth = world.probability(log)
    for part in np.array_split(np.argsort(truth), 10):
        error = np.sqrt((truth[part] * (1 - truth[part])).sum()) / len(part)
        assert abs(log.click[part].mean() - truth[part].mean()) < 5 * error
    assert log.conversion[log.click == 0].sum() == 0


def test_popularity_is_a_power_law_and_ids_are_born_over_time() -> None:
    world = World(2_000, 3_000, 15, 0)
    train, live = world.requests("train", 20_000, 4), world.requests("live", 5_000, 4)
    counts = np.sort(np.bincount(train.item, minlength=3_000))[::-1]
    assert counts[:30].sum() > 0.4 * counts.sum()
    assert live.item.max() > train.item.max()
    assert live.user.max() > train.user.max()
    assert train.time.max() < live.time.min()


def test_the_effects_of_single_ids_have_no_low_rank() -> None:
    """Half the energy of their matrix needs nearly half of all ranks; the tastes' needs six numbers for all of it."""
    effects = vars(World(3_000, 3_000, 15, 0))["single_item"]
    energy = np.cumsum(np.linalg.svd(effects, compute_uv=False) ** 2)
    assert (energy / energy[-1] < 0.5).sum() >= 0.4 * CONTEXTS


def test_parquet_of_the_same_columns_is_the_same_log(tmp_path: Path) -> None:
    write_logs(SMALL.data, tmp_path)
    read = Clicks(dataset=str(tmp_path)).data
    for name in COLUMNS:
        assert np.array_equal(getattr(read.logs["test"], name), getattr(SMALL.data.logs["test"], name)), name
    assert read.rows == SMALL.data.rows


def test_rows_of_a_request_are_brought_together(tmp_path: Path) -> None:
    """Two requests whose items were shown one after another, in turn."""
    write_logs(SMALL.data, tmp_path)
    columns = {name: getattr(SMALL.data.logs["test"], name)[:4].copy() for name in COLUMNS}
    columns |= {"request": np.array([7, 5, 7, 5]), "time": np.array([22.1, 22.2, 22.3, 22.4], np.float32)}
    columns["item"] = np.array([0, 1, 2, 3])
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "test.parquet")
    found = Clicks(dataset=str(tmp_path)).data.logs["test"]
    assert (found.request.tolist(), found.item.tolist()) == ([7, 7, 5, 5], [0, 2, 1, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"click": None}, "has no column click"),
        ({"user": -1}, "the column user must hold integers from 0"),
        ({"item": 0.5}, "the column item must hold integers from 0"),
        ({"click": 2}, "the column click must hold 0 or 1"),
        ({"price": float("nan")}, "the column price must hold finite numbers"),
    ],
)
def test_a_log_that_is_not_one_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_logs(SMALL.data, tmp_path)
    columns = {name: getattr(SMALL.data.logs["test"], name)[:10] for name in COLUMNS}
    for name, value in change.items():
        if value is None:
            del columns[name]
        else:
            columns[name] = np.full(10, value)
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "test.parquet")
    with pytest.raises(UserError, match=message):
        _ = Clicks(dataset=str(tmp_path)).data


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no train\.parquet"):
        _ = Clicks(dataset=str(tmp_path / "none")).data
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"not a parquet file"):
        _ = Clicks(dataset=str(tmp_path)).data


def judged(log: ClickLog, score: np.ndarray) -> Judged:
    return Judged(score, score, log.click, log.conversion, log.request, log.user)


def noisy(log: ClickLog, noise: float, seed: int = 0) -> Judged:
    truth = SMALL.world.probability(log)
    logit = np.log(truth / (1 - truth))
    return judged(log, (logit + np.random.default_rng(seed).normal(0, noise, len(log))).astype(np.float32))


def test_auc_and_log_loss_are_scikit_learns(log: ClickLog) -> None:
    one = noisy(log, 0.5)
    rounded = judged(log, np.round(one.score, 1))  # with ties
    for judge in (one, rounded):
        auc, influence = placements(judge.score, log.click)
        assert auc == pytest.approx(roc_auc_score(log.click, judge.score)) == judge.value("auc")
        assert influence.sum() == pytest.approx(0, abs=1e-12)
    assert one.value("log_loss") == pytest.approx(log_loss(log.click, one.probability))


def test_the_choice_of_a_request_is_its_highest_score() -> None:
    request, score = np.array([5, 5, 5, 2, 2, 9]), np.array([0.1, 0.9, 0.9, -1.0, -2.0, 0.0])
    assert chosen_rows(request, score).tolist() == [1, 3, 5]


def test_intervals_are_those_of_a_bootstrap_over_users(log: ClickLog) -> None:
    old, new = noisy(log, 0.2), noisy(log, 0.8)
    found = clicks.differences(old, new, 0.95)
    users, place = np.unique(log.user, return_inverse=True)
    rows_of = [np.flatnonzero(place == i) for i in range(len(users))]
    random, draws = np.random.default_rng(0), []
    for _ in range(300):
        rows = np.concatenate([rows_of[i] for i in random.integers(0, len(users), len(users))])
        auc = [roc_auc_score(log.click[rows], j.score[rows]) for j in (old, new)]
        weight = np.bincount(rows, minlength=len(log))
        ctr = [(weight[j.chosen] * log.click[j.chosen]).sum() / weight[j.chosen].sum() for j in (old, new)]
        draws.append((auc[1] - auc[0], ctr[1] / ctr[0] - 1))
    deviation = np.std(draws, axis=0)
    assert found["auc"].standard_error == pytest.approx(deviation[0], rel=0.2)
    assert found["ctr"].standard_error == pytest.approx(deviation[1], rel=0.2)
    assert found["auc"].difference == pytest.approx(
        roc_auc_score(log.click, new.score) - roc_auc_score(log.click, old.score)
    )


def test_one_user_shows_nothing(log: ClickLog) -> None:
    one = replace(noisy(log, 0.2), user=np.zeros(len(log), int))
    assert clicks.differences(one, one, 0.95)["ctr"].lower_bound < -0.9


@pytest.mark.parametrize(("noise", "outcome"), [(0.001, "shown"), (3.0, "exceeded")])
def test_a_broken_model_fails_its_budget(log: ClickLog, noise: float, outcome: str) -> None:
    old, new = noisy(log, 0.0), noisy(log, noise)
    found = {name: asdict(d) for name, d in clicks.differences(old, new, 0.95).items()}
    row = {"bytes": 1, "peak_rss_mb": 1.0, "latency_ms": {"p50": 1.0}}
    budget, rows = ClickBudget(drop={"auc": 0.02, "ctr": 0.05}), [{"name": "a"} | row, {"name": "b"} | row]
    decided = verdicts(budget, "b", "a", "a", rows, found, {})
    assert [one.verdict for one in decided] == [outcome, outcome]
    assert outcome in sentence(decided[1].as_dict())
    assert "clicks" in sentence(decided[1].as_dict())


def test_miscalibrated_probabilities_are_seen(log: ClickLog) -> None:
    right = noisy(log, 0.0)
    wrong = replace(right, score=right.score + 1.0)
    assert clicks.summary(wrong)["ece"] > clicks.summary(right)["ece"] + 0.1
    assert clicks.summary(wrong)["auc"] == clicks.summary(right)["auc"]
    assert clicks.summary(wrong)["predicted_ctr"] > clicks.summary(right)["observed_ctr"] + 0.1


def test_item_rates_are_smoothed_shares() -> None:
    rates = item_rates(np.array([0, 0, 1]), np.array([1, 1, 0]), 2)
    mean = 2 / 3
    expected = (2 + 20 * mean) / (2 + 20)
    assert rates[0] == pytest.approx(np.log(expected / (1 - expected)), rel=1e-5)
    assert rates[2] == pytest.approx(np.log(mean / (1 - mean)), rel=1e-5)
    assert rate_scores(rates, np.array([7]))[0] == rates[2]


def test_an_ab_events_user_keeps_his_arm_and_gets_its_choice(log: ClickLog) -> None:
    up, down = np.arange(len(log), dtype=float), -np.arange(len(log), dtype=float)
    logits = {"old": np.stack([up, up], 1), "new": np.stack([down, down], 1)}
    events = ab_events(log, logits, "salt")
    assert len(events) == len(set(log.request.tolist()))
    arms: dict[str | None, set[str]] = {}
    for event in events:
        arms.setdefault(event.user, set()).add(event.arm)
    assert all(len(seen) == 1 for seen in arms.values())
    by_request = {int(r): np.flatnonzero(log.request == r) for r in log.request}
    for event in events[:50]:
        row = by_request[int(event.id)][-1 if event.arm == "old" else 0]
        assert event.outcome["ctr"] == log.click[row]


def test_rows_become_requests_that_a_click_model_reads(log: ClickLog) -> None:
    from hfcompress.formats.runtimes.click_predictor import columns_of
    from hfcompress.rollout.serving import requests

    asked = list(requests(request_lines(log.rows(slice(0, 5)))))
    columns = columns_of([entry["input"] for entry in asked])
    assert columns["user"].tolist() == log.user[:5].tolist()
    assert columns["price"].tolist() == pytest.approx(log.price[:5].tolist())


@pytest.mark.parametrize("text", ["hello", "[]", '{"user": 1}', '{"user": "x"}', '{"user": 1e400}'])
def test_a_request_that_is_none_is_named(text: str) -> None:
    from hfcompress.formats.runtimes.click_predictor import columns_of

    with pytest.raises(UserError, match=r"is not a request"):
        columns_of([text])


def test_a_request_with_an_id_beyond_int64_is_named() -> None:
    from hfcompress.formats.runtimes.click_predictor import columns_of

    text = '{"user": 99999999999999999999, "item": 1, "category": 1, "context": 1, "price": 0, "time": 0}'
    with pytest.raises(UserError, match=r"out of range"):
        columns_of([text])
