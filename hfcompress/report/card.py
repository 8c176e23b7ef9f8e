"""The model card of a run's candidate: Hub metadata and text, every number from the report."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.evaluation.metrics import METRICS, metric_named, metrics_of
from hfcompress.evaluation.metrics.metric import Metric
from hfcompress.folders.escaping import code_span, markdown, one_line
from hfcompress.report.console import beside, number, outcome, sentence, threads_in_words
from hfcompress.report.html import RARE, chain_of, ends, loading
from hfcompress.tasks import measured_task

if TYPE_CHECKING:
    from hfcompress.tasks.task import Task

TEXT = """
{warning}# {title}

{verdict}{notes}

{size} MB, {parameters} parameters at {bits} bits each; {against}. Made by the recipe `{recipe}`
({scale} scale) from `{reference}`.

| model | format | MB | {metric} (95% interval) | {other} | p50 ms | runtime | peak MB |
|---|---|---|---|---|---|---|---|
{rows}

{plot}Measured on {n} test {unit} in {groups} groups, batch {batch}, {tokens} tokens, {threads}, {cpu}.{noise}

## The budget

{verdicts}

{costs}## Use

{use}
{classes}## Intended use and limits

{purpose}; it has seen no other language or kind of text.
{rare}It is no legal advice.
"""

CLASSES = """## Which classes lost

| class | n | F1 {before} | F1 {after} | change |
|---|---|---|---|---|
{rows}

"""
RARE_CLASSES = 'Classes marked "rare" have too few test texts for a statement about them. '


FOLDER_USE = """
```python
from optimum.onnxruntime import {onnx_class}
from transformers import AutoTokenizer, pipeline

folder = "."  # where the model lies
classify = pipeline(
    "{tag}",
    {onnx_class}.from_pretrained(folder),
    tokenizer=AutoTokenizer.from_pretrained(folder),
)
```
"""

ROOT_USE = """
The transformers model at the root: `{auto_class}.from_pretrained("{repository}")`.
"""

ONNX_USE = """
```python
from optimum.onnxruntime import {onnx_class}
from transformers import AutoTokenizer, pipeline

name = "{repository}"
model = {onnx_class}.from_pretrained(name, subfolder="onnx", file_name="{file}")
classify = pipeline("{tag}", model, tokenizer=AutoTokenizer.from_pretrained(name))
```

