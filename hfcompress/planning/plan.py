"""Size, memory and latency of every model of a recipe, predicted from shapes before any weight is touched."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from hfcompress.architectures.click_spec import ClickShape
from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.kinds import is_decoder, is_image_model
from hfcompress.architectures.patched_encoders import edited
from hfcompress.architectures.patches import read_edits
from hfcompress.architectures.text_inputs import LONGEST, usable_positions
from hfcompress.budget import PREDICTED_LIMITS, Budget
from hfcompress.errors import OptionError, UserError, needs, needs_libraries
from hfcompress.folders import fetch as hub
from hfcompress.folders.guard import check_type, read_config
from hfcompress.folders.weights import require_unquantized, require_weights_or_none
from hfcompress.planning.clicks import compare_clicks
from hfcompress.planning.decoders import compare_decoders
from hfcompress.planning.devices.memory import HERE, known_device
from hfcompress.planning.encoders import compare_encoders
from hfcompress.planning.image_spec import ImageShape
from hfcompress.planning.images import compare_images
from hfcompress.stage import Shown, Stage, libraries_of, parameter_of, require_shown, snake_case
from hfcompress.tasks.vocabulary import tokenizer_bytes

if TYPE_CHECKING:
    from hfcompress.evaluation.measure import Measure

PREDICTED = ("parameters", *PREDICTED_LIMITS, "sram_kb", "flash_kb")


@dataclass(frozen=True)
class Planned:
    """What a stage would make."""

    name: str
    stage: str
    shape: Any  # a Shape, or what stands for one of another kind of model


@dataclass(frozen=True)
class Compared:
    """What a recipe compares."""

    models: tuple[Planned, ...]
    candidate: Planned
    reference: Planned
    latency_reference: Planned
    """What `latency_ratio` is counted from."""
    budget: Budget
    measure: Any
    task: Any


# The class of a shape -> what fills a plan's rows, verdicts and advice.
COMPARED: "dict[type, Callable[[Plan, Compared], None]]" = {
    Shape: compare_encoders,
    LanguageShape: compare_decoders,
    ClickShape: compare_clicks,
    ImageShape: compare_images,
}
PLANNED_FOR_DEVICES = (LanguageShape,)  # others for this machine alone


class Plan:
    """Takes a Run's place in a recipe: the same calls, shapes instead of folders, nothing written."""

    def __init__(self, on: str = HERE, fetches: bool = False, options: dict[str, Any] | None = None) -> None:
        """Predict for a device of hfcompress/planning/devices/memory.py; "here" is this machine.

        Args:
            fetches: whether a model of the Hub may be fetched for its shape; without, only the cache is asked.
            options: the recipe's, for the names of refused ones.

        Raises:
            UserError: no such device.
        """
        self.on, self.fetches, self.options = known_device(on), fetches, options or {}
        self.memory: dict[str, Any] | None = None
        self.rows: list[dict[str, Any]] = []
        self.verdicts: list[dict[str, Any]] = []
        self.advice: list[str] = []

    @property
    def predictions(self) -> dict[str, dict[str, Any]]:
        """Name -> what `prediction` says of that model; the most that can be left of a pruned one is no prediction."""
        return {
            row["name"]: {} if "at_least" in row else {name: row[name] for name in PREDICTED if name in row}
            for row in self.rows
        }

    @property
    def ok(self) -> bool:
        """Whether no predicted limit fails and the device has the memory; drops of accuracy cannot be predicted."""
        fits = self.memory is None or self.memory["fits"]
        return bool(fits) and all(verdict["ok"] is not False for verdict in self.verdicts)

    def base(self, name: str, shape: "Shape | LanguageShape | ImageShape | None" = None) -> Planned:
        """A model by name: a known shape, or the config.json of a folder or package.

        Raises:
            UserError: the shape is not known without the network, or the folder's config.json is not a BERT's.
        """
        if shape is None:
            on_hub = "/" in name and not Path(name).expanduser().is_dir() and not name.startswith((".", "/", "~"))
            kept = hub.cached(name, "model") if on_hub and not self.fetches else None
            if on_hub and not self.fetches and not (kept and (kept / "config.json").is_file()):
                raise UserError(
                    f"the shape of {name} is not known here, and the Hub's cache does not have it; plan with a folder "
                    f"that holds its config.json, or first hf download {name.partition('@')[0]} config.json"
                )
            folder = kept or hub.pull(name)
            config = read_config(folder) if (folder / "config.json").is_file() else {}  # which `read_shape` misses
            if config:
                require_unquantized(folder, config)
                require_weights_or_none(folder)
            if is_image_model(config):
                return Planned(name, "base", ImageShape.read(folder))
            if is_decoder(config):
                return Planned(name, "base", LanguageShape.read(folder))
            shape = edited(read_shape(folder / "config.json"), read_edits(folder))
            shape = replace(shape, positions=usable_positions(config) or LONGEST)
            if (folder / "tokenizer.json").is_file():
                shape = replace(shape, tokenizer_folder=folder, tokenizer_bytes=saved_tokenizer_bytes(folder))
        return Planned(name, "base", shape)

    def __call__(self, stage: Stage, *, name: str | None = None, **inputs: Any) -> Planned:
        needs_libraries(libraries_of(stage))
        for value in inputs.values():
            if isinstance(value, Planned) and value.stage == "base":
                require_kind(value, inputs.get("task"))
                require_length(value, inputs.get("task"))
        shapes = {key: value.shape if isinstance(value, Planned) else value for key, value in inputs.items()}
        for package in {name for shape in shapes.values() for name in getattr(shape, "packages", ())}:
            needs(package)
        try:
            shape = stage.predict(**shapes)
        except UserError as error:
            error.group = error.group or parameter_of(stage, self.options)
            raise
        return Planned(name or snake_case(type(stage).__name__), type(stage).__name__, shape)

    def compare(
        self,
        *models: Planned,
        reference: Planned,
        candidate: Planned,
        budget: Budget,
        task: Any,
        measure: "Measure",
        latency_reference: Planned | None = None,
        **shown: Unpack[Shown],
    ) -> dict[str, Any]:
        """Predict all models, and hold the candidate's predictions against the budget; see `Run.compare`."""
        require_shown(shown)
        budget.require_drops(task)
        if self.on != HERE and type(candidate.shape) not in PLANNED_FOR_DEVICES:
            raise OptionError(".device", "only causal LMs can be planned for another device; leave it out", self.on)
        asked = Compared(models, candidate, reference, latency_reference or reference, budget, measure, task)
        COMPARED[type(candidate.shape)](self, asked)
        return {"ok": self.ok}

    def __str__(self) -> str:
        return render(self)

    def as_dict(self) -> dict[str, Any]:
        found = {"models": self.rows, "verdicts": self.verdicts, "advice": self.advice, "ok": self.ok}
        return found if self.memory is None else found | {"memory": self.memory}


