"""What the verbs share: exit codes, the recipe or the model a name stands for, the texts of a file."""

import ast
import difflib
import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import recipes
from hfcompress.errors import MOST_THREADS, UserError
from hfcompress.guard import read_config
from hfcompress.inside import inside
from hfcompress.record import read_json

if TYPE_CHECKING:
    from PIL.Image import Image

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
    from hfcompress import hub
    from hfcompress.lock import LOCK, read_lock
    from hfcompress.models import check_config
    from hfcompress.report.console import candidate_row
    from hfcompress.verify import laid_out

    folder = hub.fetch(name)
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
    """What the run around a model measured it with; of a model from elsewhere, all that it has positions for."""
    details = folder.parent / "details.json"
    if details.is_file():
        return int(read_json(details, "max_length")["max_length"])
    return int(read_config(folder).get("max_position_embeddings") or 512)


def refuse_images(*folders: Path) -> None:
    """Stop a verb whose requests are lines of text.

    Raises:
        UserError: one of the models labels images.
    """
    from hfcompress.image_shape import is_image_model

    for folder in folders:
        if is_image_model(folder / "config.json"):
            raise UserError(
                f"{folder.name} labels images, and requests are recorded as text; hfcompress predict --image labels "
                "images, hfcompress check holds a run against its budget"
            )


def read_images(paths: Sequence[Path]) -> "list[Image]":
    """The images of files, in RGB.

    Raises:
        UserError: a file is not there, or holds no whole image.
    """
    from hfcompress.tasks.image_data import decode

    found = []
    for path in paths:
        if not path.is_file():
            raise UserError(f"--image {path}: no such file; give image files, or their paths one a line")
        try:
            found.append(decode({"bytes": None, "path": str(path)}))
        except ValueError as error:
            raise UserError(f"--image {path}: is no whole image ({error}); leave it out or mend it") from None
    return found


def read_lines(file: Path | None) -> list[str]:
    """One text a line; empty lines are left out.

    Raises:
        UserError: no such file, not UTF-8, or no text at all.
    """
    try:
        content = sys.stdin.buffer.read() if file is None else file.read_bytes()
        lines = [line for line in content.decode("utf-8").splitlines() if line.strip()]
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f'{file}: no such file; give one text a line, or --text "..."') from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file or 'standard input'} is not UTF-8 (byte {error.start}); convert it, for instance with "
            "iconv -t UTF-8 (an image is given with --image)"
        ) from None
    if not lines:
        raise UserError(f"{file or 'standard input'} holds no text")
    return lines


def found_recipes() -> dict[str, str]:
    """Name -> first docstring line of every file in recipes/ that defines a `recipe`; nothing is imported."""
    found = {}
    for folder in recipes.__path__:
        for file in sorted(Path(folder).glob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            if any(isinstance(node, ast.FunctionDef) and node.name == "recipe" for node in tree.body):
                found[file.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def load_recipe(name: str) -> Any:
    wanted, known = name.replace("-", "_"), found_recipes()
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
        raise UserError(f"there is no recipe {name}; {hint}")
    return importlib.import_module(f"recipes.{wanted}")


def quiet() -> None:
    """Leave standard error to our own messages and bars: the libraries' chatter off."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for chatty in ("torchao", "torch.utils._pytree"):  # both complain when transformers imports torchao
        logging.getLogger(chatty).setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
