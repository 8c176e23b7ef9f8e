"""Size, memory and latency of every model of a recipe, predicted from shapes before any weight is touched."""

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.architectures.click_spec import ClickShape
from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.architectures.encoder_spec import (
    Shape,
    embedding_bytes,
    embedding_parameters,
    embedding_rows,
    factor_bytes,
    linear_parameters,
    other_parameters,
    parameters,
)
from hfcompress.architectures.patched_encoders import edited
from hfcompress.architectures.patches import read_edits
from hfcompress.architectures.text_inputs import LONGEST, usable_positions
from hfcompress.budget import PREDICTED_LIMITS, Budget, predicted_verdicts
from hfcompress.errors import OptionError, UserError, needs, needs_libraries
from hfcompress.folders import fetch as hub
from hfcompress.folders.guard import check_type, read_config
from hfcompress.folders.weights import require_unquantized
from hfcompress.planning.devices.memory import HERE, device, known_device
from hfcompress.planning.image_spec import ImageShape, is_image_model
from hfcompress.planning.images import compare_images
from hfcompress.planning.machine import Machine
from hfcompress.stage import Stage, libraries_of, parameter_of, snake_case
from hfcompress.tasks.vocabulary import tokenizer_bytes

if TYPE_CHECKING:
    from hfcompress.evaluation.measure import Measure

# Bytes that are no weights, measured on exported files: graph nodes and names (tests/planning/test_plan.py: to 3%).
CONFIG_BYTES = 1_500
TOKENIZER_BYTES = 945_000  # bert-base-uncased: vocab.txt 232 kB, tokenizer.json 711 kB
TENSOR_HEADER = 110
GRAPH_BYTES, LAYER_BYTES = 13_000, 20_600
QDQ_GRAPH_BYTES, QDQ_LAYER_BYTES = 4_700, 9_600
PREDICTED = ("parameters", *PREDICTED_LIMITS, "sram_kb", "flash_kb")
RATIOS = (4, 2)  # intermediate size over hidden size, of the students that are tried
SHOWN_STUDENTS = 4
# Peak memory of a serving process, fitted to measured ones (within 8% of BERT-base and MiniLM, fp32 and int8).
RUNTIME_MB = 70.2  # onnxruntime, tokenizers and numpy, imported, with a tokenizer loaded
LOADED_COPIES = 1.65  # of the file: while it is parsed, beside the weights made from it
SCORE_COPIES = 4  # of one layer's attention scores


def disk_bytes(shape: Shape) -> int:
    """All files that must be shipped: weights, graph, config and tokenizer."""
    classifier = shape.hidden_size * shape.num_labels  # stays in fp32
    weights = (
        (linear_parameters(shape) - classifier) * shape.weight_bits
        + (embedding_parameters(shape) - (shape.word_weights or 0)) * shape.embedding_bits
    ) / 8 + 4 * (classifier + other_parameters(shape) + (shape.word_weights or 0))
    files = CONFIG_BYTES + (TOKENIZER_BYTES if shape.tokenizer_bytes is None else shape.tokenizer_bytes)
    if shape.format != "onnx":
        return round(weights + files + TENSOR_HEADER * (16 * shape.num_hidden_layers + 9))
    graph = GRAPH_BYTES + LAYER_BYTES * shape.num_hidden_layers
    if shape.weight_bits < 32:  # a scale and a zero point for each row
        rows = shape.num_hidden_layers * (5 * shape.hidden_size + shape.intermediate_size) + shape.hidden_size
        graph += QDQ_GRAPH_BYTES + QDQ_LAYER_BYTES * shape.num_hidden_layers + 5 * rows
        graph += 4 * embedding_rows(shape)
    return round(weights + files + graph + factor_bytes(shape))


def ram_mb(shape: Shape, batch: int, tokens: int) -> float:
    """Peak memory of a process that serves the ONNX file with onnxruntime and tokenizers alone, in MB."""
    scores = 4 * batch * shape.num_attention_heads * tokens**2
    return RUNTIME_MB + (LOADED_COPIES * disk_bytes(shape) + SCORE_COPIES * scores) / 1e6


def latency_ms(shape: Shape, machine: Machine, batch: int, tokens: int) -> float:
    """Milliseconds of one request [batch, tokens] in onnxruntime on this machine: its embeddings and its layers."""
    sizes = shape.hidden_size, shape.num_attention_heads, shape.intermediate_size
    layer = machine.layer_ms(batch, tokens, *sizes, shape.weight_bits, shape.linear_share)
    return machine.embeddings_ms(batch, tokens, shape.hidden_size) + shape.num_hidden_layers * layer


@dataclass(frozen=True)
class Serving:
    """The request that is predicted, [batch, tokens] on a machine, and what `latency_ratio` is counted from."""

    machine: Machine
    batch: int
    tokens: int
    reference_ms: float | None = None
    reference_embeddings: int | None = None
    """Their bytes, which `embedding_ratio` is counted from."""

    def latency_ms(self, shape: Shape) -> float | None:
        """None for a model that onnxruntime does not serve."""
        return latency_ms(shape, self.machine, self.batch, self.tokens) if shape.format == "onnx" else None


