"""The report, the model card and the console table: everything from records, nothing hidden, nothing unescaped."""

import copy
import functools
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hfcompress.report import card, cards, console, html

CLASSES = {
    "Permissive": 704,
    "Copyleft": 412,
    "Proprietary Free": 214,
    "Copyleft Limited": 198,
    "Source-available": 61,
    "Public Domain": 34,
    "Commercial": 22,
    "Free Restricted": 16,
}
N = sum(CLASSES.values())


def model(name: str, stage: str, kind: str, size: float, accuracy: float, p50: float, **more: Any) -> dict[str, Any]:
    """A row of report.json; the rarer a class, the lower its F1."""
    per_class = {
        label: {"precision": accuracy, "recall": accuracy, "f1": f1, "n": n, "f1_ci95": [f1 - 0.1, f1 + 0.1]}
        for i, (label, n) in enumerate(CLASSES.items())
        for f1 in [accuracy - 0.06 * i]
    }
    every = {
        "accuracy": accuracy,
        "micro_f1": accuracy,
        "macro_f1": accuracy - 0.15,
        "recall_at_90_precision": 0.61,
        "ece": 0.043,
        "per_class": per_class,
    }
    runtime = {"transformers": "torch", "onnx": "onnxruntime", "baseline": "scikit-learn"}[kind]
    return {
        "name": name,
        "stage": stage,
        "format": kind,
        "path": f"{name}-0123456789abcdef",
        "parameters": round(size * 250_000),
        "bytes": round(size * 1e6),
        "bits_per_parameter": 32.0,
        "dtypes": {"float32": round(size * 1e6)},
        "peak_rss_mb": 120.5,
        "load_ms": 210.0,
        "accuracy": {
            "metric": "accuracy",
            "value": accuracy,
            "ci95": [accuracy - 0.019, accuracy + 0.018],
            "n": N,
            "all": every,
        },
        "latency_ms": {
            "p50": p50,
            "p95": 1.2 * p50,
            "p99": 1.6 * p50,
            "batch": 1,
            "sequence_length": 128,
            "threads": 2,
            "runtime": runtime,
            "runs": 60,
        },
        "predicted": {"disk_mb": 0.98 * size, "latency_ms": 1.1 * p50, "ram_mb": None},
    } | more


def drop(difference: float, lower: float, verdict: str, needed: int | None) -> dict[str, Any]:
    return {
        "limit": "drop:accuracy",
        "candidate": "int8",
        "reference": "teacher",
        "kind": "relative",
        "allowed": 0.02,
        "predicted": None,
        "measured": -difference,
        "ok": verdict == "shown",
        "difference": difference,
        "lower_bound": lower,
        "confidence": 0.95,
        "n": N,
        "n_needed": needed,
        "verdict": verdict,
    }


def limit(name: str, allowed: float, measured: float | None, reference: str | None = None) -> dict[str, Any]:
    return {
        "limit": name,
        "candidate": "int8",
        "reference": reference,
        "kind": "relative" if reference else "absolute",
        "allowed": allowed,
        "predicted": 0.96 * allowed,
        "measured": measured,
        "ok": measured is not None and measured <= allowed,
    }


@pytest.fixture
def report() -> dict[str, Any]:
    """A run at the small scale whose budget holds."""
    baseline = model(
        "tfidf-svm", "Baseline", "baseline", 3.1, 0.805, 0.9, path=None, peak_rss_mb=None, load_ms=None, predicted=None
    )
    baseline["accuracy"]["all"]["ece"] = None
    return {
        "schema_version": 1,
        "recipe": "legal_bert",
        "scale": "small",
        "created": "2026-11-23T15:12:24+00:00",
        "environment": {
            "versions": {"python": "3.11.7", "onnxruntime": "1.32.0"},
            "cpu": "AMD EPYC (avx512_vnni)",
            "threads": 2,
            "gpu": None,
        },
        "notes": ["The SVM is close to the teacher."],
        "models": [
            model("teacher", "Finetune", "transformers", 67.4, 0.825, 26.1),
            model("teacher-onnx", "ExportOnnx", "onnx", 67.9, 0.825, 12.2),
            model("teacher-dynamic-int8", "DynamicInt8", "onnx", 17.3, 0.822, 7.4),
            model("student", "Distill", "transformers", 53.1, 0.823, 17.9),
            model("slim", "MovementPrune", "transformers", 30.2, 0.821, 9.3),
            model("slim-onnx", "ExportOnnx", "onnx", 30.6, 0.821, 4.6),
            model("slim-dynamic-int8", "DynamicInt8", "onnx", 8.1, 0.816, 3.1),
            model("slim-static-int8", "StaticInt8", "onnx", 8.0, 0.792, 2.9),
            model("int8", "QAT", "onnx", 8.0, 0.819, 2.4),
            baseline,
        ],
        "budget": {
            "disk_mb": 12,
            "ram_mb": None,
            "latency_ms": None,
            "latency_ratio": 0.25,
            "drop": {"accuracy": 0.02},
            "confidence": 0.95,
        },
        "verdicts": [
            limit("disk_mb", 12, 8.02),
            limit("latency_ratio", 0.25, 0.197, "teacher-onnx"),
            drop(-0.006, -0.014, "shown", 520),
        ],
        "ok": True,
    }


