"""Size, memory and latency of every model of a recipe, predicted from shapes before any weight is touched."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress import hub
from hfcompress.budget import Budget
from hfcompress.errors import UserError
from hfcompress.machine import Machine
from hfcompress.shape import Shape
from hfcompress.stage import Stage
from hfcompress.vocabulary import tokenizer_bytes

if TYPE_CHECKING:
    from hfcompress.stages.measure import Measure

# Bytes that are no weights, measured on exported files: graph nodes and names (tests/test_plan.py holds them to 3%).
CONFIG_BYTES = 1_500
TOKENIZER_BYTES = 945_000  # bert-base-uncased: vocab.txt 232 kB, tokenizer.json 711 kB
TENSOR_HEADER = 110
GRAPH_BYTES, LAYER_BYTES = 12_000, 12_500
QDQ_LAYER_BYTES = 9_000
RUNTIME_MB = 62.0  # onnxruntime, tokenizers and numpy, imported
LOADED_COPIES = 2.0  # the file while it is parsed, and the weights made from it


def linear_parameters(shape: Shape) -> int:
    """Weights of the Linear layers, biases left out."""
    h, i = shape.hidden_size, shape.intermediate_size
    return shape.num_hidden_layers * (4 * h * h + 2 * h * i) + h * h + h * shape.num_labels


def embedding_parameters(shape: Shape) -> int:
    return (shape.vocab_size + shape.max_position_embeddings + shape.type_vocab_size) * shape.hidden_size


def other_parameters(shape: Shape) -> int:
    """Biases and LayerNorms."""
    h, i = shape.hidden_size, shape.intermediate_size
    return 2 * h + shape.num_hidden_layers * (4 * h + i + h + 4 * h) + h + shape.num_labels


def parameters(shape: Shape) -> int:
    """All parameters of a BertForSequenceClassification of this shape."""
    return linear_parameters(shape) + embedding_parameters(shape) + other_parameters(shape)


def disk_bytes(shape: Shape) -> int:
    """All files that must be shipped: weights, graph, config and tokenizer."""
    classifier = shape.hidden_size * shape.num_labels  # stays in fp32
    weights = (
        (linear_parameters(shape) - classifier) * shape.weight_bits
        + embedding_parameters(shape) * shape.embedding_bits
    ) / 8 + 4 * (classifier + other_parameters(shape))
    files = CONFIG_BYTES + (TOKENIZER_BYTES if shape.tokenizer_bytes is None else shape.tokenizer_bytes)
    if shape.format == "transformers":
        return round(weights + files + TENSOR_HEADER * (16 * shape.num_hidden_layers + 9))
    graph = GRAPH_BYTES + LAYER_BYTES * shape.num_hidden_layers
    if shape.weight_bits < 32:  # a scale and a zero point for each row
        rows = shape.num_hidden_layers * (5 * shape.hidden_size + shape.intermediate_size) + shape.hidden_size
        graph += QDQ_LAYER_BYTES * shape.num_hidden_layers + 5 * rows
        graph += 4 * (shape.vocab_size + shape.max_position_embeddings + shape.type_vocab_size)
    return round(weights + files + graph)


def ram_mb(shape: Shape) -> float:
    """Peak memory of a process that serves the ONNX file with onnxruntime and tokenizers alone, in MB."""
    return RUNTIME_MB + LOADED_COPIES * disk_bytes(shape) / 1e6


def latency_ms(shape: Shape, machine: Machine, tokens: int) -> float:
    """Milliseconds of one request in onnxruntime on this machine: the sum of its timed parts."""
    h, i, bits = shape.hidden_size, shape.intermediate_size, min(shape.weight_bits, 32)
    layer = (
        4 * machine.linear_ms(tokens, h, h, bits)
        + machine.linear_ms(tokens, h, i, bits)
        + machine.linear_ms(tokens, i, h, bits)
        + machine.attention_ms(tokens, shape.num_attention_heads, h // shape.num_attention_heads)
        + machine.gelu_ms(tokens, i)
        + 2 * machine.norm_ms(tokens, h)
    )
    return machine.call_ms + shape.num_hidden_layers * layer + machine.norm_ms(tokens, h)


@dataclass(frozen=True)
class Planned:
    """What a stage would make."""

    name: str
    stage: str
    shape: Shape


class Plan:
    """Takes a Run's place in a recipe: the same calls, shapes instead of folders, nothing written."""

    def __init__(self) -> None:
        self.models: list[Planned] = []
        self.rows: list[dict[str, Any]] = []
        self.verdicts: list[dict[str, Any]] = []
        self.advice: list[str] = []

    @property
    def predictions(self) -> dict[str, dict[str, Any]]:
        """Name -> disk_mb, ram_mb, latency_ms, latency_ratio (None where nothing is predicted)."""
        return {row["name"]: row for row in self.rows}

    @property
    def ok(self) -> bool:
        """Whether no predicted limit fails; drops of accuracy cannot be predicted."""
        return all(verdict["ok"] is not False for verdict in self.verdicts)

    def base(self, name: str, shape: Shape | None = None) -> Planned:
        """A model by name: a known shape, or the config.json of a folder or package.

        Raises:
            UserError: the shape is not known without the network.
        """
        if shape is None:
            if "/" in name and not Path(name).expanduser().is_dir() and not name.startswith((".", "/", "~")):
                raise UserError(
                    f"the shape of {name} is not known here; plan with a folder that holds its config.json"
                )
            folder = hub.pull(name)
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            labels = len(config.get("id2label", {})) or 2
            has_tokenizer = (folder / "tokenizer.json").is_file()
            shape = Shape.from_config(config, labels)
            if has_tokenizer:
                shape = shape.with_(tokenizer_folder=folder, tokenizer_bytes=tokenizer_bytes(folder))
        return Planned(name, "base", shape)

    def __call__(self, stage: Stage, *, name: str | None = None, **inputs: Any) -> Planned:
        from hfcompress.run import snake_case

        shapes = {key: value.shape if isinstance(value, Planned) else value for key, value in inputs.items()}
        made = Planned(name or snake_case(type(stage).__name__), type(stage).__name__, stage.predict(**shapes))
        self.models.append(made)
        return made

    def compare(
        self,
        *models: Planned,
        reference: Planned,
        candidate: Planned,
        budget: Budget,
        task: Any,
        measure: "Measure",
        latency_reference: Planned | None = None,
        notes: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Predict all models, and hold the candidate's predictions against the budget."""
        machine = Machine(measure.threads)
        against = self._row(latency_reference or reference, machine, measure.sequence_length)["latency_ms"]
        for model in models:
            row = self._row(model, machine, measure.sequence_length)
            ratio = row["latency_ms"] / against if row["latency_ms"] and against else None
            self.rows.append(row | {"latency_ratio": ratio})
        found = self.predictions[candidate.name]
        for limit in ("disk_mb", "ram_mb", "latency_ms", "latency_ratio"):
            allowed = getattr(budget, limit)
            if allowed is not None:
                value = found[limit]
                self.verdicts.append(
                    {
                        "limit": limit,
                        "candidate": candidate.name,
                        "allowed": allowed,
                        "predicted": value,
                        "ok": None if value is None else value <= allowed,
                    }
                )
        self.verdicts += [
            {"limit": f"drop:{metric}", "candidate": candidate.name, "allowed": allowed, "predicted": None, "ok": None}
            for metric, allowed in budget.drop.items()
        ]
        if budget.disk_mb is not None:
            self.advice += whole_model_advice(reference.shape, budget.disk_mb)
        if not self.ok:
            self.advice += student_advice(
                reference.shape, candidate.shape, budget, machine, measure.sequence_length, against
            )
        return {"ok": self.ok}

    def _row(self, model: Planned, machine: Machine, tokens: int) -> dict[str, Any]:
        served = model.shape.format == "onnx"
        return {
            "name": model.name,
            "stage": model.stage,
            "format": model.shape.format,
            "parameters": parameters(model.shape),
            "disk_mb": disk_bytes(model.shape) / 1e6,
            "ram_mb": ram_mb(model.shape) if served else None,
            "latency_ms": latency_ms(model.shape, machine, tokens) if served else None,
        }

    def as_dict(self) -> dict[str, Any]:
        shapes = {model.name: dataclasses.asdict(model.shape) | {"tokenizer_folder": None} for model in self.models}
        return {
            "models": [row | {"shape": shapes[row["name"]]} for row in self.rows],
            "verdicts": self.verdicts,
            "advice": self.advice,
            "ok": self.ok,
        }


def whole_model_advice(shape: Shape, allowed_mb: float) -> list[str]:
    """Says so when no number of bits makes the teacher itself small enough."""
    eight, four = (parameters(shape) * bits / 8e6 for bits in (8, 4))
    if four <= allowed_mb:
        return []
    return [
        f"The teacher's own shape is {eight:.0f} MB in int8 and {four:.0f} MB in 4 bits: no number of bits meets "
        f"{allowed_mb:g} MB, only a structurally smaller student does."
    ]


def student_advice(
    teacher: Shape, candidate: Shape, budget: Budget, machine: Machine, tokens: int, reference_ms: float | None
) -> list[str]:
    """The largest student shapes, at the candidate's bits, that keep every predictable limit."""
    size = teacher.hidden_size // teacher.num_attention_heads
    fitting = []
    for heads in range(teacher.num_attention_heads, 0, -max(1, teacher.num_attention_heads // 6)):
        for layers in range(teacher.num_hidden_layers, 0, -max(1, teacher.num_hidden_layers // 8)):
            shape = candidate.with_(
                num_hidden_layers=layers,
                num_attention_heads=heads,
                hidden_size=heads * size,
                intermediate_size=4 * heads * size,
            )
            if keeps(shape, budget, machine, tokens, reference_ms):
                fitting.append(shape)
                break  # fewer layers of this width fit too
    fitting.sort(key=parameters, reverse=True)
    if not fitting:
        return ["No BERT-shaped student of the teacher meets the budget: raise a limit, or trim the vocabulary."]
    return [
        "Student shapes that fit: "
        + "; ".join(
            f"{s.num_hidden_layers} layers x {s.hidden_size} ({s.num_attention_heads} heads, {s.intermediate_size} "
            f"intermediate): {disk_bytes(s) / 1e6:.1f} MB"
            for s in fitting[:4]
        )
    ]


def keeps(shape: Shape, budget: Budget, machine: Machine, tokens: int, reference_ms: float | None) -> bool:
    """Whether a shape keeps every limit that can be predicted."""
    if budget.disk_mb is not None and disk_bytes(shape) / 1e6 > budget.disk_mb:
        return False
    if budget.ram_mb is not None and ram_mb(shape) > budget.ram_mb:
        return False
    if budget.latency_ms is None and budget.latency_ratio is None:
        return True
    time = latency_ms(shape, machine, tokens)
    too_slow = budget.latency_ms is not None and time > budget.latency_ms
    too_slow_beside = (
        budget.latency_ratio is not None
        and bool(reference_ms)
        and (time > budget.latency_ratio * (reference_ms or 0.0))
    )
    return not (too_slow or too_slow_beside)


def render(plan: Plan) -> str:
    """The plan as text: a row a model, a row a limit, and advice."""

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = [f"{'model':22} {'stage':16} {'parameters':>12} {'disk MB':>9} {'RAM MB':>8} {'ms':>8}"]
    lines += [
        f"{row['name']:22} {row['stage']:16} {row['parameters']:>12,} {row['disk_mb']:>9.1f} "
        f"{cell(row['ram_mb'], '8.0f'):>8} {cell(row['latency_ms'], '8.2f'):>8}"
        for row in plan.rows
    ]
    lines.append("")
    for verdict in plan.verdicts:
        answer = {True: "holds", False: "FAILS", None: "cannot be predicted: run it"}[verdict["ok"]]
        lines.append(
            f"{verdict['limit']:16} allowed {verdict['allowed']:<8g} predicted {cell(verdict['predicted'], '.3g'):8} "
            f"{answer}"
        )
    return "\n".join([*lines, "", *plan.advice] if plan.advice else lines)
