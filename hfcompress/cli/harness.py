"""eval: lm-evaluation-harness on a run's models, each in its own runtime."""

import json
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from hfcompress import api
from hfcompress.cli.common import quiet
from hfcompress.errors import require_counts
from hfcompress.runs.harness import folders


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
    folders(run, models)  # refused before the libraries are loaded
    quiet()
    found = api.evaluate(
        run,
        tasks,
        models=models,
        include_path=include_path,
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=apply_chat_template,
        threads=threads,
    )
    print(json.dumps(found) if format == "json" else table(found))
    return 0


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
