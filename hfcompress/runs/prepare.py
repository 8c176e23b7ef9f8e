"""A recipe's options, held against each other; its plan; its run. The command line and api.py call this."""

import dataclasses
import difflib
import inspect
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hfcompress.budget import Budget
from hfcompress.errors import OptionError, UnknownShape, UserError
from hfcompress.folders.files import FolderLock, scratch_below
from hfcompress.folders.record import Record, cpu_name, slow_integers
from hfcompress.planning.plan import Plan
from hfcompress.runs.calibration import within_windows
from hfcompress.runs.effects import refuse_empty, refuse_without_effect
from hfcompress.runs.lock import LOCK, read_lock
from hfcompress.runs.positions import within_positions
from hfcompress.runs.recipes import SMOKE, FoundRecipe
from hfcompress.runs.run import Run, ranks
from hfcompress.runs.sizes import within_sizes
from hfcompress.stage import chosen_by

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


@contextmanager
def scale_of(
    found: FoundRecipe, scale: str, folder: Path | None
) -> Iterator[tuple[dict[str, Any], FolderLock | None]]:
    """Yield what a scale changes of a recipe's defaults, and the lock of the run's folder where that was needed.

    Smoke runs begin with data and a model that their recipe writes: into the run's folder, by one process, or where
    nothing is run into a place that is gone afterwards.

    Args:
        folder: the run's; None where nothing is run.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield found.arguments(scale, Path(scratch)), None
    elif scale != SMOKE:
        yield found.arguments(scale, folder), None
    else:
        processes = ranks()
        held = FolderLock(folder) if processes.is_main_process else None
        try:
            with scratch_below(folder), processes.main_process_first():
                defaults = found.arguments(scale, folder)
            yield defaults, held
        finally:
            if held is not None:
                held.close()


def run_folder(given: str | Path | None, name: str, scale: str) -> Path:
    """Return where a run lies [runs/NAME-SCALE].

    Raises:
        OptionError: no folder can be there.
    """
    if given is not None and not str(given).strip():
        raise OptionError(".run_dir", "the name is empty; give a folder, or leave the option out")
    folder = Path("runs") / f"{name}-{scale}" if given is None else Path(given).expanduser()
    if any(not character.isprintable() for character in str(folder)):
        reason = "it has a character that no line can show; give another name"
        raise OptionError(".run_dir", reason, repr(str(folder)))
    if folder.exists() and not folder.is_dir():
        raise OptionError(".run_dir", "this is a file; give a folder", folder)
    refuse_finished_stage(folder)
    return folder


def resolved(found: FoundRecipe, of_scale: Options, options: Options) -> Options:
    """Return all options of a recipe from those that a caller of Python gives by name.

    Args:
        of_scale: what the scale changes of the defaults.
        options: parameter -> value; of a group of options also a dict of some of them, of a group in it likewise.

    Raises:
        UserError: there is no such option, or `held_together` refuses one.
    """
    first = signature_defaults(found.recipe) | of_scale
    if unknown := [name for name in options if name not in first]:
        near = difflib.get_close_matches(unknown[0], first, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(first)}"
        raise OptionError(f".{unknown[0]}", "{recipe} has no such option; {hint}", recipe=found.name, hint=hint)
    values = {name: merged(name, first[name], value) for name, value in options.items()}
    given = [typed for name, value in values.items() for typed in changed_names(name, first[name], value)]
    defaults = defaults_of(found.recipe, of_scale, given)
    return held_together(found, defaults, defaults | values, given)


def merged(name: str, default: Any, value: Any) -> Any:
    """Return an option's value; a dict stands for its group's default with some fields changed.

    Raises:
        OptionError: the group has no such field, or refuses the value.
    """
    if not isinstance(value, dict) or not is_group(default):
        return value
    known = [field.name for field in dataclasses.fields(default)]
    if unknown := [field for field in value if field not in known]:
        inner = [
            f"{group}.{unknown[0]}" for group in chosen_by(default) if hasattr(getattr(default, group), unknown[0])
        ]
        near = inner or difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
        raise OptionError(f"{name}.{unknown[0]}", "there is no such option; {hint}", hint=hint)
    fields = {field: merged(f"{name}.{field}", getattr(default, field), entry) for field, entry in value.items()}
    try:
        return dataclasses.replace(default, **fields)
    except UserError as error:
        error.group = error.group or name
        raise


def is_group(value: Any) -> bool:
    """Return whether an option is a group of options."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def changed_names(name: str, default: Any, value: Any) -> list[str]:
    """Return which options a value changes, as they are typed: distill.num-hidden-layers."""
    if not is_group(default) or type(value) is not type(default):
        return [name.replace("_", "-")] if value != default else []
    own = [(f"{name}.{f.name}", getattr(default, f.name), getattr(value, f.name)) for f in dataclasses.fields(default)]
    return [typed for field in own for typed in changed_names(*field)]


def planned(recipe: Callable[..., Any], options: Options, device: str) -> Plan:
    """Predict size, memory and latency of every model of a recipe.

    Raises:
        UserError: a stage refuses its options, or the size of a model is not known.
    """
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
    if (folder / LOCK).is_file():
        try:
            other = read_lock(folder / LOCK)["recipe"]
        except UserError:  # damaged: it will be written anew
            return
        if other != name:
            reason = "it holds a run of {other}; give {name} a folder of its own"
            raise OptionError(".run_dir", reason, folder, other=other, name=name)


def refuse_finished_stage(folder: Path) -> None:
    """Stop before a run is written into what a stage has finished: that stage would be damaged for its own run.

    Raises:
        OptionError: the folder is a stage's, or lies in one.
    """
    place = folder.resolve()
    for above in (place, *place.parents):
        if (above / "record.json").is_file() and is_record(above):
            where = "it is" if above == place else f"it lies in {above.name},"
            reason = "{where} a finished stage of another run; give a folder of its own"
            raise OptionError(".run_dir", reason, folder, where=where)


def is_record(folder: Path) -> bool:
    """Whether a folder's record.json is that of a stage."""
    try:
        Record.read(folder)
    except UserError:
        return False
    return True


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