@pytest.fixture
def details() -> dict[str, Any]:
    """measurements.json of the same run, with the records that details.json adds."""
    change = {"difference": -0.006, "lower_bound": -0.014, "n_needed": 520}
    example = {
        "index": 4,
        "group": "mit",
        "text": "You may use, copy & modify this.",
        "before": "Permissive",
        "after": "Copyleft",
        "score": 0.71,
    }
    chain = {
        "teacher": ("Finetune", "encoder"),
        "student": ("Distill", "teacher-k"),
        "slim": ("MovementPrune", "student-k"),
        "int8": ("QAT", "slim-k"),
        "slim-onnx": ("ExportOnnx", "slim-k"),
    }
    measured = {"samples_per_second": 25.3, "integer_linears": 24, "difference_from_parent": {"label_agreement": 0.97}}
    return {
        "labels": list(CLASSES),
        "n": N,
        "groups": 402,
        "reference": "teacher",
        "differences": {
            "int8": {
                "accuracy": change,
                "f1:Permissive": change,
                "f1:Commercial": {"difference": -0.09, "lower_bound": -0.21, "n_needed": None},
            }
        },
        "flips": {
            "int8": {
                "total": 61,
                "lost": 33,
                "gained": 21,
                "classes": [
                    {"label": "Permissive", "n": 704, "changed": 31, "lost": 20, "gained": 9, "examples": [example]},
                    {"label": "Copyleft", "n": 412, "changed": 30, "lost": 13, "gained": 12, "examples": [example]},
                    {"label": "Commercial", "n": 22, "changed": 0, "lost": 0, "gained": 0, "examples": []},
                ],
            }
        },
        "probe": {"noisy": False},
        "records": [
            {
                "name": name,
                "stage": stage,
                "key": "k",
                "inputs": {"model": parent},
                "seconds": 312.4,
                "peak_rss_mb": 1431.0,
                "bytes": 8_020_000,
                "measured": measured if stage != "ExportOnnx" else {},
            }
            for name, (stage, parent) in chain.items()
        ],
        "max_length": 128,
    }


def page(report: dict[str, Any], details: dict[str, Any]) -> str:
    return page_of_text(json.dumps([report, details]))


@functools.cache
def page_of_text(text: str) -> str:
    """The page of a report and its details: made once of the same ones, since its pictures take a second."""
    report, details = json.loads(text)
    return html.render_html(report, details, details["records"])


def visible(text: str) -> str:
    """What a reader sees of a page, on one line."""
    found: list[str] = []

    class Reader(HTMLParser):
        hidden = False

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.hidden = self.hidden or tag == "style"

        def handle_endtag(self, tag: str) -> None:
            self.hidden = self.hidden and tag != "style"

        def handle_data(self, data: str) -> None:
            if not self.hidden:
                found.append(data)

    reader = Reader()
    reader.feed(text)
    return " ".join(" ".join(found).split())


def failed(report: dict[str, Any], *wrong: dict[str, Any]) -> dict[str, Any]:
    """The report with other verdicts, which do not hold."""
    return report | {"verdicts": [*report["verdicts"][:2], *wrong], "ok": False}


