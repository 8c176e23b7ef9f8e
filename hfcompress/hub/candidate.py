"""The model that a name stands for: a run's compressed one, a pushed one, or a folder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hfcompress.architectures.kinds import is_click_model, is_image_model
from hfcompress.architectures.models import check_config
from hfcompress.architectures.text_inputs import text_limit
from hfcompress.folders import fetch
from hfcompress.folders.guard import read_config
from hfcompress.folders.inside import inside
from hfcompress.folders.record import read_json
from hfcompress.hub.verify import laid_out
from hfcompress.report.console import candidate_row
from hfcompress.runs.lock import LOCK, read_lock


@contextmanager
def candidate_of(name: str) -> Iterator[tuple[Path, int]]:
    """A model's folder and how many tokens it reads.

    Args:
        name: a run or a repository that was pushed, whose compressed model is meant, or the folder of one model.
    """
    folder = fetch.fetch(name)
    if not (folder / "report.json").is_file() and (folder / "config.json").is_file():
        check_config(folder)
        yield folder, tokens_read(folder)
        return
    report = read_json(folder / "report.json", "models", "verdicts")
    row = candidate_row(report)
    if "delivered" not in report:
        details = read_json(folder / "details.json", "max_length")
        yield inside(folder, row["path"], "report.json"), details["max_length"]
        return
    with tempfile.TemporaryDirectory() as work:
        task = read_lock(folder / LOCK, task=True)["options"]["task"]
        length = task.get("max_length") or task.get("window") or 1  # clicks and images have no tokens
        yield laid_out(folder, row, Path(work)), length


def tokens_read(folder: Path) -> int:
    """What the run around a model measured it with; of a model from elsewhere, what tokenizer and positions allow.

    Clicks and images have no tokens.
    """
    details = folder.parent / "details.json"
    if details.is_file():
        return int(read_json(details, "max_length")["max_length"])
    config = read_config(folder)
    if is_click_model(config) or is_image_model(config):
        return 1
    return text_limit(folder)