That is {candidate}, which the budget is about.
"""

EVIDENCE = """
The evidence lies beside it: report.html, report.json, and in records/ what each stage did.
`hfcompress verify {repository}` measures it again, `hfcompress run --from-lock recipe.lock.json` makes it again.
"""


def render_card(
    report: dict[str, Any],
    details: dict[str, Any],
    repository: str | None = None,
    places: dict[str, str] | None = None,
) -> str:
    """README.md of the candidate: YAML metadata with a model-index, and text.

    Args:
        report: report.json; details: details.json, which is measurements.json of the measure stage and more.
        repository: org/name, when the card is for a repository; places: each file in it, and the model it is of.
    """
    candidate, reference = ends(report, details)
    task = measured_task(details)
    rows = class_rows(reference, candidate)
    title = f"{report['recipe']}-{report['scale']}-{candidate['name']}"
    stock = "model.safetensors" in (places or {})
    threads = candidate["latency_ms"]["threads"]
    body = TEXT.format(
        title=markdown(title),
        warning="" if report["ok"] else "**The budget does not hold.**\n\n",
        verdict="The budget holds. " if report["ok"] else "",
        notes=markdown(" ".join(report["notes"])),
        size=f"{candidate['bytes'] / 1e6:.2f}",
        parameters=f"{candidate['parameters']:,}",
        bits=f"{candidate['bits_per_parameter']:.1f}",
        against=against(report, candidate, reference),
        recipe=code_span(report["recipe"]),
        scale=markdown(report["scale"]),
        reference=code_span(reference["name"]),
        metric=markdown(candidate["accuracy"]["metric"]),
        other=beside(task).label,
        unit=task.unit,
        rows="\n".join(row(model, beside(task)) for model in report["models"]),
        n=f"{details['n']:,}",
        groups=f"{details['groups']:,}",
        batch=candidate["latency_ms"]["batch"],
        tokens=number(candidate["latency_ms"]["sequence_length"], "d"),
        threads=threads_in_words(threads),
        cpu=markdown(report["environment"]["cpu"]),
        noise=noise(details) + processors(details, candidate["name"]),
        verdicts="\n".join(map(verdict_line, report["verdicts"])),
        costs=costs(chain_of(details.get("records", []), report, candidate["name"], reference["name"])),
        classes=CLASSES.format(
            before=markdown(reference["name"]), after=markdown(candidate["name"]), rows="\n".join(rows)
        )
        if rows
        else "",
        rare=RARE_CLASSES if rows else "",
        purpose=task.purpose.format(labels=len(details["labels"])),
        plot="![size, latency and accuracy of every model](plot.svg)\n\n" if repository else "",
        use=use(repository, places or {}, candidate["name"], task)
        if repository
        else FOLDER_USE.format(**loading(task)),
    )
    head = metadata(
        report,
        details,
        task=task.pipeline_tag,
        library="transformers" if stock else "optimum",
        metrics=hub_names(task),
        tags=format_tags(candidate),
        counts=dict.fromkeys(metrics_of(task.metrics), details["n"]),
    )
    return f"---\n{head}\n---\n{body}"


def format_tags(row: dict[str, Any]) -> list[str]:
    """The Hub's tags of a model's format and of its 8-bit weights, which are stored as int8 or as uint8."""
    integer = bool({"int8", "uint8"} & set(row["dtypes"]))
    return ["int8"] * integer + ["onnx"] * (row["format"] == "onnx")


def use(repository: str, places: dict[str, str], candidate: str, task: "type[Task]") -> str:
    """How the candidate is loaded from a repository, and what else lies there."""
    file = next((place for place, name in places.items() if name == candidate and place.endswith(".onnx")), None)
    root = ROOT_USE if "model.safetensors" in places else ""
    load = (
        ""
        if file is None
        else ONNX_USE.format(
            repository=repository, file=Path(file).name, candidate=markdown(candidate), **loading(task)
        )
    )
    return load + root.format(repository=repository, **loading(task)) + EVIDENCE.format(repository=repository)


def metadata(
    report: dict[str, Any],
    details: dict[str, Any],
    *,
    task: str,
    library: str,
    metrics: list[str],
    tags: list[str],
    counts: dict[str, int],
) -> str:
    """A card's YAML: what the Hub shows and searches, and the model-index with every metric.

    Args:
        task: as the Hub names it; counts: each metric of the model-index, and how many examples it was measured on.
    """
    from huggingface_hub import EvalResult, ModelCardData

    candidate, _ = ends(report, details)
    every, data = candidate["accuracy"]["all"], one_line(str(details.get("data", report["recipe"])))
    origin = details.get("base", {}).items()
    base: dict[str, Any] = {name: None if said is None else one_line(str(said)) for name, said in origin}
    datasets = [one_line(str(name)) for name in details.get("datasets", [])]
    return ModelCardData(
        library_name=library,
        pipeline_tag=task,
        language=base.get("language"),
        license=base.get("licence"),
        license_name=base.get("licence_name"),
        license_link=base.get("licence_link"),
        **({"base_model": base["name"], "base_model_relation": "quantized"} if "/" in base.get("name", "") else {}),
        datasets=datasets or None,
        metrics=metrics,
        model_name=one_line(f"{report['recipe']}-{report['scale']}-{candidate['name']}"),
        tags=[*tags, "hfcompress"],
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=next(iter(datasets), data),
                dataset_name=data,
                dataset_split="test",
                **result,
            )
            for result in [*totals(every, counts), *of_classes(every)]
        ],
    ).to_yaml()


def totals(every: dict[str, Any], counts: dict[str, int]) -> list[dict[str, Any]]:
    """What an EvalResult says of each metric that was measured."""
    intervals = every.get("ci95", {})
    return [
        {
            "metric_type": name,
            "metric_value": round(every[name], 6),
            "metric_args": {"n": n} | ({"ci95": intervals[name]} if name in intervals else {}),
        }
        for name, n in counts.items()
        if every.get(name) is not None
    ]


def of_classes(every: dict[str, Any]) -> list[dict[str, Any]]:
    """The same of each class's F1; n counts the examples that are truly of the class."""
    return [
        {
            "metric_type": "f1",
            "metric_name": f"F1 of {one_line(label)}",
            "metric_value": round(found["f1"], 6),
            "metric_args": {"class": one_line(label), "n": found["n"]}
            | ({"ci95": found["f1_ci95"]} if "f1_ci95" in found else {}),
        }
        for label, found in every.get("per_class", {}).items()
    ]