def test_the_page_says_in_this_order_verdict_notes_models_and_what_follows(
    report: dict[str, Any], details: dict[str, Any]
) -> None:
    text = visible(page(report, details)).partition("scale,")[2]
    places = [
        text.index(part)
        for part in (
            "The budget holds",
            "The SVM is close",
            "Models",
            "size on disk",
            "What each stage cost",
            "Classes",
            "Flips",
            "Where the time went",
            "Predicted and measured",
            "Use it",
            "Environment",
        )
    ]
    assert places == sorted(places)


def test_every_model_stands_in_the_page_and_candidate_and_reference_are_marked(
    report: dict[str, Any], details: dict[str, Any]
) -> None:
    text = visible(page(report, details))
    assert all(row["name"] in text for row in report["models"])
    assert "int8 (candidate)" in text
    assert "teacher (reference)" in text


def test_a_failed_budget_cannot_be_overlooked(report: dict[str, Any], details: dict[str, Any]) -> None:
    wrong = failed(report, drop(-0.031, -0.044, "exceeded", None))
    text = page(wrong, details)
    assert "The budget does NOT hold" in visible(text)
    assert "The budget holds" not in text
    assert 'class="banner "' in text  # not the green one
    assert "the budget does not hold" in re.search("<title>(.*)</title>", text)[1]  # type: ignore[index]
    assert '<span class="fails">fails</span>' in text
    assert "**The budget does not hold.**" in card.render_card(wrong, details)
    assert "FAILS     accuracy: 3.10 points lower" in console.table(wrong)
    assert console.table(wrong).endswith("The budget does NOT hold: 1 of 3 limits fail.")


def test_cannot_be_shown_is_told_from_exceeded(report: dict[str, Any], details: dict[str, Any]) -> None:
    wrong = failed(report, drop(-0.012, -0.026, "cannot be shown", 4100))
    text = page(wrong, details)
    assert '<span class="open">cannot be shown</span>' in text
    assert 'class="fails"' not in text
    assert "The budget does NOT hold" in visible(text)
    assert "cannot be shown with 1,661 examples, some 4,100 would be needed" in visible(text)
    assert "NOT SHOWN" in console.table(wrong)
    assert "FAILS" not in console.table(wrong)
    assert "**cannot be shown**" in card.render_card(wrong, details)
    tied = failed(report, drop(0.0, -0.7, "cannot be shown", 400_000))
    assert "some 400,000 would be needed" in console.sentence(tied["verdicts"][-1])
    at_the_limit = failed(report, drop(-0.0199, -0.034, "cannot be shown", 4_100_000))
    assert "with 1,661 examples, and more would hardly decide" in console.sentence(at_the_limit["verdicts"][-1])


def test_a_limit_that_was_not_measured_fails_and_says_so(report: dict[str, Any], details: dict[str, Any]) -> None:
    wrong = failed(report, limit("ram_mb", 100, None))
    assert "memory: nothing measured, 100 MB allowed" in visible(page(wrong, details))
    assert "FAILS     memory: nothing measured" in console.table(wrong)


def test_a_verdict_without_limits_does_not_hold(report: dict[str, Any]) -> None:
    assert console.verdict_lines(report | {"verdicts": []})[-1].startswith("The budget does NOT hold")


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (
            drop(-0.006, -0.014, "shown", 520),
            "accuracy: 0.60 points lower than teacher (at worst 1.40 points lower, 95% confidence), "
            "2 points of drop allowed: shown",
        ),
        (drop(0.011, 0.003, "shown", 1), "accuracy: 1.10 points higher than teacher (at worst 0.30 points higher"),
        (drop(-0.03, -0.05, "cannot be shown", None), "no number would be enough at this difference"),
        (limit("disk_mb", 12, 12.04), "disk: 12.04 MB measured, 12 MB allowed, 11.52 MB predicted"),
        (limit("ram_mb", 1500, 1277.3), "memory: 1,277 MB measured, 1,500 MB allowed"),
        (limit("latency_ratio", 0.25, 0.197, "teacher-onnx"), "latency ratio: 0.197x teacher-onnx's measured"),
    ],
)
def test_a_verdict_is_a_sentence(verdict: dict[str, Any], said: str) -> None:
    assert said in console.sentence(verdict)


