"""A recipe's options, held against each other; its plan; its run. The command line and api.py call this."""

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from hfcompress.budget import Budget
from hfcompress.errors import OptionError, UnknownShape, UserError
from hfcompress.folders.files import FolderLock, scratch_below
from hfcompress.planning.plan import Plan
from hfcompress.runs.calibration import within_windows
from hfcompress.runs.effects import refuse_empty, refuse_without_effect
from hfcompress.runs.positions import within_positions
from hfcompress.runs.recipes import FoundRecipe
from hfcompress.runs.run import Run
from hfcompress.runs.sizes import within_sizes

Options = dict[str, Any]


def signature_defaults(recipe: Callable[..., Any]) -> Options:
    """Return a recipe's options as its signature has them."""
    return {name: p.default for name, p in list(inspect.signature(recipe).parameters.items())[1:]}


def defaults_of(recipe: Callable[..., Any], scale: Options, given: Collection[str]) -> Options:
    """Return all of a recipe's options where none is given: its signature's, in their place those of the scale.

    Args:
        given: names of the options that are given (budget.ram-gb): a budget drops defaults in other units of the same.
    """
    found, typed = signature_defaults(recipe) | scale, set(given)
    return {n: value.without_other_units(typed) if isinstance(value, Budget) else value for n, value in found.items()}


def held_together(found: FoundRecipe, defaults: Options, options: Options, given: Collection[str]) -> Options:
    """Return a recipe's options with defaults that the model or the data cannot have lowered to what they have.

    Args:
        defaults: the options where nothing is given.
        options: as they are given.
        given: names of those that are given (weight-only.bits).

    Raises:
        UserError: one is empty, or has no effect beside the others.
    """
    options = within_positions(options, given)
    options = within_windows(options, given)
    options = within_sizes(options, given)
    refuse_empty(defaults, options, given)
    refuse_without_effect(found.recipe, defaults, options, given, found.needed, found.answered)
    return options


def planned(recipe: Callable[..., Any], options: Options, device: str) -> Plan:
    """Predict size, memory and latency of every model of a recipe.

    Raises:
        UserError: a stage refuses its options, or the size of a model is not known.
    """
    from hfcompress.folders.record import cpu_name, slow_integers

    plan = Plan(device, options=options)
    recipe(plan, **options)
    timed = any(verdict["limit"] in ("latency_ms", "latency_ratio") for verdict in plan.verdicts)
    if timed and (sentence := slow_integers(cpu_name())):
        plan.advice = [*plan.advice, sentence]
    return plan


def executed(
    found: FoundRecipe, options: Options, scale: str, folder: Path, held: FolderLock | None = None
) -> dict[str, Any]:
    """Plan and run a recipe in a folder.

    Args:
        held: the folder's lock, where the caller has it already.

    Returns: report.json's object.

    Raises:
        UserError: the plan is sure that the budget cannot hold, or a stage refuses its options or inputs.
    """
    refuse_other_recipe(folder, found.name)
    plan = Plan(fetches=True, options=options)  # the run needs the model anyhow
    try:
        found.recipe(plan, **options)
    except UnknownShape:  # then it is measured without having been predicted
        plan = Plan()
    refuse_impossible(plan.verdicts, plan.advice)
    run = Run(folder, found.name, scale, plan.predictions, options, held)
    try:
        with scratch_below(folder):
            return found.recipe(run, **options)
    finally:
        run.close()


def refuse_other_recipe(folder: Path, name: str) -> None:
    """Stop before the report of another recipe's run is written over.

    Raises:
        UserError: the folder holds one.
    """
    from hfcompress.runs.lock import LOCK, read_lock

    if (folder / LOCK).is_file():
        try:
            other = read_lock(folder / LOCK)["recipe"]
        except UserError:  # damaged: it will be written anew
            return
        if other != name:
            reason = "it holds a run of {other}; give {name} a folder of its own"
            raise OptionError(".run_dir", reason, folder, other=other, name=name)


def refuse_impossible(verdicts: list[dict[str, Any]], advice: list[str]) -> None:
    """Stop before hours of training when the plan is sure of a size that the budget does not allow.

    Predicted bytes are exact to a few percent; a predicted latency is not, and is left to the measurement.
    """
    for verdict in verdicts:
        least = verdict.get("at_least", verdict["predicted"])  # of what pruning may leave
        if verdict["limit"] == "disk_mb" and verdict.get("exact", True) and least > 1.05 * verdict["allowed"]:
            raise OptionError(
                "budget.disk_mb",
                "{model} would take {least:.3g} MB; raise the limit or choose a smaller student. {advice}",
                float(verdict["allowed"]),
                model=verdict["candidate"],
                least=least,
                advice=" ".join(advice),
            )
