"""Budget and Verdict: a limit that cannot be is refused, a limit that is missed is not ok."""

from dataclasses import asdict
from typing import Any

import pytest

from hfcompress.budget import Budget, ClickBudget, ImageBudget, LanguageBudget, verdicts
from hfcompress.errors import UserError
from hfcompress.evaluation.statistics import Difference
from hfcompress.report.console import sentence
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.tasks.text_generation import CausalLM

MODELS: list[dict[str, Any]] = [
    {"name": "teacher", "bytes": 60_000_000, "peak_rss_mb": 300.0, "latency_ms": {"p50": 20.0}},
    {"name": "teacher-onnx", "bytes": 60_000_000, "peak_rss_mb": 200.0, "latency_ms": {"p50": 10.0}},
    {"name": "int8", "bytes": 7_000_000, "peak_rss_mb": 80.0, "bare_rss_mb": 52.5, "latency_ms": {"p50": 2.0}},
]
SAME = asdict(Difference(-0.004, -0.012, 0.004, 0.005, 0.95, 1000, 300)) | {"n_needed": 250}


def decided(budget: Budget, difference: dict[str, Any] | None = SAME) -> dict[str, Any]:
    found = verdicts(
        budget,
        "int8",
        "teacher",
        "teacher-onnx",
        MODELS,
        {"accuracy": difference} if difference else {},
        {"disk_mb": 6.9},
    )
    return {verdict.limit: verdict for verdict in found}


def test_every_stated_limit_and_no_other_gets_a_verdict() -> None:
    found = decided(Budget(disk_mb=12, latency_ratio=0.25, drop={"accuracy": 0.02}))
    assert list(found) == ["disk_mb", "latency_ratio", "drop:accuracy"]
    assert all(verdict.ok for verdict in found.values())
    assert found["disk_mb"].predicted == 6.9
    assert found["latency_ratio"].measured == pytest.approx(0.2)
    assert found["latency_ratio"].reference == "teacher-onnx"


@pytest.mark.parametrize(
    "budget",
    [
        Budget(disk_mb=6),
        Budget(ram_mb=79),
        Budget(latency_ms=1.9),
        Budget(latency_ratio=0.19),
        Budget(drop={"accuracy": 0.01}),
        ImageBudget(peak_over_bare_mb=27.4),
        ImageBudget(sram_kb=64),
    ],
)
def test_a_missed_limit_is_not_ok(budget: Budget) -> None:
    (verdict,) = decided(budget).values()
    assert not verdict.ok


def test_a_drop_is_ok_only_when_it_is_shown() -> None:
    assert decided(Budget(drop={"accuracy": 0.02}))["drop:accuracy"].verdict == "shown"
    unclear = decided(Budget(drop={"accuracy": 0.01}))["drop:accuracy"]
    assert (unclear.verdict, unclear.ok) == ("cannot be shown", False)
    assert unclear.n_needed is not None
    assert unclear.n_needed > 1000
    exceeded = SAME | {"difference": -0.1, "upper_bound": -0.08, "lower_bound": -0.12}
    assert decided(Budget(drop={"accuracy": 0.02}), exceeded)["drop:accuracy"].verdict == "exceeded"


def test_a_drop_that_was_not_measured_is_not_ok() -> None:
    found = decided(Budget(drop={"accuracy": 0.02}), None)["drop:accuracy"]
    assert (found.measured, found.ok) == (None, False)


def test_statistics_stand_only_with_a_drop() -> None:
    found = decided(Budget(disk_mb=12, drop={"accuracy": 0.02}))
    assert "n_needed" not in found["disk_mb"].as_dict()
    assert found["drop:accuracy"].as_dict()["n"] == 1000


def test_memory_over_the_bare_runtime_is_what_the_model_adds() -> None:
    verdict = decided(ImageBudget(peak_over_bare_mb=28))["peak_over_bare_mb"]
    assert (verdict.measured, verdict.ok, verdict.kind) == (27.5, True, "absolute")
    assert sentence(verdict.as_dict()) == "memory over the bare runtime: 27.5 MB measured, 28 MB allowed"


def test_memory_of_a_process_whose_start_was_not_measured_is_not_ok() -> None:
    rows = [{name: value for name, value in row.items() if name != "bare_rss_mb"} for row in MODELS]
    budget = ImageBudget(peak_over_bare_mb=1000)
    (verdict,) = verdicts(budget, "int8", "teacher", "teacher-onnx", rows, {}, {})
    assert (verdict.measured, verdict.ok) == (None, False)
    assert "nothing measured" in sentence(verdict.as_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"disk_mb": 0}, "budget.disk_mb 0"),
        ({"latency_ratio": -1}, "budget.latency_ratio -1"),
        ({"drop": {"bleu": 0.1}}, "budget.drop bleu"),
        ({"drop": {"accuracy": 2}}, "budget.drop accuracy 2"),
        ({"confidence": 1.0}, "budget.confidence"),
    ],
)
def test_an_impossible_limit_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Budget(**options)


def test_an_impossible_limit_on_memory_over_the_bare_runtime_is_refused() -> None:
    with pytest.raises(UserError, match=r"budget\.peak_over_bare_mb 0"):
        ImageBudget(peak_over_bare_mb=0)


def test_a_budget_that_limits_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"limits nothing"):
        decided(Budget())


def test_a_drop_of_what_the_task_does_not_measure_is_refused() -> None:
    Budget(drop={"accuracy": 0.01}).require_drops(TextClassification())
    with pytest.raises(UserError, match=r"^--budget\.drop accuracy: it is not measured here; give perplexity$"):
        Budget(drop={"accuracy": 0.01}).require_drops(CausalLM())


def test_each_task_says_what_its_budget_may_limit() -> None:
    assert Budget.drops() == ("accuracy", "macro_f1")
    assert LanguageBudget.drops() == ("perplexity",)
    assert ClickBudget.drops() == ("auc", "ctr")
