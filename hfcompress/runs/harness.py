"""lm-evaluation-harness on the models of a run, each in its own runtime."""

from pathlib import Path
from typing import Any

from hfcompress.errors import OptionError, UserError
from hfcompress.folders.inside import inside
from hfcompress.folders.record import read_json, write_json
from hfcompress.tasks import measured_task


def evaluate(
    run: Path,
    tasks: tuple[str, ...],
    models: tuple[str, ...] = (),
    *,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    threads: int | None = None,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness, and write the run's eval.json; see `hfcompress.evaluate`.

    Returns: model -> task -> metric -> value.

    Raises:
        UserError: see `folders`, or there is no such task.
    """
    chosen = folders(run, models)
    if include_path is not None and not include_path.is_dir():
        raise OptionError(".include_path", "no such folder", include_path)
    from hfcompress.evaluation import harness
    from hfcompress.evaluation.latency import default_threads

    manager = harness.task_manager(list(tasks), include_path)
    found: dict[str, Any] = {
        name: harness.evaluate(
            folder,
            list(tasks),
            manager,
            threads=threads or default_threads(),
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=apply_chat_template,
        )
        for name, folder in chosen.items()
    }
    if (run / "report.json").is_file():
        write_json(run / "eval.json", {"tasks": list(tasks), "limit": limit, "models": found})
    return found


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
        raise OptionError(".models", "the run has {rows}", unknown[0], rows=", ".join(rows))
    wanted = models or tuple(name for name, row in rows.items() if row["format"] != "surgery")
    return {name: inside(run, rows[name]["path"], "report.json") for name in wanted}