def require_kind(base: Planned, task: Any) -> None:
    """Refuse a base model that is of another kind than what the task asks of it.

    Raises:
        UserError: with both kinds.
    """
    found = getattr(base.shape, "described_as", None)  # of a shape that is not known nothing is said
    wanted = getattr(task, "takes", None)
    if found is not None and wanted is not None and found != wanted:
        reason = "it is {found}, and this recipe takes {wanted}"
        raise OptionError(".base", reason, base.name, found=found, wanted=wanted)


def require_length(base: Planned, task: Any) -> None:
    """Refuse texts that are cut to more tokens than a base or a teacher has positions for.

    Raises:
        UserError: with both numbers.
    """
    length, positions = getattr(task, "max_length", 0), getattr(base.shape, "longest_text", None)
    if positions is not None and length > positions:
        reason = "{name} has {positions} positions; give no more than that"
        raise OptionError("task.max_length", reason, length, name=base.name, positions=positions)


def read_shape(file: Path) -> Shape:
    """The shape that a config.json tells.

    Raises:
        UserError: there is no such file, it is damaged, or it lacks a field that a BERT's has.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the folder of a model")
    config = read_config(file.parent)
    check_type(file.parent, config)
    try:
        labels = len(config.get("id2label") or {}) or int(config.get("num_labels") or 2)
        return Shape.from_config(config, labels)
    except KeyError as error:
        raise UserError(
            f"{file} has no {error.args[0]}: what can be planned are models of BERT's shape, causal LMs and image "
            "classifiers that transformers knows"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}); fetch or make the model again") from None


def saved_tokenizer_bytes(folder: Path) -> int:
    """The tokenizer's files as `save_pretrained` writes them: tokenizer.json indented, however it lies in `folder`."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    indented = Tokenizer.from_file(str(file)).to_str(pretty=True)
    return tokenizer_bytes(folder) - file.stat().st_size + len(indented.encode("utf-8"))


def render(plan: Plan) -> str:
    """The plan as text: a row a model, a row a limit, and advice."""

    def cell(value: float | None, form: str, at_most: bool = False) -> str:
        return "–" if value is None else ("≤ " if at_most else "") + format(value, form)

    lines = [f"{'model':22} {'stage':21} {'parameters':>12} {'disk MB':>9} {'RAM MB':>8} {'ms':>8}"]
    lines += [
        f"{row['name']:22} {row['stage']:21} {cell(row['parameters'], ',', 'at_least' in row):>12} "
        f"{cell(row['disk_mb'], '.1f' if row['disk_mb'] >= 10 else '.2f', 'at_least' in row):>9} "
        f"{cell(row['ram_mb'], '.0f', 'at_least' in row):>8} {cell(row['latency_ms'], '.2f', 'at_least' in row):>8}"
        for row in plan.rows
    ]
    lines.append("")
    for verdict in plan.verdicts:
        answer = {True: "holds", False: "FAILS", None: "cannot be predicted: run it"}[verdict["ok"]]
        bounded = "at_least" in verdict
        if verdict["ok"] is None and bounded:
            answer = "is decided by what pruning leaves: run it"
        predicted = cell(verdict["predicted"], ".3g", bounded)
        lines.append(f"{verdict['limit']:16} allowed {verdict['allowed']:<8g} predicted {predicted:8} {answer}")
    return "\n".join([*lines, "", *plan.advice] if plan.advice else lines)
