"""plan for encoders: bytes from the shape, memory of a serving process, time from layers timed on this machine."""

import dataclasses
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

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
from hfcompress.budget import Budget, predicted_verdicts
from hfcompress.errors import OptionError
from hfcompress.planning.machine import Machine

if TYPE_CHECKING:
    from hfcompress.planning.plan import Compared, Plan, Planned

# Bytes that are no weights, measured on exported files: graph nodes and names (tests/planning/test_plan.py: to 3%).
CONFIG_BYTES = 1_500
TOKENIZER_BYTES = 945_000  # bert-base-uncased: vocab.txt 232 kB, tokenizer.json 711 kB
TENSOR_HEADER = 110
GRAPH_BYTES, LAYER_BYTES = 13_000, 20_600
QDQ_GRAPH_BYTES, QDQ_LAYER_BYTES = 4_700, 9_600
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


def compare_encoders(plan: "Plan", asked: "Compared") -> None:
    """Fill a plan's rows, verdicts and advice."""
    measure = asked.measure
    require_positions(asked.models, measure.sequence_length)
    serving = Serving(Machine(measure.threads), measure.batch, measure.sequence_length)
    serving = replace(
        serving,
        reference_ms=serving.latency_ms(asked.latency_reference.shape),
        reference_embeddings=round(embedding_bytes(asked.reference.shape)),
    )
    plan.rows = [
        {"name": model.name, "stage": model.stage, "format": model.shape.format}
        | prediction(model.shape, serving)
        | {"shape": dataclasses.asdict(replace(model.shape, tokenizer_folder=None))}
        for model in asked.models
    ]
    plan.verdicts = predicted_verdicts(asked.budget, asked.candidate.name, plan.predictions[asked.candidate.name])
    plan.advice = advice(asked.reference.shape, asked.candidate.shape, asked.budget, serving, plan.ok)


def require_positions(models: "tuple[Planned, ...]", sequence_length: int) -> None:
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
