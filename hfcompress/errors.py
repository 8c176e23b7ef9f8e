"""UserError: "the input is wrong, and here is what to do"; what raises it for numbers and missing packages."""

import math
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

INTERRUPTED_LINE = "hfcompress: interrupted; run the same command again to go on"
MOST_THREADS = 1024  # runtimes hang when they are to start a hundred thousand


class Reason:
    """A sentence that names options by their fields; whoever shows it spells them.

    `Reason("must divide {hidden_size} {size}", size=96)`: a name in braces that no value is given for is an option: a
    field of the stage that refuses (`{hidden_size}`), an option of another group (`{budget.disk_mb}`) or one of the
    recipe's own (`{.base}`). `{heads:no}` is the option given as no. Text that comes from a user or a file is always
    a value, never a part of the template; a value may be a Reason itself.
    """

    def __init__(self, template: str, **values: object) -> None:
        self.template, self.values = template, values

    def text(self, option: "Callable[[str, object], str]") -> str:
        """Return the sentence.

        Args:
            option: returns how a field is spelled, with the value that it has: None where none is shown.
        """
        return _Sentence(option).vformat(self.template, (), self.values)

    def __str__(self) -> str:
        return self.text(python_option)

    def __repr__(self) -> str:
        return f"Reason({self.template!r}, {self.values!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reason) and (self.template, self.values) == (other.template, other.values)

    def __hash__(self) -> int:
        return hash(self.template)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reason, (self.template, self.values)


def _reason(template: str, values: dict[str, object]) -> Reason:
    return Reason(template, **values)


class _Sentence(string.Formatter):
    def __init__(self, option: "Callable[[str, object], str]") -> None:
        self.option = option

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if field_name in kwargs:
            value = kwargs[field_name]
            return (value.text(self.option) if isinstance(value, Reason) else value), field_name
        return _Option(field_name, self.option), field_name


class _Option:
    """An option in a sentence, which a format of `no` gives as no."""

    def __init__(self, name: str, option: "Callable[[str, object], str]") -> None:
        self.name, self.option = name, option

    def __format__(self, spec: str) -> str:
        return self.option(self.name, False if spec == "no" else None)


def python_option(field: str, value: object = None, group: str | None = None) -> str:
    """Return an option as a Python caller knows it: group.field, without dashes, and its value.

    Args:
        field: see `Reason`.
        value: what is shown behind it; None for nothing.
        group: the recipe's parameter that the field belongs to; None where it is not known.
    """
    name = full_name(field, group)
    return name if value is None else f"{name} {shown(value)}"


def command_line_option(field: str, value: object = None, group: str | None = None) -> str:
    """Return an option as it is typed: --group.some-field and its value; see `python_option`."""
    path, dot, last = full_name(field, group).replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return f"--{path}{dot}{'' if value else 'no-'}{last}"
    return f"--{path}{dot}{last}" + ("" if value is None else f" {shown(value)}")


def full_name(field: str, group: str | None) -> str:
    """Return a field with the group that it is of: its own, else the one given."""
    return field.removeprefix(".") if "." in field or not group else f"{group}.{field}"


def shown(value: object) -> str:
    """Return a value as it is typed: 0.1, not 0.10000000000000001; the parts of a tuple with blanks between."""
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(shown, value)) if isinstance(value, tuple) else str(value)


class UserError(Exception):
    """A mistake that the user can mend. The command line prints its text as one line and exits with code 2.

    The text says what is wrong, where, and what to do; a `Reason` where it names options. Everything else that is
    raised is a defect of this project and keeps its traceback.
    """

    group: str | None = None
    """The recipe's parameter that holds the stage which raised this; whoever knows it sets it."""

    def text(self, option: "Callable[[str, object], str]") -> str:
        """Return the text with options as `option` spells them; see `Reason.text`."""
        said = self.args[0] if self.args else ""
        return said.text(option) if isinstance(said, Reason) else str(said)

    def __str__(self) -> str:
        return self.text(partial(python_option, group=self.group))


class OptionError(UserError):
    """An option that is refused: `field`, and the `reason`. The command line names it as the user typed it."""

    def __init__(
        self, field: str, reason: "str | Reason", value: object = None, *, group: str | None = None, **values: object
    ) -> None:
        """Refuse an option.

        Args:
            field: of the options that refuse it; see `Reason` for those of others.
            reason: a sentence, or its template where it names other options.
            value: what was given, where that helps.
            group: the recipe's parameter that holds the options; None where that is not known here.
            values: of the template.
        """
        super().__init__(Reason(reason, **values) if isinstance(reason, str) else reason)
        self.field, self.value, self.group = field, value, group

    @property
    def reason(self) -> str:
        return str(self.args[0])

    def text(self, option: "Callable[[str, object], str]") -> str:
        return f"{option(self.field, self.value)}: {super().text(option)}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.args[0], self.value), {"group": self.group}


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

    Raises:
        OptionError: one of them is refused.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not least <= value < math.inf:
            whole = isinstance(value, int)  # as it was typed, and perhaps beyond every float
            wanted = f"at least {least:g}" if whole or math.isfinite(value) else "a finite number"
            raise OptionError(name, f"must be {wanted}", value)


def require_numbers(options: "DataclassInstance", *signed: str) -> None:
    """The same for every number among `options` that is not `signed`: none of them may be negative.

    Raises:
        OptionError: see `require`.
    """
    names = [f.name for f in fields(options) if f.name not in signed]
    require(options, 0, *(name for name in names if isinstance(getattr(options, name), int | float)))


def require_threads(options: "DataclassInstance") -> None:
    """Refuse `threads` below 1, and more than any machine would use.

    Raises:
        OptionError: see `require`.
    """
    require(options, 1, "threads")
    threads = options.threads  # type: ignore[attr-defined]
    if threads > MOST_THREADS:
        raise OptionError("threads", f"must be at most {MOST_THREADS}", threads)


def require_counts(least: int = 1, **counts: int | None) -> None:
    """Refuse arguments (by name) below `least`, and more threads than any machine would use; None was not given.

    Raises:
        OptionError: one of them is refused.
    """
    for name, value in counts.items():
        if value is not None and value < least:
            raise OptionError(f".{name}", f"must be at least {least}", value)
        if value is not None and name == "threads" and value > MOST_THREADS:
            raise OptionError(".threads", f"must be at most {MOST_THREADS}", value)