def test_what_is_missing_is_a_dash_and_never_none(report: dict[str, Any], details: dict[str, Any]) -> None:
    for row in report["models"][2:]:
        row["peak_rss_mb"] = row["load_ms"] = row["accuracy"]["all"]["ece"] = None
        row["latency_ms"]["p99"] = row["latency_ms"]["sequence_length"] = None
    details["records"][0]["measured"] = {"samples_per_second": None, "difference_from_parent": None}
    texts = [visible(page(report, details)), card.render_card(report, details), console.table(report)]
    assert all("–" in text and not re.search(r"\b(None|nan)\b", text) for text in texts)


def test_markup_in_labels_texts_names_and_notes_is_escaped(report: dict[str, Any], details: dict[str, Any]) -> None:
    bad = "<script>alert('x')</script> $a|b$ $"
    told = json.loads(json.dumps([report, details]).replace("Permissive", bad).replace("tfidf-svm", bad))
    told[1]["flips"]["int8"]["classes"][0]["examples"][0] |= {"text": bad, "group": bad}
    told[0]["notes"] = [bad]
    text = page(*told)
    assert "<script" not in text.lower()
    assert visible(text).count(bad) >= 8  # escaped, not left out; the plots among them
    lines = card.render_card(*told).partition("\n---\n")[2]
    assert "<script" not in lines
    assert {line.replace("\\|", "").count("|") for line in lines.splitlines() if line.startswith("| ")} == {9, 6}


