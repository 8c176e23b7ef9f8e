"""Recipes by name, by file or by function: those of hfcompress, of installed packages, and the user's own."""

import ast
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from hfcompress.errors import OptionError, UserError

GROUP = "hfcompress.recipes"
"""Both the package of our own recipes and the entry-point group of those that other distributions bring."""
SMOKE = "smoke"
"""The scale of tiny models. It is not listed in SCALES; `arguments` makes it."""


@dataclass(frozen=True)
class FoundRecipe:
    """A recipe function, and what its module says beside it; a module needs no more than the function."""

    name: str
    recipe: Callable[..., dict[str, Any]]
    scales: tuple[str, ...] = ("default",)
    """SCALES: the names of the recipe's scales; the first is taken where none is asked for."""
    of_scale: Callable[[str, Path], dict[str, Any]] | None = None
    """arguments(scale, folder): what a scale changes of the defaults, written below the run's folder."""
    needed: dict[str, str] = field(default_factory=dict)
    """NEEDED: option, or the group it is of -> why it may have no effect."""
    answered: frozenset[str] = frozenset()
    """ANSWERED: options about which the recipe itself says what it does in their place."""

    @property
    def default_scale(self) -> str:
        """The scale that is taken where none is asked for: small, or the first."""
        return "small" if "small" in self.scales else self.scales[0]

    def require_scale(self, scale: str) -> None:
        """Refuse a scale that the recipe does not list.

        Raises:
            OptionError: with those that it does.
        """
        if scale not in self.scales:
            known = " and ".join(self.scales)
            raise OptionError(".scale", "{name} has {known}", scale, name=self.name, known=known)

    def arguments(self, scale: str, folder: Path) -> dict[str, Any]:
        """Return what a scale changes of the recipe's defaults.

        Raises:
            UserError: the recipe has no such scale.
        """
        if scale != SMOKE:
            self.require_scale(scale)
        if self.of_scale is not None:
            return self.of_scale(scale, folder)
        if scale == SMOKE:
            reason = "{name} makes no tiny models: its file defines no arguments(scale, folder)"
            raise OptionError(".smoke", reason, name=self.name)
        return {}


def found_recipes() -> dict[str, str]:
    """Return name -> first docstring line of every recipe of hfcompress and of installed packages.

    None is imported. A recipe of another package is described by that package's name.
    """
    return {entry.name: f"of the package {name_of(entry)}" for entry in foreign_recipes()} | own_recipes()


def own_recipes() -> dict[str, str]:
    """Return name -> first docstring line of every file in recipes/ that defines a `recipe`."""
    found = {}
    for file in sorted(Path(__file__).parents[1].joinpath("recipes").glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "recipe" for node in tree.body):
            found[file.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def foreign_recipes() -> list[metadata.EntryPoint]:
    """Return the entry points by which installed packages bring recipes."""
    return sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name)


def name_of(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value


def find_recipe(source: str | Path | Callable[..., Any]) -> FoundRecipe:
    """Return a recipe by its name, the path of its file, or its function.

    A file is executed: it is code that the user has chosen to run.

    Raises:
        UserError: there is none.
    """
    if callable(source):
        return of_function(source)
    return from_file(Path(source)) if is_path(str(source)) else load_recipe(str(source))


def is_path(source: str) -> bool:
    """Return whether a recipe is given as a file: names have neither a slash nor a suffix."""
    return source.endswith(".py") or "/" in source


def load_recipe(name: str) -> FoundRecipe:
    """Return a recipe of hfcompress or of an installed package by its name, and never a file.

    This is what the name in a lock of somebody else stands for: a folder of data runs no code.

    Raises:
        UserError: there is none, or two packages bring one of this name.
    """
    wanted, own = name.replace("-", "_"), own_recipes()
    foreign = [entry for entry in foreign_recipes() if entry.name.replace("-", "_") == wanted]
    if len(foreign) + (wanted in own) > 1:
        packages = ["hfcompress"] * (wanted in own) + [name_of(entry) for entry in foreign]
        raise UserError(f"{name}: {' and '.join(packages)} bring a recipe of this name; give the path of its file")
    if wanted in own:
        return of_module(importlib.import_module(f"{GROUP}.{wanted}"), wanted)
    if foreign:
        return of_entry_point(foreign[0])
    known = found_recipes()
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
    raise UserError(f"there is no recipe {name}; {hint}")


def of_entry_point(entry: metadata.EntryPoint) -> FoundRecipe:
    """Return what an entry point names: a module with a `recipe`, or the function itself.

    Raises:
        UserError: it cannot be imported, or is neither.
    """
    try:
        loaded = entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{entry.name}: the package {name_of(entry)} says that this recipe is {entry.value}, which cannot be "
            f"imported ({error})"
        ) from error
    if isinstance(loaded, ModuleType):
        return of_module(loaded, entry.name, f"{entry.name}, of the package {name_of(entry)}")
    return of_function(loaded, entry.name)


