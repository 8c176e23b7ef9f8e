"""list, run and plan: a recipe's signature is its command line."""

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable
from copy import copy
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro
from tyro.conf import Positional

from hfcompress.cli.arguments import option_names, option_value
from hfcompress.cli.choices import for_help
from hfcompress.cli.common import FAILED, HELP, quiet
from hfcompress.cli.parse_errors import one_line_errors, options_of
from hfcompress.cli.results import push
from hfcompress.errors import UserError, needs
from hfcompress.folders.files import FolderLock
from hfcompress.planning.plan import render
from hfcompress.report.console import table
from hfcompress.runs.prepare import (
    defaults_of,
    executed,
    held_together,
    planned,
    refuse_other_recipe,
    run_folder,
    scale_of,
    signature_defaults,
)
from hfcompress.runs.recipes import SMOKE, FoundRecipe, find_recipe, found_recipes, is_path, load_recipe


def list_recipes() -> int:
    """List the recipes, each with the first line of what it says about itself."""
    for name, summary in found_recipes().items():
        print(f"{name:20} {summary}")
    return 0


def run(recipe: Positional[str]) -> int:
    """Run a recipe, by its name or the path of its .py file: `hfcompress run legal_bert --help` shows its options."""
    return with_recipe("run", recipe, [])


def plan(recipe: Positional[str]) -> int:
    """Predict size, memory and latency of every model of a recipe, without weights or network."""
    return with_recipe("plan", recipe, [])


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What `run` takes beside the recipe's own options."""

    scale: Annotated[str, tyro.conf.arg(help="small (embedded data, two cores) or full (from the Hub).")] = "small"
    smoke: Annotated[bool, tyro.conf.arg(help="The whole recipe on tiny models, in a minute.")] = False
    run_dir: Annotated[Path | None, tyro.conf.arg(help="Where the run lies [runs/RECIPE-SCALE].")] = None
    from_lock: Annotated[
        Path | None, tyro.conf.arg(help="A recipe.lock.json: recipe, scale and options are what it says.")
    ] = None
    push_to_hub: Annotated[bool, tyro.conf.arg(help="Push the result when the budget holds; see push --help.")] = False
    hub_model_id: Annotated[str | None, tyro.conf.arg(help="Where to: org/name.")] = None
    private: Annotated[bool, tyro.conf.arg(help="As of push.")] = False
    revision: Annotated[str | None, tyro.conf.arg(help="As of push.")] = None
    create_pr: Annotated[bool, tyro.conf.arg(help="As of push.")] = False
    license: Annotated[str | None, tyro.conf.arg(help="As of push.")] = None


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What `plan` takes beside the recipe's own options."""

    scale: Annotated[str, tyro.conf.arg(help="small (embedded data, two cores) or full (from the Hub).")] = "small"
    format: Annotated[Literal["text", "json"], tyro.conf.arg(help="What is printed.")] = "text"
    device: Annotated[str, tyro.conf.arg(help="For a causal LM: a phone or board by name; here: this machine.")] = (
        "here"
    )


def with_recipe(verb: str, name: str, arguments: list[str]) -> int:
    """Parse the verb's and the recipe's options together, then run or plan the recipe."""
    found = find_recipe(name)
    smoke = verb == "run" and "--smoke" in arguments
    if smoke and option_value(arguments, "--scale") is not None:
        raise UserError("--scale: --smoke has a scale of its own; leave one of them out")
    given = option_value(arguments, "--scale")
    scale = SMOKE if smoke else found.default_scale if given is None else given
    if not smoke:
        found.require_scale(scale)
    folder = folder_of(arguments, found.name, scale)
    own = {"run": RunOptions, "plan": PlanOptions}[verb]
    if smoke and "--help" not in arguments:
        quiet()  # the recipe makes its models first
    with scale_of(found, scale, folder if verb == "run" and "--help" not in arguments else None) as (of_scale, held):
        defaults = defaults_of(found.recipe, of_scale, set(option_names(arguments)))
        options = parse(found, own, defaults, arguments, f"hfcompress {verb} {name}")
        verb_values = {field.name: options.pop(field.name) for field in dataclasses.fields(own)}
        if verb == "plan":
            return print_plan(found.recipe, options, verb_values["format"], verb_values["device"])
        return run_recipe(found, options, scale, folder, RunOptions(**verb_values), held)


