"""What an example is, for each task: how it is read, encoded and scored. A new task is a file here and a row below."""

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfcompress.tasks.task import Task

TASKS = {
    "image-classification": "hfcompress.tasks.image_classification:ImageClassification",
    "tabular-classification": "hfcompress.tasks.tabular_classification:Clicks",
    "text-classification": "hfcompress.tasks.text_classification:TextClassification",
    "text-generation": "hfcompress.tasks.text_generation:CausalLM",
}
"""Name -> module:class, which is imported when it is asked for (see `tasks/task.py`)."""
BEFORE = {"clicks": "tabular-classification", "images": "image-classification", "language": "text-generation"}
"""What runs of earlier versions say in place of a name; those of texts say nothing."""


def task_class(name: str) -> "type[Task]":
    """Return the task of a row."""
    found: type[Task] = resolve_name(TASKS[name])
    return found


def measured_task(details: Mapping[str, Any]) -> "type[Task]":
    """Return the task that measurements.json or details.json is of; of an unknown name, text classification."""
    said = details.get("task", details.get("kind"))
    name = BEFORE.get(said, said) if isinstance(said, str) else ""
    return task_class(name if name in TASKS else "text-classification")