def test_the_page_needs_no_network_and_no_script(report: dict[str, Any], details: dict[str, Any]) -> None:
    text = page(report, details)
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\(\s*['\"]?http|src=", text)
    found = set(re.findall(r"https?://[^\"' <]+", text))
    assert found <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_the_plots_take_the_colour_of_the_page_and_are_told_to_those_who_cannot_see(
    report: dict[str, Any], details: dict[str, Any]
) -> None:
    text = page(report, details)
    assert text.count('role="img" aria-label="') == text.count("<svg") == 5
    assert "currentColor" in text
    assert "#010203" not in text


def test_ids_of_the_page_that_differ_in_meaning_are_unique(report: dict[str, Any], details: dict[str, Any]) -> None:
    defined: dict[str, set[str]] = {}
    for name, body in re.findall(r'<(?:path|clipPath) id="(\w+)"(.*?)(?:/>|</clipPath>)', page(report, details), re.S):
        defined.setdefault(name, set()).add(" ".join(body.split()))
    assert defined
    assert all(len(bodies) == 1 for bodies in defined.values())


def test_the_chain_leads_from_the_reference_to_the_candidate_only(
    report: dict[str, Any], details: dict[str, Any]
) -> None:
    chain = html.chain_of(details["records"], report, "int8", "teacher")
    assert [row["name"] for row in chain] == ["teacher", "student", "slim", "int8"]


def test_a_chain_that_breaks_off_draws_no_waterfall(report: dict[str, Any], details: dict[str, Any]) -> None:
    for record in details["records"]:
        record["inputs"] = {}
    assert "What each stage cost" not in page(report, details)


def test_the_card_tells_what_each_stage_cost(report: dict[str, Any], details: dict[str, Any]) -> None:
    text = card.render_card(report, details)
    assert "- MovementPrune (slim): -0.20 points of accuracy, -22.90 MB" in text
    assert "What each stage cost" not in card.render_card(report, details | {"records": []})


def test_a_rare_class_is_flagged_and_its_texts_needed_are_a_dash_where_none_would_do(
    report: dict[str, Any], details: dict[str, Any]
) -> None:
    text = visible(page(report, details))
    assert "Commercial (rare) 22" in text
    assert "Copyleft (rare)" not in text
    assert re.search(r"Commercial \(rare\) 22 [\d.]+ [\d.]+ -0.090 -0.210 –", text)


def test_predictions_stand_with_their_error(report: dict[str, Any]) -> None:
    rows = {row["model"]: row for row in html.prediction_errors(report)}
    assert rows["teacher"]["disk_mb"]["error"] == pytest.approx(-0.02)
    assert rows["teacher"]["latency_ms"]["error"] == pytest.approx(0.1)
    assert "ram_mb" not in rows["teacher"]  # nothing was predicted
    assert "tfidf-svm" not in rows


def test_a_noisy_machine_is_told(report: dict[str, Any], details: dict[str, Any]) -> None:
    assert "noisy" not in visible(page(report, details))
    assert "latencies are noisy" in visible(page(report, details | {"probe": {"noisy": True}}))


def test_the_same_records_make_the_same_page(report: dict[str, Any], details: dict[str, Any]) -> None:
    before = copy.deepcopy((report, details))
    assert html.render_html(report, details, details["records"]) == page(report, details)
    assert (report, details) == before


def test_the_card_has_metadata_that_the_hub_reads(report: dict[str, Any], details: dict[str, Any]) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(card.render_card(report, details)).data
    assert (data.library_name, data.pipeline_tag) == ("optimum", "text-classification")
    values = {result.metric_type: result.metric_value for result in data.eval_results or []}
    assert values["accuracy"] == 0.819
    assert values["micro_f1"] == 0.819
    assert values["macro_f1"] == pytest.approx(0.669)


def test_the_card_has_the_f1_of_every_class_with_its_n_and_its_interval(
    report: dict[str, Any], details: dict[str, Any]
) -> None:
    from huggingface_hub import ModelCard

    every = report["models"][8]["accuracy"]["all"]["per_class"]
    del every["Commercial"]["f1_ci95"]  # as in the reports of earlier versions
    data = ModelCard(card.render_card(report, details)).data
    found = {result.metric_name: result for result in data.eval_results or [] if result.metric_type == "f1"}
    assert set(found) == {f"F1 of {label}" for label in CLASSES}
    copyleft, of_card = every["Copyleft"], found["F1 of Copyleft"]
    assert of_card.metric_value == pytest.approx(copyleft["f1"], abs=1e-6)
    assert of_card.metric_args == {"class": "Copyleft", "n": copyleft["n"], "ci95": copyleft["f1_ci95"]}
    assert set(found["F1 of Commercial"].metric_args) == {"class", "n"}


def test_the_card_leaves_out_a_metric_that_was_not_measured(report: dict[str, Any], details: dict[str, Any]) -> None:
    from huggingface_hub import ModelCard

    report["models"][8]["accuracy"]["all"]["ece"] = None
    data = ModelCard(card.render_card(report, details)).data
    assert "ece" not in {result.metric_type for result in data.eval_results or []}


def test_the_table_is_at_most_119_wide_and_plain(report: dict[str, Any]) -> None:
    report["notes"] = ["a long note " * 20]
    report["models"][0]["name"] = "a-name-that-is-much-longer-than-its-column"
    text = console.table(report)
    assert max(map(len, text.splitlines())) <= 119
    assert "\x1b" not in text
    rows = text.splitlines()[: len(report["models"]) + 1]
    assert len({len(row) for row in rows}) == 1  # aligned


def save(folder: Path, report: dict[str, Any], details: dict[str, Any]) -> Path:
    place = folder / "legal_bert"
    place.mkdir()
    (place / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (place / "details.json").write_text(json.dumps(details), encoding="utf-8")
    return place


def run_card(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["card", *arguments])
    return cards.main()


def test_cards_are_written_and_a_number_typed_by_hand_is_found(
    report: dict[str, Any],
    details: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = save(tmp_path, report, details) / "README.md"
    assert run_card(monkeypatch, str(tmp_path)) == 1  # there is none yet
    assert run_card(monkeypatch, "--write", str(tmp_path)) == 0
    assert run_card(monkeypatch, str(tmp_path)) == 0
    readme.write_text(readme.read_text(encoding="utf-8").replace("0.8190", "0.9190"), encoding="utf-8")
    capsys.readouterr()
    assert run_card(monkeypatch, str(tmp_path)) == 1
    assert str(readme) in capsys.readouterr().err


def test_a_card_says_for_which_processors_signed_weights_hold(report: dict[str, Any], details: dict[str, Any]) -> None:
    said = "Its answers hold for TensorRT and for processors with VNNI"
    candidate = next(verdict["candidate"] for verdict in report["verdicts"])
    assert said not in card.render_card(report, details)
    records = json.loads(json.dumps(details["records"]))
    mine = next(record for record in records if record["name"] == candidate)
    mine["measured"]["saturating_layers"] = 0
    assert card.processors({"records": records}, candidate) == ""
    mine["measured"]["saturating_layers"] = 3
    assert "and 3 of its products can overflow" in card.processors({"records": records}, candidate)
    assert said in card.render_card(report, details | {"records": records})
