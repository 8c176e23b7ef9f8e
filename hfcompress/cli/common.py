"""What the verbs share: exit codes, the recipe or the model a name stands for."""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hfcompress.errors import MOST_THREADS, UserError
from hfcompress.folders.guard import read_config
from hfcompress.folders.inside import inside
from hfcompress.folders.record import read_json

FAILED, WRONG_INPUT, KEEP_GOING, DEFECT, INTERRUPTED, NO_READER = 1, 2, 3, 70, 130, 141


def require_counts(least: int = 1, **counts: int | None) -> None:
    """Refuse options (by name) below `least`, and more threads than any machine would use; None was not given.

    Raises:
        UserError: one of them is refused.
    """
    for name, value in counts.items():
        option = f"--{name.replace('_', '-')}"
        if value is not None and value < least:
            raise UserError(f"{option} {value}: must be at least {least}")
        if value is not None and name == "threads" and value > MOST_THREADS:
            raise UserError(f"{option} {value}: must be at most {MOST_THREADS}")


@contextmanager
def candidate_of(name: str) -> Iterator[tuple[Path, int]]:
    """A model's folder and how many tokens it reads.

    Args:
        name: a run or a repository that was pushed, whose compressed model is meant, or the folder of one model.
    """
    from hfcompress.architectures.models import check_config
    from hfcompress.folders import fetch
    from hfcompress.hub.verify import laid_out
    from hfcompress.report.console import candidate_row
    from hfcompress.runs.lock import LOCK, read_lock

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
    from hfcompress.architectures.text_inputs import text_limit
    from hfcompress.planning.image_spec import is_image_model

    details = folder.parent / "details.json"
    if details.is_file():
        return int(read_json(details, "max_length")["max_length"])
    config = folder / "config.json"
    if read_config(folder).get("model_type") == "clicks" or is_image_model(config):
        return 1
    return text_limit(folder)


def require_texts(*folders: Path) -> None:
    """Stop a verb whose requests are lines that are scored: texts, or a click model's requests.

    Raises:
        UserError: one of the models does something else.
    """
    from hfcompress.formats import kind_of

    does = {
        "images": "labels images, and requests are recorded as text; hfcompress predict --image labels images",
        "language": "writes texts, and requests are labeled; hfcompress summarize asks it",
    }
    for folder in folders:
        if said := does.get(kind_of(folder)):
            raise UserError(f"{folder.name} {said}; hfcompress check holds a run against its budget")


def quiet() -> None:
    """Leave standard error to our own messages and bars: the libraries' chatter off."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for chatty in ("torchao", "torch.utils._pytree"):  # both complain when transformers imports torchao
        logging.getLogger(chatty).setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    if hook := getattr(
        transformers.utils.logging, "set_tqdm_hook", None
    ):  # of version 5: a bar for each load and save
        hook(lambda bar, arguments, options: bar(*arguments, **options | {"disable": True}))
    datasets.disable_progress_bars()
