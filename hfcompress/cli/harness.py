"""eval: lm-evaluation-harness on a run's models, each in its own runtime."""

import json
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from hfcompress.cli.common import quiet, require_counts
from hfcompress.errors import UserError
from hfcompress.folders.inside import inside
from hfcompress.folders.record import read_json, write_json
from hfcompress.tasks import measured_task


def evaluate(
    run: Positional[Path],
    tasks: tuple[str, ...],
    models: tuple[str, ...] = (),
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    threads: int | None = None,
    format: Literal["text", "json"] = "text",
) -> int:
    """Run tasks of lm-evaluation-harness on the models of a run (extra lm-eval), and write its eval.json.

    Args:
        run: the run of a causal LM, or a model's folder.
        tasks: names of tasks, as `lm_eval ls tasks` lists them, or of the files in --include-path.
        models: which of the run's models [the reference and every delivered format].
        include_path: a folder of task files of your own.
        num_fewshot: examples before each question [the task's own number].
        limit: documents a task [all].
        apply_chat_template: ask in the model's chat template.
        threads: of the processor [all].
        format: text (a table) or json.
    """
    require_counts(0, num_fewshot=num_fewshot)
    require_counts(limit=limit, threads=threads)
    chosen = folders(run, models)
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"--include-path {include_path}: no such folder")
    quiet()
    from hfcompress.evaluation import harness
    from hfcompress.evaluation.latency import default_threads

    manager = harness.task_manager(list(tasks), include_path)
    found = {
        name: harness.evaluate(
            folder, list(tasks), manager, threads=threads or default_threads(), num_fewshot=num_fewshot, limit=limit,
            apply_chat_template=apply_chat_template,
        )
        for name, folder in chosen.items()
    }  # fmt: skip
    if (run / "report.json").is_file():
        write_json(run / "eval.json", {"tasks": list(tasks), "limit": limit, "models": found})
    print(json.dumps(found) if format == "json" else table(found))
    return 0


def folders(run: Path, models: tuple[str, ...]) -> dict[str, Path]:
    """Name -> folder of what is evaluated.

    Raises:
        UserError: no run and no model, no causal LM, or a model that the run has not.
    """
    if not (run / "report.json").is_file():
        if not (run / "config.json").is_file():
            raise UserError(f"{run} is neither a run (report.json) nor a model's folder (config.json)")
        return {run.name: run}
    rows = {row["name"]: row for row in read_json(run / "report.json", "models")["models"] if row["path"]}
    if measured_task(read_json(run / "details.json")).auto_class != "AutoModelForCausalLM":
        raise UserError(f"{run} is no run of a causal LM: lm-evaluation-harness evaluates nothing else here")
    if unknown := [name for name in models if name not in rows]:
        raise UserError(f"--models {unknown[0]}: the run has {', '.join(rows)}")
    wanted = models or tuple(name for name, row in rows.items() if row["format"] != "surgery")
    return {name: inside(run, rows[name]["path"], "report.json") for name in wanted}


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """A line a task and metric, a column a model, with standard errors."""
    names = list(found)
    width = max(18, *(len(name) + 2 for name in names))
    lines = [f"{'task':24} {'metric':20}" + "".join(f"{name:>{width}}" for name in names)]
    for task, metrics in next(iter(found.values())).items():
        for metric in metrics:
            if metric.endswith("_stderr"):
                continue
            cells = []
            for name in names:
                value, error = found[name][task][metric], found[name][task].get(f"{metric}_stderr")
                cells.append(f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else ""))
            lines.append(f"{task:24} {metric:20}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)
