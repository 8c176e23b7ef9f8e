"""The page and the card of an image classifier's run."""

from typing import Any

from hfcompress.evaluation.metrics import metrics_of
from hfcompress.folders.escaping import code_span, markdown
from hfcompress.formats import format_called
from hfcompress.report import console, plots
from hfcompress.report.card import (
    EVIDENCE,
    against,
    class_rows,
    costs,
    format_tags,
    hub_names,
    metadata,
    noise,
    processors,
    verdict_line,
)
from hfcompress.report.console import threads_in_words
from hfcompress.report.html import AGREEMENT, RARE, SPEED, Column, chain_of, ends, page, prediction_errors, waterfalls
from hfcompress.tasks import measured_task

SHOWN_CLASSES = 30  # of a data set with more, those that lost most
CARD = """---
{metadata}
---

{warning}# {title}

{verdict}{notes}

{size} MB, {parameters} parameters at {bits} bits each, {against}; made by the
recipe `{recipe}` ({scale} scale).

| model | format | MB | accuracy (95% interval) | macro-F1 | p50 ms | runtime | peak MB | over the bare runtime |
|---|---|---|---|---|---|---|---|---|
{rows}

{plot}Measured on {n} test images{groups}, {batch} a request, {threads}, {cpu}.{noise} The bare runtime is the process
before it loads the model.

## The budget

{verdicts}

{costs}## Use

```python
{use}```
{evidence}
## Which classes lost

| class | images | F1 {before} | F1 {after} | change |
|---|---|---|---|---|
{classes}
{hidden}
## Limits

Gives every image one of {labels} labels, also one that shows none of them: it has no label for "something else".
It has seen images like those of {data} only; another camera, light or framing has to be measured anew. Classes marked
"rare" have fewer than {rare} test images, too few for a statement about them.
"""
ONNX_USE = """{fetch}import onnxruntime
from transformers import AutoConfig, AutoImageProcessor
from transformers.image_utils import load_image  # upright, in RGB

session = onnxruntime.InferenceSession({path})
processor, config = AutoImageProcessor.from_pretrained("{folder}"), AutoConfig.from_pretrained("{folder}")
pixels = processor(load_image("image.png"), return_tensors="np")["pixel_values"]
print(config.id2label[int(session.run(["logits"], {{"pixel_values": pixels}})[0].argmax())])
"""


