"""The page and the card of a click model's run."""

from typing import Any

from hfcompress.report import console, plots
from hfcompress.report.html import ends, template

CARD = """---
{metadata}
---

{warning}# {title}

{verdict}{notes}

{size} MB, {times:.1f} times smaller than `{reference}`; made by the recipe `{recipe}` ({scale} scale).

| model | MB | AUC (95% interval) | CTR of its choices | log-loss | predicted CTR | ECE | p50 ms | peak MB |
|---|---|---|---|---|---|---|---|---|
{rows}

Measured on {n} rows of {requests} requests by {groups} users; observed click-through rate {observed:.4f}. A request of
{batch} items is timed, {threads} threads, {cpu}.

## The budget

{verdicts}

## The A/B test

{ab}

## Use

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
slate = {{"user": [7, 7], "item": [3, 11], "category": [1, 4], "context": [5, 5]}}
inputs = {{name: np.array(ids, np.int64) for name, ids in slate.items()}}
inputs["dense"] = np.array([[0.3, 0.0, 1.0], [-0.8, 0.0, 1.0]], np.float32)  # price, sin and cos of the hour
click, conversion = (1 / (1 + np.exp(-session.run(["logits"], inputs)[0]))).T
```
"""


def clicks_html(report: dict[str, Any], details: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """The page.

    Args:
        report: report.json; details: measurements.json of the measure stage and more; records: of all stages.
    """
    candidate, reference = ends(report, details)
    points = curve_points(report, reference)
    every = {row["name"]: row["accuracy"]["all"]["calibration"] for row in (reference, candidate)}
    rollout = details.get("rollout")
    return template("clicks.html.j2").render(
        report=report,
        details=details,
        records=records,
        candidate=candidate,
        reference=reference,
        points=points,
        curve=plots.compression_curve(
            points,
            reference["accuracy"]["value"],
            {"ratio": reference["bytes"] / candidate["bytes"], "auc": candidate["accuracy"]["value"]},
            report["budget"]["drop"].get("auc"),
        )
        if points
        else None,
        reliability=plots.reliability(every),
        rollout=rollout,
        ab=plots.confidence_sequence(rollout["ab"]["looks"], rollout["ab"]["decided"], "ctr")
        if rollout and rollout["ab"]["looks"]
        else None,
    )


def curve_points(report: dict[str, Any], reference: dict[str, Any]) -> list[dict[str, Any]]:
    """The models of the curve: those that are named KIND-BITS-RATIOx, with their real ratio."""
    found = []
    for row in report["models"]:
        kind, _, asked = row["name"].rpartition("-")
        name, _, bits = kind.rpartition("-")
        if not name or not asked.endswith("x") or row["format"] != "onnx":
            continue
        low, high = row["accuracy"]["ci95"]
        found.append(
            {
                "name": row["name"],
                "kind": f"{name.replace('_', '-')}, {'float32' if bits == '32' else f'int{bits}'}",
                "ratio": reference["bytes"] / row["bytes"],
                "auc": row["accuracy"]["value"],
                "low": low,
                "high": high,
            }
        )
    return found


def ab_html(outcome: dict[str, Any], metric: str, tolerance: str, text: str) -> str:
    """The page of an A/B test alone (`hfcompress ab --report`).

    Args:
        outcome: sequential.Outcome as a dict, its looks thinned.
    """
    picture = plots.confidence_sequence(outcome["looks"], outcome["decided"], metric) if outcome["looks"] else None
    return template("ab.html.j2").render(
        outcome=outcome, metric=metric, tolerance=tolerance, lines=text.split("\n"), picture=picture
    )


def clicks_card(report: dict[str, Any], details: dict[str, Any]) -> str:
    """README.md of the candidate: YAML metadata with a model-index, and text."""
    from hfcompress.report.card import markdown, verdict_line

    candidate, reference = ends(report, details)
    title = f"{report['recipe']}-{report['scale']}-{candidate['name']}"
    rollout = details.get("rollout")
    return CARD.format(
        metadata=clicks_metadata(report, details, candidate, title),
        warning="" if report["ok"] else "**The budget does not hold.**\n\n",
        title=title,
        verdict="The budget holds. " if report["ok"] else "",
        notes=markdown(" ".join(report["notes"])),
        size=f"{candidate['bytes'] / 1e6:.2f}",
        times=reference["bytes"] / candidate["bytes"],
        reference=reference["name"],
        recipe=report["recipe"],
        scale=report["scale"],
        rows="\n".join(map(card_row, report["models"])),
        n=f"{details['n']:,}",
        requests=f"{details['requests']:,}",
        groups=f"{details['groups']:,}",
        observed=candidate["accuracy"]["all"]["observed_ctr"],
        batch=candidate["latency_ms"]["batch"],
        threads=candidate["latency_ms"]["threads"],
        cpu=report["environment"]["cpu"],
        verdicts="\n".join(map(verdict_line, report["verdicts"])),
        ab=f"Tolerance {rollout['tolerance']}: {rollout['ab']['text']}.".replace("\n", "; ") if rollout else "None.",
    )


def card_row(model: dict[str, Any]) -> str:
    from hfcompress.report.card import markdown

    every, (low, high) = model["accuracy"]["all"], model["accuracy"]["ci95"]
    return (
        f"| {markdown(model['name'])} | {model['bytes'] / 1e6:.3f} | {every['auc']:.4f} ({low:.4f} – {high:.4f}) | "
        f"{every['ctr']:.2%} | {every['log_loss']:.4f} | {every['predicted_ctr']:.4f} | {every['ece']:.4f} | "
        f"{console.number(model['latency_ms']['p50'], '.3f')} | {console.number(model['peak_rss_mb'], '.0f')} |"
    )


def clicks_metadata(report: dict[str, Any], details: dict[str, Any], candidate: dict[str, Any], title: str) -> str:
    """The card's YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    data = details.get("data", report["recipe"])
    return ModelCardData(
        library_name="onnx",
        pipeline_tag="tabular-classification",
        metrics=["auc"],
        model_name=title,
        tags=["onnx", "int8", "recommendation", "hfcompress"],
        eval_results=[
            EvalResult(
                task_type="tabular-classification",
                dataset_type=data,
                dataset_name=data,
                dataset_split="test",
                metric_type="auc",
                metric_value=round(candidate["accuracy"]["value"], 6),
                metric_args={"rows": details["n"], "ci95": candidate["accuracy"]["ci95"]},
            )
        ],
    ).to_yaml()
