"""report.html: one self-contained page, made from records."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from hfcompress.evaluation.metrics import metric_named, metrics_of
from hfcompress.evaluation.metrics.metric import Metric
from hfcompress.folders.escaping import terminal
from hfcompress.report import console, plots
from hfcompress.tasks import measured_task

if TYPE_CHECKING:
    from hfcompress.tasks.task import Task

RARE = 30  # texts of a class below which its figures are flagged


def render_html(report: dict[str, Any], details: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """The page.

    Args:
        report: report.json; details: measurements.json of the measure stage; records: of all stages of the run.
    """
    candidate, reference = ends(report, details)
    chain = chain_of(records, report, candidate["name"], reference["name"])
    before, after = (model["accuracy"]["all"].get("per_class") for model in (reference, candidate))
    return template("report.html.j2").render(
        report=report,
        details=details,
        records=records,
        candidate=candidate,
        reference=reference,
        rare=RARE,
        scatter=plots.size_latency_accuracy(report["models"], candidate["name"], reference["name"]),
        waterfalls=waterfalls(chain),
        bars=before and after and plots.class_bars(before, after, (reference["name"], candidate["name"]), RARE),
        metric=metric_named(candidate["accuracy"]["metric"]),
        more=more_metrics(details, candidate["accuracy"]["metric"]),
        task=measured_task(details),
        loaded=loading(measured_task(details)),
        differences=details["differences"].get(candidate["name"], {}),
        flips=details.get("flips", {}).get(candidate["name"]),
        predictions=prediction_errors(report),
    )


def loading(task: "type[Task]") -> dict[str, str]:
    """Return what the lines that load a model name: the classes of transformers and Optimum, and the pipeline."""
    auto = str(task.auto_class)
    return {"auto_class": auto, "onnx_class": auto.replace("AutoModel", "ORTModel"), "tag": task.pipeline_tag}


def more_metrics(details: dict[str, Any], first: str) -> list[Metric]:
    """Return the metrics that a page shows beside the first one."""
    return [m for said, m in metrics_of(measured_task(details).metrics).items() if said != first and m.shown]


def template(name: str) -> jinja2.Template:
    """A page beside this file; a name that it is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else terminal(value),
    )
    environment.filters["number"] = console.number
    environment.globals |= {"sentence": console.sentence, "outcome": console.outcome}
    return environment.get_template(name)


def ends(report: dict[str, Any], details: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The candidate's row and the reference's."""
    return console.candidate_row(report), next(row for row in report["models"] if row["name"] == details["reference"])


def chain_of(
    records: list[dict[str, Any]], report: dict[str, Any], candidate: str, reference: str
) -> list[dict[str, Any]]:
    """The measured models from the reference to the candidate, each made from the one before."""
    by_folder = {f"{record['name']}-{record['key']}": record for record in records}
    by_name = {record["name"]: record for record in records}
    rows = {model["name"]: model for model in report["models"]}
    chain, record = [], by_name.get(candidate)
    while record is not None:
        if record["name"] in rows:
            chain.append(rows[record["name"]])
        if record["name"] == reference:
            break
        record = by_folder.get(record["inputs"].get("model", ""))
    return chain[::-1]


def waterfalls(chain: list[dict[str, Any]]) -> list[str]:
    """Accuracy, bytes and milliseconds along the chain."""
    if len(chain) < 2:
        return []
    short = {"onnxruntime": "ORT"}
    timed = [
        (f"{m['name']}\n({short.get(m['latency_ms']['runtime'], m['latency_ms']['runtime'])})", m["latency_ms"]["p50"])
        for m in chain
    ]
    metric = metric_named(chain[0]["accuracy"]["metric"])
    times, unit = (100, ", points") if metric.percent else (1, "")
    return [
        plots.waterfall(
            [(m["name"], times * m["accuracy"]["value"]) for m in chain], f"{chain[0]['accuracy']['metric']}{unit}", 1
        ),
        plots.waterfall([(m["name"], m["bytes"] / 1e6) for m in chain], "size, MB", 2),
        plots.waterfall(timed, "p50 latency, ms", 1),
    ]


def prediction_errors(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What `plan` said of each model beside what was measured; error is (predicted - measured) / measured.

    Returns: a dict a model with `model` and, where there is both, disk_mb, latency_ms and ram_mb, each
        {predicted, measured, error}.
    """
    found = []
    for model in report["models"]:
        predicted = model.get("predicted") or {}
        measured = {
            "disk_mb": model["bytes"] / 1e6,
            "latency_ms": model["latency_ms"]["p50"],
            "ram_mb": model["peak_rss_mb"],
        }
        row = {
            name: {"predicted": predicted[name], "measured": value, "error": predicted[name] / value - 1}
            for name, value in measured.items()
            if predicted.get(name) is not None and value
        }
        if row:
            found.append({"model": model["name"], **row})
    return found