def from_lock(file: Path, arguments: list[str]) -> int:
    """Run a recipe with the options that a lock says; those given beside it win."""
    from hfcompress.runs.lock import options_from, read_lock, require_same_data, say_what_differs

    locked = read_lock(file, task=True)
    scale, arguments, found = locked["scale"], list(arguments), None
    if arguments and not arguments[0].startswith("-"):
        named = arguments.pop(0)
        if is_path(named):  # the user's own file; the lock's name never stands for one
            found = find_recipe(named)
        if (found.name if found else named.replace("-", "_")) != locked["recipe"].replace("-", "_"):
            raise UserError(f"{file} is a lock of {locked['recipe']}, not of {named}")
    found = found or load_recipe(locked["recipe"])
    if scale_options := {"--smoke", "--scale"} & {argument.partition("=")[0] for argument in arguments}:
        raise UserError(f"{scale_options.pop()}: the lock says the scale ({scale}); leave it out")
    if scale not in (*found.scales, SMOKE):
        raise UserError(f"{file}: {found.name} has no scale {scale}")
    folder = folder_of(arguments, found.name, scale)
    defaults, given = signature_defaults(found.recipe), set(option_names(arguments))
    if scale == SMOKE and "--help" not in arguments:
        quiet()  # the recipe makes its models first
    with scale_of(found, scale, None if "--help" in arguments else folder) as (of_scale, held):
        # What a recipe writes to begin with is the same as the lock's: it need not be given.
        defaults = defaults_of(found.recipe, options_from(locked, defaults | of_scale, arguments), given)
        options = parse(found, RunOptions, defaults, arguments, "hfcompress run --from-lock")
        own = RunOptions(**{field.name: options.pop(field.name) for field in dataclasses.fields(RunOptions)})
        say_what_differs(locked)
        require_same_data(locked, options)
        return run_recipe(found, options, scale, folder, own, held)


def folder_of(arguments: list[str], recipe_name: str, scale: str) -> Path:
    """Return where a run lies, before anything is written there; see `run_folder`."""
    folder = run_folder(option_value(arguments, "--run-dir"), recipe_name, scale)
    refuse_other_recipe(folder, recipe_name)
    return folder


def parse(source: FoundRecipe, own: type, defaults: dict[str, Any], arguments: list[str], prog: str) -> dict[str, Any]:
    """Return the values of all options: the recipe's signature is its command line.

    Args:
        source: the recipe.
        own: the options of the verb.
        defaults: see `defaults_of`.

    Raises:
        UserError: an option is refused, or has no effect beside the others.
    """
    recipe = source.recipe
    hints = get_type_hints(recipe, include_extras=True)
    helps = argument_help(recipe)
    fields: list[Any] = [(f.name, f.type, dataclasses.field(default=f.default)) for f in dataclasses.fields(own)]
    for name in list(inspect.signature(recipe).parameters)[1:]:
        hint, default, others = hints[name], defaults[name], ""
        if HELP & set(arguments):
            hint, default, others = for_help(name, hint, default, arguments)
        fields.append(
            (
                name,
                Annotated[hint, tyro.conf.arg(help=helps.get(name, "") + others)],
                dataclasses.field(default_factory=partial(copy, default)),
            )
        )
    options_type: type[Any] = dataclasses.make_dataclass("Options", fields, frozen=True)
    summary = (inspect.getdoc(recipe) or source.name).splitlines()[0]
    with one_line_errors(arguments, prog, options_of(options_type)):
        parsed = tyro.cli(options_type, args=arguments, prog=prog, description=summary)
    found = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(parsed)}
    options = {name: found[name] for name in defaults}
    options = held_together(source, defaults, options, list(option_names(arguments)))
    return found | options


def argument_help(recipe: Callable[..., Any]) -> dict[str, str]:
    """Name -> text from the Args section of the recipe's docstring, so that help stands once."""
    from docstring_parser import parse as parse_docstring

    return {p.arg_name: (p.description or "").replace("\n", " ") for p in parse_docstring(recipe.__doc__ or "").params}


def run_recipe(
    source: FoundRecipe,
    options: dict[str, Any],
    scale: str,
    folder: Path,
    own: RunOptions,
    held: FolderLock | None = None,
) -> int:
    """Run a recipe, print its table, and push its result where that was asked for; `held` is the folder's lock."""
    if own.push_to_hub != (own.hub_model_id is not None):
        raise UserError("--push-to-hub and --hub-model-id org/name: give both, or neither")
    for option in ("private", "revision", "create_pr", "license"):
        if getattr(own, option) and not own.push_to_hub:
            raise UserError(f"--{option.replace('_', '-')}: has no effect without --push-to-hub; leave it out")
    if own.hub_model_id:
        from hfcompress.hub.push import PUSHING, require_repository, require_token

        require_repository(own.hub_model_id)
        require_token()
        for package in PUSHING:
            needs(package)
    quiet()
    report = executed(source, options, scale, folder, held)
    if is_main_process():
        print(table(report))
    if own.hub_model_id and is_main_process():
        if report["ok"]:
            push(
                folder,
                own.hub_model_id,
                private=own.private,
                revision=own.revision,
                create_pr=own.create_pr,
                license=own.license,
            )
        else:
            print("not pushed, since the budget does not hold: see hfcompress push --help", file=sys.stderr)
    return 0 if report["ok"] else FAILED


def is_main_process() -> bool:
    """Of the ranks that ran the recipe, the one that wrote the report."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def print_plan(recipe: Callable[..., Any], options: dict[str, Any], form: str, on: str) -> int:
    plan = planned(recipe, options, on)
    print(json.dumps(plan.as_dict(), indent=1) if form == "json" else render(plan))
    return 0 if plan.ok else FAILED