def from_file(file: Path) -> FoundRecipe:
    """Execute a file and return its recipe, named after the file.

    Modules that lie beside the file can be imported by it.

    Raises:
        UserError: there is no such file, it cannot be executed, or it defines no recipe.
    """
    file = file.expanduser()
    if file.suffix != ".py" or not file.is_file():
        what = "this is no .py file" if file.exists() else "no such file"
        raise UserError(f"{file}: {what}; give a recipe's name (hfcompress list) or the path of its .py file")
    name = file.stem
    if not name.isidentifier():
        raise UserError(f"{file}: a recipe is named after its file; give it a name of letters, digits and _")
    if name in own_recipes() and not file.samefile(Path(__file__).parents[1] / "recipes" / file.name):
        raise UserError(f"{file}: hfcompress has a recipe {name}; give the file another name")
    module_name = f"recipe_of_file_{name}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None  # of a .py file there always is one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and type hints look their module up
    if (beside := str(file.resolve().parent)) not in sys.path:
        sys.path.append(beside)  # the last place: nothing that lies there hides an installed package
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever a user's own file raises
        del sys.modules[module_name]
        raise UserError(f"{file}{line_of(error, file)}: {type(error).__name__}: {error}") from error
    return of_module(module, name, str(file))


def line_of(error: Exception, file: Path) -> str:
    """Return ", line N" where an exception passed through a line of the file, else ""."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}" if error.filename == str(file) else ""
    lines, traceback = [], error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(file):
            lines.append(traceback.tb_lineno)
        traceback = traceback.tb_next
    return f", line {lines[-1]}" if lines else ""


def of_module(module: ModuleType, name: str, place: str = "") -> FoundRecipe:
    """Return the recipe of a module.

    Args:
        place: what an error calls it.

    Raises:
        UserError: it defines no function `recipe`, or one that is none.
    """
    recipe = getattr(module, "recipe", None)
    if not inspect.isfunction(recipe):
        raise UserError(
            f"{place or name}: it defines no function recipe(run, ...); see docs/how-to/recipe_and_stage.md"
        )
    require_signature(recipe, place or name)
    return FoundRecipe(
        name,
        recipe,
        tuple(getattr(module, "SCALES", FoundRecipe.scales)),
        getattr(module, "arguments", None),
        dict(getattr(module, "NEEDED", {})),
        frozenset(getattr(module, "ANSWERED", ())),
    )


def of_function(recipe: Callable[..., Any], name: str = "") -> FoundRecipe:
    """Return a recipe that is given as a function, with what its module says where it is that module's `recipe`.

    Raises:
        UserError: it is no function with the parameters of a recipe.
    """
    if not inspect.isfunction(recipe):
        raise UserError(f"{recipe!r}: a recipe is a function recipe(run, ...)")
    module = inspect.getmodule(recipe)
    if module is not None and getattr(module, "recipe", None) is recipe and module.__name__ != "__main__":
        return of_module(module, name or module.__name__.rpartition(".")[2].removeprefix("recipe_of_file_"))
    require_signature(recipe, recipe.__name__)
    return FoundRecipe(name or recipe.__name__, recipe)


def require_signature(recipe: Callable[..., Any], place: str) -> None:
    """Refuse a function whose parameters cannot be a recipe's: a run, then options that have a default and a type.

    Raises:
        UserError: naming the parameter.
    """
    parameters = list(inspect.signature(recipe).parameters.values())
    if not parameters:
        raise UserError(f"{place}: recipe() takes no run; write def recipe(run, ...)")
    for parameter in parameters[1:]:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f"{place}: recipe's {parameter}: each option needs a name of its own")
        for what, missing in ("type", parameter.annotation), ("default", parameter.default):
            if missing is parameter.empty:
                raise UserError(f"{place}: recipe's option {parameter.name} has no {what}; give it one")
