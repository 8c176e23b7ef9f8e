"""The page and the card of a click model's run."""

from typing import Any

from hfcompress.evaluation.metrics import metrics_of
from hfcompress.folders.escaping import code_span, markdown
from hfcompress.report import console, plots
from hfcompress.report.card import (
    EVIDENCE,
    against,
    change,
    costs_section,
    format_tags,
    hub_names,
    metadata,
    noise,
    verdict_line,
)
from hfcompress.report.console import threads_in_words
from hfcompress.report.html import ends, page
from hfcompress.report.sections import cards_of
from hfcompress.report.templates import template
from hfcompress.tasks import measured_task

CARD = """---
{metadata}
---

{warning}# {title}

{verdict}{notes}

{size} MB, {against}. Made by the recipe `{recipe}` ({scale} scale).

| model | MB | AUC (95% interval) | CTR of its choices | log-loss | predicted CTR | ECE | p50 ms | peak MB |
|---|---|---|---|---|---|---|---|---|
{rows}

{plot}Measured on {n} rows of {requests} requests by {groups} users; observed click-through rate {observed:.4f}.
A request of {batch} items is timed, {threads}, {cpu}.{noise}

## The budget

{verdicts}

{costs}{sections}## Use

```python
import numpy as np
import onnxruntime
{hub}
session = onnxruntime.InferenceSession({path})
slate = {{"user": [7, 7], "item": [3, 11], "category": [1, 4], "context": [5, 5]}}
inputs = {{name: np.array(ids, np.int64) for name, ids in slate.items()}}
inputs["dense"] = np.array([[0.3, 0.0, 1.0], [-0.8, 0.0, 1.0]], np.float32)  # price, sin and cos of the hour
click, conversion = (1 / (1 + np.exp(-session.run(["logits"], inputs)[0]))).T
```

No class of transformers or Optimum has this shape: onnxruntime alone runs it.
{evidence}
## Intended use and limits

Ranks the items of a slate and says how likely a click and a conversion are, for the ids of its own data ({data}):
another numbering means nothing to it. An id that training never saw gets a row that all such ids share. {cold}
It knows no text and no picture of an item, and what it learnt is as old as its log.
"""