def images_html(report: dict[str, Any], details: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """The page.

    Args:
        report: report.json; details: measurements.json of the measure stage and more; records: of all stages.
    """
    candidate, reference = ends(report, details)
    before, after = (model["accuracy"]["all"]["per_class"] for model in (reference, candidate))
    labels = worst_first(before, after)
    shown = labels[:SHOWN_CLASSES]
    rows = model_rows(report, details, records)
    return page(
        "images.html.j2",
        report,
        details,
        records,
        columns=(
            SPEED,
            Column("kernels", lambda record: kernels(record) or "–", text=True),
            AGREEMENT,
        ),
        rows=rows,
        has_flops=any(row["flops_left"] is not None for row in rows),
        rare=RARE,
        scatter=plots.size_latency_accuracy(report["models"], candidate["name"], reference["name"]),
        waterfalls=waterfalls(chain_of(records, report, candidate["name"], reference["name"])),
        bars=plots.class_bars(
            {label: before[label] for label in shown}, after, (reference["name"], candidate["name"]), RARE
        ),
        classes=shown,
        hidden_classes=len(labels) - len(shown),
        shown_classes=SHOWN_CLASSES,
        differences=details["differences"].get(candidate["name"], {}),
        flips=details["flips"].get(candidate["name"]),
        predictions=prediction_errors(report),
        use=use(candidate, candidate["path"]),
    )


def model_rows(report: dict[str, Any], details: dict[str, Any], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a model: what report.json says of it, its paired change of accuracy, and what its record adds."""
    made = {f"{record['name']}-{record['key']}": record for record in records}
    found = []
    for model in report["models"]:
        record = made.get(model["path"] or "", {"measured": {}})
        before, after = (record["measured"].get(when) or {} for when in ("before", "after"))
        found.append(
            {
                "model": model,
                "change": details["differences"].get(model["name"], {}).get("accuracy"),
                "over_bare_mb": model["peak_rss_mb"] - model["bare_rss_mb"],
                "flops_left": after["flops"] / before["flops"] if before.get("flops") and "flops" in after else None,
            }
        )
    return found


def static_note(rows: list[dict[str, Any]], candidate: str) -> list[str]:
    """The sentence that a reader must see first when int8 by calibration alone is as good as what was trained in int8.

    Args:
        rows: the models of report.json.

    Returns: one sentence or none: of a StaticInt8Images model that is no larger and no less accurate than the
        candidate, and better in one of both.
    """
    trained = next(row for row in rows if row["name"] == candidate)
    if trained["stage"] != "QATImages":
        return []

    def merit(row: dict[str, Any]) -> tuple[float, int]:
        return row["accuracy"]["value"], -row["bytes"]

    own = merit(trained)
    static = [row for row in rows if row["stage"] == "StaticInt8Images"]
    better = [row for row in static if merit(row) != own and all(a >= b for a, b in zip(merit(row), own, strict=True))]
    if not better:
        return []
    best, metric = max(better, key=merit), trained["accuracy"]["metric"]
    return [
        f"Static int8 does as well without the training in int8: {best['name']} has {best['bytes'] / 1e6:.3f} MB and "
        f"{metric} {best['accuracy']['value']:.4f}, {candidate} {trained['bytes'] / 1e6:.3f} MB and "
        f"{trained['accuracy']['value']:.4f} on the same {trained['accuracy']['n']:,} images."
    ]


def kernels(record: dict[str, Any]) -> str:
    """Every count of kernels in a record, in words: "integer kernels 54", or by operator."""
    counts = {
        name.replace("_", " "): value
        for name, value in record["measured"].items()
        if "kernels" in name or name.startswith("integer_")
    }
    parts = []
    for name, value in counts.items():
        inside = ", ".join(f"{kind} {n}" for kind, n in value.items()) if isinstance(value, dict) else f"{value}"
        parts.append(f"{name} {inside}")
    return "; ".join(parts)


def worst_first(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The classes, the one that lost most F1 first."""
    return sorted(before, key=lambda label: after[label]["f1"] - before[label]["f1"])


def use(model: dict[str, Any], folder: str, file: str | None = None) -> str:
    """The lines that load a model and label an image.

    Args:
        folder: where config and processor are: a folder, or with `file` (the model's place there) a repository.
    """
    form = format_called(model["format"])
    if form.folder:
        here = folder if file is None else file.rpartition("/")[0]
        fetch = "" if file is None else f"# hf download {folder} --include '{form.folder}*' --local-dir .\n"
        return fetch + form.usage(here, "images")
    if form.runtime == "torch":
        return form.usage(folder, "images")
    if file is None:
        return ONNX_USE.format(fetch="", path=f'"{folder}/model.onnx"', folder=folder)
    fetch = "from huggingface_hub import hf_hub_download\n"
    return ONNX_USE.format(fetch=fetch, path=f'hf_hub_download("{folder}", "{file}")', folder=folder)


def images_card(
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
    title = f"{report['recipe']}-{report['scale']}-{candidate['name']}"
    threads = candidate["latency_ms"]["threads"]
    file = next(
        (p for p, name in (places or {}).items() if name == candidate["name"] and p.endswith((".onnx", ".tflite"))),
        None,
    )
    classes = class_rows(reference, candidate)
    hidden = len(classes) - SHOWN_CLASSES
    return CARD.format(
        metadata=metadata(
            report,
            details,
            task=task.pipeline_tag,
            library=format_called(candidate["format"]).library,
            metrics=hub_names(task),
            tags=[*format_tags(candidate), "vision"],
            counts=dict.fromkeys(metrics_of(task.metrics), details["n"]),
        ),
        warning="" if report["ok"] else "**The budget does not hold.**\n\n",
        title=markdown(title),
        verdict="The budget holds. " if report["ok"] else "",
        notes=markdown(" ".join(report["notes"])),
        size=f"{candidate['bytes'] / 1e6:.3f}",
        parameters=f"{candidate['parameters']:,}",
        bits=f"{candidate['bits_per_parameter']:.1f}",
        against=against(report, candidate, reference),
        before=markdown(reference["name"]),
        after=markdown(candidate["name"]),
        recipe=code_span(report["recipe"]),
        scale=markdown(report["scale"]),
        rows="\n".join(map(card_row, report["models"])),
        plot="![size, latency and accuracy of every model](plot.svg)\n\n" if repository else "",
        n=f"{details['n']:,}",
        groups="" if details["groups"] == details["n"] else f" in {details['groups']:,} groups",
        batch=candidate["latency_ms"]["batch"],
        threads=threads_in_words(threads),
        cpu=markdown(report["environment"]["cpu"]),
        noise=noise(details) + processors(details, candidate["name"]),
        verdicts="\n".join(map(verdict_line, report["verdicts"])),
        costs=costs(chain_of(details.get("records", []), report, candidate["name"], reference["name"])),
        use=use(candidate, repository or ".", file),
        evidence=EVIDENCE.format(repository=repository) if repository else "",
        classes="\n".join(classes[:SHOWN_CLASSES]),
        hidden=f"\n{hidden:,} classes that lost less are not shown.\n" if hidden > 0 else "",
        labels=len(details["labels"]),
        data=markdown(str(details.get("data", report["recipe"]))),
        rare=RARE,
    )


def card_row(model: dict[str, Any]) -> str:
    every = model["accuracy"]["all"]
    low, high = every["ci95"]["accuracy"]
    return (
        f"| {markdown(model['name'])} | {markdown(model['format'])} | {model['bytes'] / 1e6:.3f} | "
        f"{every['accuracy']:.4f} ({low:.3f} – {high:.3f}) | {every['macro_f1']:.4f} | "
        f"{console.number(model['latency_ms']['p50'], '.2f')} | {markdown(model['latency_ms']['runtime'])} | "
        f"{model['peak_rss_mb']:.0f} | {model['peak_rss_mb'] - model['bare_rss_mb']:.1f} |"
    )
