"""State a budget, run a recipe, get a small Hugging Face model and a report that proves or refuses the budget.

The public names are imported when they are first used: `import hfcompress` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfcompress.api import check, evaluate, export, plan, predict, push, quantize, run, verify
    from hfcompress.architectures.models import load
    from hfcompress.budget import Budget, ClickBudget, EmbeddingBudget, ImageBudget, LanguageBudget, Verdict
    from hfcompress.errors import CheckFailed, OptionError, UserError
    from hfcompress.folders.record import Record
    from hfcompress.planning.plan import Plan
    from hfcompress.runs.result import Result
    from hfcompress.runs.run import Run
    from hfcompress.stage import Artifact, Stage

    __version__: str

__all__ = [
    "Artifact",
    "Budget",
    "CheckFailed",
    "ClickBudget",
    "EmbeddingBudget",
    "ImageBudget",
    "LanguageBudget",
    "OptionError",
    "Plan",
    "Record",
    "Result",
    "Run",
    "Stage",
    "UserError",
    "Verdict",
    "__version__",
    "check",
    "evaluate",
    "export",
    "load",
    "plan",
    "predict",
    "push",
    "quantize",
    "run",
    "verify",
]

MODULES = {
    "hfcompress.api": ("check", "evaluate", "export", "plan", "predict", "push", "quantize", "run", "verify"),
    "hfcompress.budget": ("Budget", "ClickBudget", "EmbeddingBudget", "ImageBudget", "LanguageBudget", "Verdict"),
    "hfcompress.errors": ("CheckFailed", "OptionError", "UserError"),
    "hfcompress.planning.plan": ("Plan",),
    "hfcompress.folders.record": ("Record",),
    "hfcompress.runs.result": ("Result",),
    "hfcompress.runs.run": ("Run",),
    "hfcompress.stage": ("Artifact", "Stage"),
    "hfcompress.architectures.models": ("load",),
}


def __getattr__(name: str) -> Any:
    """Import a public name (PEP 562).

    Raises:
        AttributeError: there is no such name.
    """
    if name == "__version__":
        value: Any = package_version()
    elif module := next((module for module, names in MODULES.items() if name in names), None):
        value = getattr(import_module(module), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def package_version() -> str:
    """Return the installed distribution's version; in a checkout that is not installed, the one of pyproject.toml."""
    from importlib import metadata
    from pathlib import Path

    try:
        return metadata.version("hfcompress")
    except metadata.PackageNotFoundError:
        import tomllib

        with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
            return str(tomllib.load(file)["project"]["version"])