def prediction(shape: Shape, serving: Serving) -> dict[str, Any]:
    """parameters, disk_mb, ram_mb, latency_ms and the ratios; all of time and memory None for a model not in ONNX."""
    milliseconds = serving.latency_ms(shape)
    return {
        "parameters": parameters(shape),
        "disk_mb": disk_bytes(shape) / 1e6,
        "ram_mb": ram_mb(shape, serving.batch, serving.tokens) if shape.format == "onnx" else None,
        "latency_ms": milliseconds,
        "latency_ratio": milliseconds / serving.reference_ms if milliseconds and serving.reference_ms else None,
        "embedding_ratio": embedding_bytes(shape) / serving.reference_embeddings
        if serving.reference_embeddings
        else None,
    }


@dataclass(frozen=True)
class Planned:
    """What a stage would make."""

    name: str
    stage: str
    shape: Any  # a Shape, or what stands for one of another kind of model


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
            if (folder / "config.json").is_file():
                require_unquantized(folder, read_config(folder))
            if is_image_model(folder / "config.json"):
                return Planned(name, "base", ImageShape.read(folder))
            if not is_bert(folder / "config.json"):
                return Planned(name, "base", LanguageShape.read(folder))
            shape = edited(read_shape(folder / "config.json"), read_edits(folder))
            shape = replace(shape, positions=usable_positions(read_config(folder)) or LONGEST)
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
        if any(isinstance(shape, ImageShape) for shape in shapes.values()):
            needs("PIL")
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
        deliver: tuple[Planned, ...] = (),
        base: str | None = None,
        notes: tuple[str, ...] = (),
        allotment: Planned | None = None,
        summaries: Planned | None = None,
        rollout: Planned | None = None,
    ) -> dict[str, Any]:
        """Predict all models, and hold the candidate's predictions against the budget."""
        budget.require_drops(task)
        if isinstance(candidate.shape, LanguageShape):
            return self._compare_language(models, candidate, budget, measure)
        if self.on != HERE:
            raise OptionError(".device", "only causal LMs can be planned for another device; leave it out", self.on)
        if isinstance(candidate.shape, ClickShape):
            return self._compare_clicks(models, candidate, latency_reference or reference, budget, measure, task)
        if isinstance(candidate.shape, ImageShape):
            return compare_images(self, models, candidate, latency_reference or reference, budget, measure)
        require_positions(models, measure.sequence_length)
        serving = Serving(Machine(measure.threads), measure.batch, measure.sequence_length)
        serving = replace(
            serving,
            reference_ms=serving.latency_ms((latency_reference or reference).shape),
            reference_embeddings=round(embedding_bytes(reference.shape)),
        )
        self.rows = [
            {"name": model.name, "stage": model.stage, "format": model.shape.format}
            | prediction(model.shape, serving)
            | {"shape": dataclasses.asdict(replace(model.shape, tokenizer_folder=None))}
            for model in models
        ]
        self.verdicts = predicted_verdicts(budget, candidate.name, self.predictions[candidate.name])
        self.advice = advice(reference.shape, candidate.shape, budget, serving, self.ok)
        return {"ok": self.ok}

    def _compare_language(
        self, models: tuple[Planned, ...], candidate: Planned, budget: Budget, measure: Any
    ) -> dict[str, Any]:
        """The same for causal LMs: bytes from the shape, time from the device's bandwidth and rate."""
        from hfcompress.planning import decoders

        on = device(self.on, measure.threads)
        self.rows = [
            {"name": model.name, "stage": model.stage, "format": "language"}
            | decoders.prediction(model.shape, on, measure.context)
            | {"shape": dataclasses.asdict(replace(model.shape, config=None, folder=None))}
            for model in models
        ]
        self.verdicts = predicted_verdicts(budget, candidate.name, self.predictions[candidate.name])
        self.memory = decoders.memory(candidate.shape, on, measure.context)
        self.advice = decoders.lines(candidate.name, self.memory)
        return {"ok": self.ok}

    def _compare_clicks(
        self,
        models: tuple[Planned, ...],
        candidate: Planned,
        reference: Planned,
        budget: Budget,
        measure: Any,
        task: Any,
    ) -> dict[str, Any]:
        """The same for click models: bytes and memory from the shape, time from the same graph with fewer rows."""
        from hfcompress.planning.click_latency import slates_ms

        graphs = {model.name: model.shape.config for model in models if model.shape.format == "onnx"}
        times = slates_ms(graphs, task.slate, measure.threads)
        self.rows = [
            {"name": model.name, "stage": model.stage, "format": model.shape.format}
            | model.shape.predicted(times.get(model.name), times.get(reference.name))
            | {"shape": model.shape.config}
            for model in models
        ]
        self.verdicts = predicted_verdicts(budget, candidate.name, self.predictions[candidate.name])
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
    length = getattr(task, "max_length", 0)
    if isinstance(base.shape, Shape) and length > base.shape.longest_text:
        reason = "{name} has {positions} positions; give no more than that"
        raise OptionError("task.max_length", reason, length, name=base.name, positions=base.shape.longest_text)


