"""report.html: one self-contained page, made from records."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfcompress.evaluation.metrics import metric_named, metrics_of
from hfcompress.evaluation.metrics.metric import Metric
from hfcompress.report import console, plots
from hfcompress.report.sections import pages_of
from hfcompress.report.templates import template
from hfcompress.tasks import measured_task

if TYPE_CHECKING:
    from hfcompress.tasks.task import Task


@dataclass(frozen=True)
class Column:
    """A column of the table of stages."""

    title: str
    cell: Callable[[dict[str, Any]], str]
    """A stage's record -> what is shown."""
    text: bool = False
    """Whether it is words, which stand on the left."""


def agreement(record: dict[str, Any]) -> str:
    """Return the share of labels that a stage left as they were."""
    return console.number((record["measured"].get("difference_from_parent") or {}).get("label_agreement"), ".3f")


def integer_kernels(record: dict[str, Any]) -> int | None:
    """Return how many of a stage's layers compute with integers, where it counted them."""
    counted: int | None = record["measured"].get("integer_linears", record["measured"].get("integer_kernels"))
    return counted


SPEED = Column("samples/s", lambda record: console.number(record["measured"].get("samples_per_second"), ".1f"))
INTEGER_KERNELS = Column("integer kernels", lambda record: console.number(integer_kernels(record), "d"))
AGREEMENT = Column("label agreement with parent", agreement)
RARE = 30  # texts of a class below which its figures are flagged


def render_html(report: dict[str, Any], details: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """The page.

    Args:
        report: report.json; details: measurements.json of the measure stage; records: of all stages of the run.
    """
    candidate, reference = ends(report, details)
    chain = chain_of(records, report, candidate["name"], reference["name"])
    before, after = (model["accuracy"]["all"].get("per_class") for model in (reference, candidate))
    return page(
        "report.html.j2",
        report,
        details,
        records,
        columns=(SPEED, INTEGER_KERNELS, AGREEMENT),
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


def page(
    name: str,
    report: dict[str, Any],
    details: dict[str, Any],
    records: list[dict[str, Any]],
    columns: "tuple[Column, ...]" = (),
    **more: Any,
) -> str:
    """Return a page of page.html.j2's frame.

    Args:
        name: the template that fills its body; see `render_html` for report, details and records.
        columns: of the table of stages, beside seconds, memory and bytes.
        more: what the template shows.
    """
    candidate, reference = ends(report, details)
    shared = {"report": report, "details": details, "records": records, "candidate": candidate, "reference": reference}
    return template(name).render(**shared, columns=columns, sections=pages_of(details), **more)


def loading(task: "type[Task]") -> dict[str, str]:
    """Return what the lines that load a model name: the classes of transformers and Optimum, and the pipeline."""
    auto = str(task.auto_class)
    return {"auto_class": auto, "onnx_class": auto.replace("AutoModel", "ORTModel"), "tag": task.pipeline_tag}


def more_metrics(details: dict[str, Any], first: str) -> list[Metric]:
    """Return the metrics that a page shows beside the first one."""
    return [m for said, m in metrics_of(measured_task(details).metrics).items() if said != first and m.shown]


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
