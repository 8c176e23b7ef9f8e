"""What a run was trained on, for what is made of its model afterwards."""

import inspect
from pathlib import Path
from typing import Any

from hfcompress.errors import OptionError, UserError
from hfcompress.runs.lock import LOCK, locked_task, read_lock
from hfcompress.runs.recipes import FoundRecipe, load_recipe


def images_of(model: str, given: Path | None) -> Any:
    """Where images come from: what was given, else the run's own data; None where that is neither here nor images."""
    from hfcompress.runs import delivery

    if given is not None:
        return delivery.read_images(given)
    if not (Path(model) / LOCK).is_file():
        return None
    locked = read_lock(Path(model) / LOCK)
    try:
        default = default_task(load_recipe(locked["recipe"]))
    except UserError:  # the file of a recipe of one's own is not known here
        return None
    if not default.has_images or isinstance(locked["options"]["task"]["dataset"], dict):
        return None
    return delivery.task_images(locked_task(locked, default, None))


def default_task(found: FoundRecipe) -> Any:
    """Return the task that a recipe has where none is given: of its type is every task that the recipe takes.

    Raises:
        UserError: the recipe has no option `task`.
    """
    parameter = inspect.signature(found.recipe).parameters.get("task")
    if parameter is None:
        raise UserError(f"the recipe {found.name} has no option task, which would say what its data is")
    return parameter.default


def require_options(to: str, bits: int, images: Path | str | None, litert_python: Path | str | None) -> None:
    """Refuse options that an export to a format cannot have.

    Raises:
        OptionError: the bits are not 8 or 32 or the model's own, or the format asks for no images or no LiteRT.
    """
    if bits not in (8, 32):
        raise OptionError(".bits", "32 or 8", bits)
    if bits == 8 and to != "litert":
        raise OptionError(".bits", "{to} has the bits that the model has; leave it out", bits, to=to)
    if images is not None and to == "onnx":
        raise OptionError(".images", "onnx is written without images; leave it out", images)
    if litert_python is not None and to != "litert":
        raise OptionError(".litert_python", "{to} needs no LiteRT; leave it out", litert_python, to=to)
