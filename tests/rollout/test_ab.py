"""A/B tests: wrong decisions stay below the stated error at any number of looks, and real differences are found."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcompress import cli
from hfcompress.errors import UserError
from hfcompress.rollout.sequential import Look, Tolerance, ab, boundary, looked, ratio_p, running_means
from hfcompress.rollout.traffic import Event, assigned
from tests.fork_server import Finished, ForkServer

EXPERIMENTS = 1000


def decisions(
    old: float, new: float, tolerance: Tolerance, users: int, *, visits: int = 1, seed: int = 0, experiments: int
) -> list[str]:
    """The first decision of each simulated experiment with a look after every 100 events.

    With several visits a user has a rate of his own, and comes back at any time: his events are not independent.
    """
    found = []
    for number in range(experiments):
        rng = np.random.default_rng((seed, number))
        arm = rng.random(users) < 0.5
        rates = np.where(arm, new, old) * (2 * rng.beta(2, 2, users) if visits > 1 else 1.0)
        who = rng.permutation(np.repeat(np.arange(users), visits))
        value = (rng.random(len(who)) < rates[who]).astype(float)
        looks = looked(arm[who], who, value, tolerance, 0.05, users / 2, 100)
        found.append(next((look.verdict for look in looks if look.verdict != "keep going"), "keep going"))
    return found


@pytest.mark.parametrize(
    ("old", "tolerance", "visits"),
    [
        (0.05, Tolerance(0.1, relative=True), 1),
        (0.2, Tolerance(0.02, relative=False), 1),
        (0.1, Tolerance(0.1, True), 5),
    ],
)
def test_at_the_edge_of_the_tolerance_wrong_decisions_stay_below_five_percent(
    old: float, tolerance: Tolerance, visits: int
) -> None:
    new = old * (1 - tolerance.value) if tolerance.relative else old - tolerance.value
    found = decisions(old, new, tolerance, 4000 // visits, visits=visits, experiments=EXPERIMENTS)
    assert found.count("accept") < 0.05 * EXPERIMENTS
    assert found.count("roll back") < 0.05 * EXPERIMENTS


def test_looking_often_with_bounds_for_one_look_would_be_wrong_far_too_often() -> None:
    """The broken check: the same experiments against 1.64 standard errors, as after a single look."""
    wrong = 0
    for number in range(200):
        rng = np.random.default_rng(number)
        arm, value = rng.random(4000) < 0.5, rng.random(4000)
        value = (value < np.where(arm, 0.18, 0.2)).astype(float)
        looks = looked(arm, np.arange(4000), value, Tolerance(0.02, relative=False), 0.05, 2000, 100)
        single = [1.645 / np.sqrt(look.users) / boundary(look.users, 0.05, 2000) for look in looks]
        wrong += any(
            look.theta > (look.upper - look.theta) * factor for look, factor in zip(looks, single, strict=True)
        )
    assert wrong > 0.1 * 200


def test_real_differences_are_found_with_this_power() -> None:
    """20,000 users, 20% clicks, two points of tolerance: as good is accepted, four points worse is rolled back."""
    tolerance = Tolerance(0.02, relative=False)
    same = decisions(0.2, 0.2, tolerance, 20_000, experiments=100)
    worse = decisions(0.2, 0.16, tolerance, 20_000, experiments=100)
    assert same.count("accept") >= 80
    assert worse.count("roll back") >= 80
    assert "roll back" not in same
    assert "accept" not in worse


def test_the_boundary_is_robbins_mixture_by_hand() -> None:
    """At n = 100, tuned to 100: rho = (-2 ln 0.1 + ln(-2 ln 0.1 + 1)) / 100 = 0.0632742."""
    rho = 0.0632742
    by_hand = np.sqrt(2 * (100 * rho + 1) / (100**2 * rho) * np.log(1 + np.sqrt(100 * rho + 1) / 0.1))
    assert boundary(100, 0.05, 100) == pytest.approx(by_hand, rel=1e-4)
    assert boundary(100, 0.05, 100) > 1.645 / 10  # wider than for one look


def test_the_variance_is_that_of_whole_users() -> None:
    """Against the delta method written out over users at the end of the traffic."""
    rng = np.random.default_rng(0)
    user, mine = rng.integers(0, 40, 500), np.ones(500, dtype=bool)
    value = rng.random(500)
    mean, variance, users = (column[-1] for column in running_means(mine, user, value))
    sums = np.bincount(user, value, 40)
    counts = np.bincount(user, minlength=40)
    ratio = sums.sum() / counts.sum()
    by_hand = ((sums - ratio * counts) ** 2).sum() / counts.sum() ** 2 * 40 / 39
    assert (mean, variance, users) == (pytest.approx(ratio), pytest.approx(by_hand), 40)


def test_a_broken_assignment_is_noticed_and_a_fair_one_is_not() -> None:
    assert ratio_p({"old": 5000, "new": 5400}, 0.5) < 0.001
    assert ratio_p({"old": 5000, "new": 5060}, 0.5) > 0.1
    assert ratio_p({"old": 900, "new": 100}, 0.1) > 0.1


def test_assignment_is_stable_for_a_user_and_independent_between_salts() -> None:
    users = [f"user {i}" for i in range(4000)]
    one, again, other = ([assigned(user, salt, 0.3) for user in users] for salt in ("a", "a", "b"))
    assert one == again
    assert one.count("new") == pytest.approx(1200, abs=100)
    both = sum(x == y == "new" for x, y in zip(one, other, strict=True))
    assert both == pytest.approx(360, abs=60)


def test_tolerances_are_relative_or_absolute_and_nonsense_is_refused() -> None:
    assert Tolerance.parse("0.5%") == Tolerance(0.005, relative=True)
    assert Tolerance.parse("0.5") == Tolerance(0.5, relative=False)
    for text in ("half", "-1%", "100%", "nan"):
        with pytest.raises(UserError, match="--tolerance"):
            Tolerance.parse(text)


def experiment(old: float, new: float, count: int = 6000) -> list[Event]:
    rng = np.random.default_rng(1)
    events = []
    for i in range(count):
        arm = assigned(f"user {i}", "salt", 0.5)
        clicked = float(rng.random() < {"old": old, "new": new}[arm])
        events.append(Event(id=str(i), arm=arm, user=f"user {i}", outcome={"ctr": clicked}))
    return events


def test_a_decision_once_made_stands_and_an_open_one_says_how_much_is_missing() -> None:
    tolerance = Tolerance(0.05, relative=False)
    done = ab(experiment(0.2, 0.2), "ctr", tolerance, planned=3000)
    assert done.verdict == "accept"
    assert done.decided is not None
    more = ab(experiment(0.2, 0.2, done.decided.events + 100), "ctr", tolerance, planned=3000)
    assert more.decided == done.decided
    part = ab(experiment(0.2, 0.2, done.decided.events // 2), "ctr", tolerance, planned=3000)
    assert part.verdict == "keep going"
    assert part.more_events is not None
    assert part.more_events > 0


def test_users_seen_in_both_arms_are_left_out_and_counted() -> None:
    events = experiment(0.2, 0.2, 1000)
    moved = [Event(id=f"again {i}", arm="new", user=f"user {i}", outcome={"ctr": 1.0}) for i in range(50)]
    moved = [event for event in moved if assigned(str(event.user), "salt", 0.5) == "old"]
    found = ab(events + moved, "ctr", Tolerance(0.05, relative=False))
    assert found.switched == len(moved) > 0
    assert sum(found.users.values()) == 1000 - len(moved)


def test_too_few_users_or_no_spread_decide_nothing() -> None:
    assert ab(experiment(0.2, 0.2, 150), "ctr", Tolerance(0.05, relative=False)).looks == []
    assert ab(experiment(0.0, 0.0, 2000), "ctr", Tolerance(0.05, relative=False)).verdict == "keep going"


def test_a_verdict_follows_from_the_bounds() -> None:
    at = {"events": 1, "users": 1, "old": 0.0, "new": 0.0}
    assert Look(**at, theta=2.0, lower=1.0, upper=3.0).verdict == "accept"
    assert Look(**at, theta=-2.0, lower=-3.0, upper=-1.0).verdict == "roll back"
    assert Look(**at, theta=0.0, lower=-1.0, upper=1.0).verdict == "keep going"


@pytest.fixture
def command(fork_server: ForkServer) -> Callable[..., Finished]:
    """`hfcompress ab` of a file, in a process of its own."""

    def run(file: Path, *options: str) -> Finished:
        tolerance = () if any(option.startswith("--tolerance") for option in options) else ("--tolerance", "0.05")
        return fork_server.run("ab", str(file), *tolerance, *options)

    return run


def written(file: Path, events: list[Event]) -> Path:
    lines = [json.dumps(vars(event)) for event in events]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(("new", "count", "code"), [(0.2, 6000, 0), (0.1, 6000, 1), (0.2, 400, 3)])
def test_the_exit_code_says_what_to_do(
    tmp_path: Path, command: Callable[..., Finished], new: float, count: int, code: int
) -> None:
    file = written(tmp_path / "traffic.jsonl", experiment(0.2, new, count))
    done = command(file, "--metric", "ctr", "--planned-users", "3000")
    assert done.code == code, done.out + done.err
    found: dict[str, Any] = json.loads(command(file, "--metric", "ctr", "--format", "json").out)
    assert found["verdict"] in ("accept", "roll back", "keep going")


def test_broken_lines_are_counted_and_wrong_questions_refused(
    tmp_path: Path, command: Callable[..., Finished]
) -> None:
    file = written(tmp_path / "traffic.jsonl", experiment(0.2, 0.2, 400))
    with file.open("a") as stream:
        stream.write('{"id": "cut o\nnot json\n[1]\n{"id": "1", "arm": "old", "outcome": {"ctr": "yes"}}\n')
    done = command(file, "--metric", "ctr")
    assert done.code == 3
    assert "4 lines are no events" in done.err
    assert "there are: ctr" in command(file, "--metric", "revenue").err
    assert "no such file" in command(tmp_path / "nothing.jsonl", "--metric", "ctr").err
    lopsided = written(
        tmp_path / "srm.jsonl", [e for i, e in enumerate(experiment(0.2, 0.2)) if e.arm == "old" or i % 3]
    )
    done = command(lopsided, "--metric", "ctr")
    assert done.code == 2
    assert "the assignment or the logging is broken" in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--metric", "label"), "it is a text ('good'), not a number; there are: ctr"),
        (("--metric", "revenue"), "no event of the arms old and new has it; there are: ctr"),
        (("--metric", "ctr", "--planned-users", "1" + "0" * 400), "--planned-users from 1 to"),
        (("--metric", "ctr", "--tolerance", "nan"), "--tolerance nan"),
    ],
)
def test_a_question_that_cannot_be_answered_is_no_verdict(
    tmp_path: Path, command: Callable[..., Finished], options: tuple[str, ...], said: str
) -> None:
    """1 means "roll back": whatever is wrong with the question must not end with it."""
    events = [replace(event, outcome=event.outcome | {"label": "good"}) for event in experiment(0.2, 0.2, 400)]
    done = command(written(tmp_path / "traffic.jsonl", events), *options)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


def test_a_defect_is_no_verdict_either(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(_: list[str]) -> int:
        raise ZeroDivisionError("of our own")

    monkeypatch.setattr(cli, "dispatch", fails)
    monkeypatch.setattr(sys, "argv", ["hfcompress", "ab"])
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # main puts another in its place
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 70
    assert "ZeroDivisionError: of our own" in capsys.readouterr().err