def clicks_html(report: dict[str, Any], details: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """The page.

    Args:
        report: report.json; details: measurements.json of the measure stage and more; records: of all stages.
    """
    candidate, reference = ends(report, details)
    every = {row["name"]: row["accuracy"]["all"]["calibration"] for row in (reference, candidate)}
    return page(
        "clicks.html.j2",
        report,
        details,
        records,
        curve=curve(report, candidate, reference),
        reliability=plots.reliability(every),
    )


def curve(report: dict[str, Any], candidate: dict[str, Any], reference: dict[str, Any]) -> str | None:
    """The picture of AUC against compression; None where no other ways were measured."""
    if not (points := curve_points(report, reference)):
        return None
    return plots.compression_curve(
        points,
        reference["accuracy"]["value"],
        {"ratio": reference["bytes"] / candidate["bytes"], "auc": candidate["accuracy"]["value"]},
        report["budget"]["drop"].get("auc"),
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


def clicks_card(
    report: dict[str, Any],
    details: dict[str, Any],
    repository: str | None = None,
    places: dict[str, str] | None = None,
) -> str:
    """README.md of the candidate: YAML metadata with a model-index, and text.

    Args:
        repository: org/name, when the card is for the Hub; places: each file there, and the model it is of.
    """
    candidate, reference = ends(report, details)
    task = measured_task(details)
    threads = candidate["latency_ms"]["threads"]
    file = next((place for place in places or {} if place.endswith(".onnx")), "")
    return CARD.format(
        metadata=metadata(
            report,
            details,
            task=task.pipeline_tag,
            library="onnx",
            metrics=hub_names(task),
            tags=[*format_tags(candidate), "recommendation"],
            counts=dict.fromkeys(metrics_of(task.metrics), details["n"]) | {"ctr": details["requests"]},
        ),
        warning="" if report["ok"] else "**The budget does not hold.**\n\n",
        title=markdown(f"{report['recipe']}-{report['scale']}-{candidate['name']}"),
        verdict="The budget holds. " if report["ok"] else "",
        notes=markdown(" ".join(report["notes"])),
        size=f"{candidate['bytes'] / 1e6:.2f}",
        against=against(report, candidate, reference),
        recipe=code_span(report["recipe"]),
        scale=markdown(report["scale"]),
        rows="\n".join(map(card_row, report["models"])),
        plot="![AUC against compression](plot.svg)\n\n" if repository else "",
        n=f"{details['n']:,}",
        requests=f"{details['requests']:,}",
        groups=f"{details['groups']:,}",
        observed=candidate["accuracy"]["all"]["observed_ctr"],
        batch=candidate["latency_ms"]["batch"],
        threads=threads_in_words(threads),
        cpu=markdown(report["environment"]["cpu"]),
        noise=noise(details),
        verdicts="\n".join(map(verdict_line, report["verdicts"])),
        costs=costs(report, details, candidate, reference),
        cold=cold(details, candidate, reference),
        sections=cards_of(details, repository),
        hub="from huggingface_hub import hf_hub_download\n" if repository else "",
        path=f'hf_hub_download("{repository}", "{file}")' if repository else '"model.onnx"',
        evidence=EVIDENCE.format(repository=repository) if repository else "",
        data=markdown(str(details.get("data", report["recipe"]))),
    )


def costs(
    report: dict[str, Any], details: dict[str, Any], candidate: dict[str, Any], reference: dict[str, Any]
) -> str:
    """One line a stage: the ONNX of what it made beside the ONNX of what it began with."""
    from itertools import pairwise

    records = {f"{record['name']}-{record['key']}": record for record in details.get("records", [])}
    rows = {model["name"]: model for model in report["models"]}
    exported = {
        record["inputs"]["model"]: rows[record["name"]]
        for record in records.values()
        if record["stage"] == "ExportClicks" and record["name"] in rows
    }
    folder = next((made for made, row in exported.items() if row is candidate), "")
    chain: list[tuple[str, dict[str, Any]]] = []
    while folder in records:
        if folder in exported:
            chain.append((records[folder]["stage"], exported[folder]))
        folder = records[folder]["inputs"].get("model", "")
    return costs_section(
        f"- {markdown(stage)} ({markdown(after['name'])}): {change(before, after)}, "
        f"{(after['bytes'] - before['bytes']) / 1e6:+.3f} MB"
        for (_, before), (stage, after) in pairwise(chain[::-1])
    )


def cold(details: dict[str, Any], candidate: dict[str, Any], reference: dict[str, Any]) -> str:
    """What ids that training never saw lose."""
    found = details.get("cold", {"auc": {}})
    if not found["auc"]:
        return "The test split has no clicks on such ids: nothing is known of them."
    before, after = (found["auc"][row["name"]] for row in (reference, candidate))
    whole, rows = code_span(reference["name"]), found["rows"]
    return f"Their AUC is {before:.4f} with `{whole}` and {after:.4f} here, on {rows:,} rows."


def card_row(model: dict[str, Any]) -> str:
    every, (low, high) = model["accuracy"]["all"], model["accuracy"]["ci95"]
    return (
        f"| {markdown(model['name'])} | {model['bytes'] / 1e6:.3f} | {every['auc']:.4f} ({low:.4f} – {high:.4f}) | "
        f"{every['ctr']:.2%} | {every['log_loss']:.4f} | {every['predicted_ctr']:.4f} | {every['ece']:.4f} | "
        f"{console.number(model['latency_ms']['p50'], '.3f')} | {console.number(model['peak_rss_mb'], '.0f')} |"
    )