def is_bert(file: Path) -> bool:
    """Whether a config.json is of an encoder; a missing one is left to `read_shape`, which says so."""
    from hfcompress.architectures.decoders import MODEL_TYPES

    if not file.is_file():
        return True
    found = read_config(file.parent)
    generates = any(name.endswith(("CausalLM", "LMHeadModel")) for name in found.get("architectures") or [])
    return found.get("model_type") not in MODEL_TYPES and not generates


def require_positions(models: tuple[Planned, ...], sequence_length: int) -> None:
    """Refuse requests that the text classifiers could not read, before one is timed.

    Raises:
        UserError: a model has fewer positions.
    """
    for model in models:
        if sequence_length > model.shape.longest_text:
            raise OptionError(
                "measure.sequence_length",
                "{name} has {positions} positions; give no more than that",
                sequence_length,
                name=model.name,
                positions=model.shape.longest_text,
            )


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


def advice(teacher: Shape, candidate: Shape, budget: Budget, serving: Serving, ok: bool) -> list[str]:
    """What no number of bits can reach, and which students keep every limit that can be predicted."""
    eight, four = (parameters(teacher) * bits / 8e6 for bits in (8, 4))
    lines = []
    if budget.disk_mb is not None and four > budget.disk_mb:
        lines.append(
            f"The teacher's own shape is {eight:.0f} MB in int8 and {four:.0f} MB in 4 bits: no number of bits meets "
            f"{budget.disk_mb:g} MB, only a structurally smaller student does."
        )
    if ok and not lines:
        return []
    students = student_shapes(teacher, candidate, budget, serving)
    if students:
        return [*lines, "Students that keep every predictable limit:", *(describe(s, serving) for s in students)]
    smallest = candidate_of(teacher, candidate, layers=1, heads=1, ratio=RATIOS[-1])
    embeddings_mb = embedding_parameters(smallest) * smallest.embedding_bits / 8e6
    return [
        *lines,
        "No student of the teacher's kind meets the budget: raise a limit, or trim the vocabulary (--trim-vocabulary, "
        f"--trim.vocabulary-size). The smallest, of which {embeddings_mb:.1f} MB are embeddings:",
        describe(smallest, serving),
    ]


def student_shapes(teacher: Shape, candidate: Shape, budget: Budget, serving: Serving) -> list[Shape]:
    """The largest students, in the candidate's format and bits, that keep every predictable limit.

    Searched over heads (with the teacher's head size, as distillation and movement pruning make them),
    the feed-forward's width as a multiple of the hidden size, and layers; of each width the deepest that fits.
    """
    fitting = []
    for heads in range(teacher.num_attention_heads, 0, -max(1, teacher.num_attention_heads // 6)):
        for ratio in RATIOS:
            for layers in range(teacher.num_hidden_layers, 0, -max(1, teacher.num_hidden_layers // 8)):
                shape = candidate_of(teacher, candidate, layers=layers, heads=heads, ratio=ratio)
                if keeps(shape, budget, serving):
                    fitting.append(shape)
                    break
    return sorted(fitting, key=parameters, reverse=True)[:SHOWN_STUDENTS]


def candidate_of(teacher: Shape, candidate: Shape, *, layers: int, heads: int, ratio: int) -> Shape:
    """The candidate, cut from the teacher to this shape."""
    hidden = heads * (teacher.hidden_size // teacher.num_attention_heads)
    return replace(
        candidate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_size=hidden,
        intermediate_size=min(ratio * hidden, teacher.intermediate_size),
    )


def keeps(shape: Shape, budget: Budget, serving: Serving) -> bool:
    """Whether a shape keeps every limit that can be predicted; timed only where it is small enough and time counts."""
    if budget.disk_mb is not None and disk_bytes(shape) / 1e6 > budget.disk_mb:
        return False
    if budget.ram_mb is not None and ram_mb(shape, serving.batch, serving.tokens) > budget.ram_mb:
        return False
    if budget.latency_ms is None and budget.latency_ratio is None:
        return True
    return all(row["ok"] is not False for row in predicted_verdicts(budget, "", prediction(shape, serving)))


def describe(shape: Shape, serving: Serving) -> str:
    """A student in one line."""
    milliseconds = serving.latency_ms(shape)
    time = "" if milliseconds is None else f", {milliseconds:.1f} ms"
    return (
        f"  {shape.num_hidden_layers} layers, hidden size {shape.hidden_size} ({shape.num_attention_heads} heads), "
        f"intermediate size {shape.intermediate_size}: {disk_bytes(shape) / 1e6:.1f} MB{time}"
    )


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
