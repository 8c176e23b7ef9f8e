"""UserError: "the input is wrong, and here is what to do"; what raises it for numbers and missing packages."""

import math
import sys
from dataclasses import fields
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

INTERRUPTED_LINE = "hfcompress: interrupted; run the same command again to go on"
MOST_THREADS = 1024  # runtimes hang when they are to start a hundred thousand


class UserError(Exception):
    """A mistake that the user can mend. The command line prints its text as one line and exits with code 2.

    The text says what is wrong, where, and what to do. Everything else that is raised is a defect of this project
    and keeps its traceback.
    """


class CheckFailed(UserError, RuntimeError):
    """A stage's own check of what it made failed: the text has the figures, and the option that may change them."""


class UnknownShape(UserError):
    """A model whose size cannot be told from its config: it can be run and measured, but not planned."""


EXTRAS = {  # package -> the extra of pyproject.toml that installs it, and what needs it
    "PIL": ("images", "a model of images"),
    "auto_round": ("auto-round", "AutoRound's own algorithm"),
    "compressed_tensors": ("language", "exporting 4-bit weights for transformers"),
    "detect_secrets": ("push", "pushing a run"),
    "gguf": ("gguf", "a GGUF file"),
    "llama_cpp": ("llama-cpp", "running a GGUF file"),
    "lm_eval": ("lm-eval", "hfcompress eval"),
    "matplotlib": ("plots", "drawing a report's plots"),
    "neural_compressor": ("neural-compressor", "an algorithm of Intel Neural Compressor"),
    "onnxruntime_genai": ("language", "running a causal LM's ONNX graph"),
    "optimum.onnxruntime": ("optimum", "quantizing with Optimum"),
    "rouge_score": ("language", "ROUGE of summaries"),
    "starlette": ("serve", "--serve"),
    "tensorly": ("factorize", "factoring weights"),
    "torch_pruning": ("prune", "structured pruning"),
    "uvicorn": ("serve", "--serve"),
}


def has(package: str) -> bool:
    """Return whether a package can be imported; of a dotted name its parents are."""
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def needs(package: str, reason: str = "") -> None:
    """Refuse what a package of an extra is needed for where it is not installed; it is not imported.

    Args:
        package: one of EXTRAS.
        reason: why a package that is installed cannot be used all the same; "" where that is not known.

    Raises:
        UserError: naming the extra.
    """
    extra, purpose = EXTRAS[package]
    install = f'pip install "hfcompress[{extra}]"'
    if not has(package):
        raise UserError(f"{purpose} needs {package}, which is not installed: {install}")
    if reason:
        raise UserError(f"{purpose} needs {package}, which does not load ({reason}): {install}")


def needs_libraries(distributions: tuple[str, ...]) -> None:
    """Refuse a stage before long work where one of its `libraries` belongs to an extra and is not installed.

    Raises:
        UserError: see `needs`.
    """
    for package in (name.replace("-", "_") for name in distributions):
        if package in EXTRAS:
            needs(package)


def require(options: "DataclassInstance", least: float, *names: str) -> None:
    """Refuse numbers below `least`, infinite ones and nan; an option that is None was not given.

    The command line puts the name that the recipe has for these options in place of the *.

    Raises:
        UserError: one of them is refused.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not least <= value < math.inf:
            whole = isinstance(value, int)  # as it was typed, and perhaps beyond every float
            wanted = f"at least {least:g}" if whole or math.isfinite(value) else "a finite number"
            raise UserError(f"--*.{name.replace('_', '-')} {value if whole else f'{value:g}'}: must be {wanted}")


def require_numbers(options: "DataclassInstance", *signed: str) -> None:
    """The same for every number among `options` that is not `signed`: none of them may be negative.

    Raises:
        UserError: see `require`.
    """
    names = [f.name for f in fields(options) if f.name not in signed]
    require(options, 0, *(name for name in names if isinstance(getattr(options, name), int | float)))


def require_threads(options: "DataclassInstance") -> None:
    """Refuse `threads` below 1, and more than any machine would use.

    Raises:
        UserError: see `require`.
    """
    require(options, 1, "threads")
    threads = options.threads  # type: ignore[attr-defined]
    if threads > MOST_THREADS:
        raise UserError(f"--*.threads {threads}: must be at most {MOST_THREADS}")