def against(report: dict[str, Any], candidate: dict[str, Any], reference: dict[str, Any]) -> str:
    """How many times smaller than the reference, and faster than what the latency is counted from."""
    timed = next((v["reference"] for v in report["verdicts"] if v["limit"] == "latency_ratio"), reference["name"])
    slow, fast = next(m for m in report["models"] if m["name"] == timed)["latency_ms"], candidate["latency_ms"]
    ratio = slow["p50"] / fast["p50"]
    pace = f"{ratio:.1f} times faster than" if ratio >= 1 else f"{1 / ratio:.1f} times slower than"
    runtime = f" in {markdown(slow['runtime'])}" if slow["runtime"] != fast["runtime"] else ""
    smaller = f"{reference['bytes'] / candidate['bytes']:.1f} times smaller"
    if timed != reference["name"] or runtime:
        smaller += f" than `{code_span(reference['name'])}`"
    return f"{smaller} and {pace} `{code_span(timed)}`{runtime}"


def hub_names(task: "type[Task]") -> list[str]:
    """Return what the Hub calls the metrics that a task's budget may limit."""
    return list(dict.fromkeys(METRICS[name].hub for name in task.drops if METRICS[name].hub))


def row(model: dict[str, Any], other: Metric) -> str:
    low, high = model["accuracy"]["ci95"]
    return (
        f"| {markdown(model['name'])} | {markdown(model['format'])} | {model['bytes'] / 1e6:.2f} | "
        f"{model['accuracy']['value']:.4f} ({low:.3f} – {high:.3f}) | "
        f"{number(model['accuracy']['all'][other.said], other.form)} | {number(model['latency_ms']['p50'], '.2f')} | "
        f"{markdown(model['latency_ms']['runtime'])} | {number(model['peak_rss_mb'], '.0f')} |"
    )


def verdict_line(verdict: dict[str, Any]) -> str:
    said = outcome(verdict)
    return f"- {said if said == 'holds' else f'**{said}**'}: {markdown(sentence(verdict))}"


def noise(details: dict[str, Any]) -> str:
    """A sentence where the machine was not quiet."""
    if not details.get("probe", {}).get("noisy"):
        return ""
    return " The machine's speed changed by more than 15% while it measured: the times are noisy."


def processors(details: dict[str, Any], name: str) -> str:
    """A sentence where a model's 8-bit products depend on the processor: one whose weights are signed, for TensorRT.

    Args:
        details: with the records of the stages; name: of the model.
    """
    records = [record for record in details.get("records", []) if record["name"] == name]
    count = next((found for r in records if (found := r.get("measured", {}).get("saturating_layers"))), 0)
    if not count:
        return ""
    return (
        " **Its answers hold for TensorRT and for processors with VNNI (Intel since Cascade Lake, AMD since Zen 4).** "
        f"Its 8-bit weights are signed, and {count} of its products can overflow on x86 without VNNI."
    )


def costs(chain: list[dict[str, Any]]) -> str:
    """A section with one line a stage from the reference to the candidate; empty where the records tell no chain."""
    return costs_section(
        f"- {markdown(after['stage'])} ({markdown(after['name'])}): {change(before, after)}, "
        f"{(after['bytes'] - before['bytes']) / 1e6:+.2f} MB"
        for before, after in pairwise(chain)
    )


def costs_section(lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return f"## What each stage cost\n\n{text}\n\n" if text else ""


def change(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What a stage did to the metric."""
    metric = metric_named(before["accuracy"]["metric"])
    return metric.between(before["accuracy"]["value"], after["accuracy"]["value"])


def class_rows(reference: dict[str, Any], candidate: dict[str, Any]) -> list[str]:
    """The rows of the classes, the one that lost most first; none where there are no classes."""
    before, after = (model["accuracy"]["all"].get("per_class", {}) for model in (reference, candidate))
    return [
        f"| {markdown(label)}{' (rare)' if before[label]['n'] < RARE else ''} | {before[label]['n']} | "
        f"{before[label]['f1']:.3f} | {after[label]['f1']:.3f} | {after[label]['f1'] - before[label]['f1']:+z.3f} |"
        for label in sorted(before, key=lambda label: after[label]["f1"] - before[label]["f1"])
    ]
