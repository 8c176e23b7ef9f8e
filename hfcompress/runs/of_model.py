"""The recipe for a model in hand, by what its config.json says that it is."""

import dataclasses
from pathlib import Path
from typing import Any

from hfcompress.architectures import DECODERS, ENCODERS
from hfcompress.architectures.kinds import classifies_texts, is_causal_lm, is_image_model
from hfcompress.errors import OptionError, UserError
from hfcompress.folders import fetch
from hfcompress.folders.guard import read_config
from hfcompress.runs.recipes import FoundRecipe, load_recipe

IMAGES = {"mobilenet_v2": "iot_camera", "resnet": "resnet_prune"}


def names_a_model(source: Any) -> bool:
    """Return whether a recipe is given as a model: a folder with a config.json, or a Hub id (org/name).

    A recipe's name has no slash, and its file ends in .py.
    """
    if not isinstance(source, str | Path):
        return False
    return not str(source).endswith(".py") and ("/" in str(source) or Path(source).joinpath("config.json").is_file())


def recipe_of_model(model: str) -> tuple[FoundRecipe, dict[str, Any]]:
    """Return the recipe that makes a model smaller, and the option by which the recipe takes it.

    Raises:
        UserError: there is no such model, or no recipe for its kind.
    """
    folder = fetch.fetch(model, ["config.json"])
    config = read_config(folder)
    kind = config.get("model_type")
    if is_image_model(config):
        if kind not in IMAGES:
            raise UserError(f"{model}: a {kind} has no recipe; images are for {' and '.join(IMAGES)}")
        return load_recipe(IMAGES[kind]), {"base": model}
    if kind in DECODERS:
        return load_recipe("summarize_7b"), {"base": model}
    if is_causal_lm(config):
        return load_recipe("any_causal_lm"), {"base": model}
    if kind in ENCODERS:
        # One that has no head yet is what a teacher is trained from.
        return load_recipe("legal_bert"), {"teacher": model} if classifies_texts(config) else {
            "base": model,
            "teacher": "none",
        }
    raise UserError(
        f"{model}: a {kind} has no recipe; give the recipe's name and the model as an option (hfcompress list)"
    )


def with_data(found: FoundRecipe, options: dict[str, Any], data: str | Path | None) -> dict[str, Any]:
    """Return a recipe's options with another data set in its task.

    Raises:
        OptionError: the options name one, too.
    """
    if data is None:
        return options
    task = options.get("task", {})
    if isinstance(task, dict):
        if "dataset" in task:
            raise OptionError(".data", "{task.dataset} is given, too; give one of them", str(data))
        return options | {"task": task | {"dataset": str(data)}}
    return options | {"task": dataclasses.replace(task, dataset=str(data))}
