"""word_table: an encoder's word embeddings as one of the tables of ops/, distilled from what it was, as ONNX.

What no class of transformers can express (rows in 4 bits, hashed, quotient and remainder, mixed dimensions) is
delivered as a graph that onnxruntime runs. For factors that a stock class can express see factorize.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.errors import CheckFailed, OptionError, Reason, UnknownShape
from hfcompress.formats.onnx import PARITY_TEXTS, copy_companions
from hfcompress.ops import table_sizes
from hfcompress.ops.table_sizes import describe_table
from hfcompress.stage import TRAINING
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.trainer import TrainTexts, require_teaching, train, unused_by_teaching

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

WORDS = "network.bert.embeddings.word_embeddings"
TABLE = "network.bert.embeddings.word_table"  # not the name of a parameter
PARITY = 1e-3  # of the largest logit


@dataclass(frozen=True)
class WordTable(TrainTexts):
    """The largest table of a kind that the ratio allows, started from the trained one; then distillation."""

    kind: Literal["rows", "factorized", "hashed", "quotient_remainder", "mixed"] = "rows"
    """As of CompressEmbeddings; hashed and quotient_remainder let pieces share rows."""
    bits: Literal[4, 8, 32] = 8
    ratio: float = 4.0
    """The word table's bytes in float32 over those after; rows are as small as their bits make them."""
    temperature: float = 2.0
    logits_weight: float = 1.0
    hard_weight: float = 0.0
    cache: bool = True
    """Compute the teacher's outputs once, on disk; without it, for every batch anew."""

    training: ClassVar[bool] = True
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*TRAINING, "onnx", "onnxruntime")

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        found = super().unused(inputs) | unused_by_teaching(self, inputs)
        if self.kind == "rows":
            found["ratio"] = Reason("with {kind} rows: rows are as small as their bits make them")
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratio >= 1:
            raise OptionError("ratio", "must be at least 1", self.ratio)
        require_teaching(self, "logits_weight", "hard_weight")

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        from accelerate import PartialState
        from transformers import set_seed

        from hfcompress.architectures.albert import require_bert
        from hfcompress.architectures.models import load_classifier, load_tokenizer
        from hfcompress.training.losses import label_loss
        from hfcompress.training.teacher_outputs import Wanted, teacher_outputs

        tokenizer, network = load_tokenizer(model), load_classifier(model, task.data.labels)
        require_bert(network)
        data = task.data.encode(tokenizer, task.max_length, "train")
        table = self.table(network.bert.embeddings.word_embeddings.weight.detach(), read_counts(data, network))
        network.bert.embeddings.word_embeddings = table
        set_seed(self.seed)
        outputs = teacher_outputs(out / "work", model, data, Wanted(), cache=self.cache, bf16=self.bf16)
        loss = label_loss(
            outputs, temperature=self.temperature, logits_weight=self.logits_weight, hard_weight=self.hard_weight
        )
        progress = train(network, tokenizer, out / "work", self, data, loss=loss)
        if not PartialState().is_main_process:
            return {}
        copy_companions(model, out)
        return progress.as_dict() | deliver(network.cpu(), table, out, tokenizer, task)

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        """Raises:
        UnknownShape: what fits the ratio depends on how often each piece is read.
        """
        raise UnknownShape(f"a word table of the kind {self.kind} is known when the texts have been read")

    def table(self, weight: "torch.Tensor", frequency: "torch.Tensor") -> Any:
        """The module [rows, dim], started; dense gradients, as the Trainer's optimizer wants them.

        Raises:
            UserError: the kind cannot be as small as the ratio says.
        """
        from hfcompress.ops.embedding_tables import make_table

        rows, dim = weight.shape
        allowed = float("inf") if self.kind == "rows" else 4 * rows * dim / self.ratio
        found = describe_table(self.kind, rows, dim, self.bits, allowed, frequency.numpy())
        if found is None:
            raise OptionError(
                "ratio",
                "{rows:,} rows of {dim} numbers cannot be that small as {kind} in {bits} bits; give a smaller ratio, "
                "fewer bits or another kind",
                self.ratio,
                rows=rows,
                dim=dim,
                kind=self.kind,
                bits=self.bits,
            )
        table = make_table(found, rows, dim)
        table.start(weight, frequency)
        table.sparse = False
        return table


def read_counts(data: Any, network: Any) -> "torch.Tensor":
    """How often the training texts read each row, [rows]; every row counts once at least."""
    import torch

    ids = torch.tensor([number for row in data["input_ids"] for number in row])
    return torch.bincount(ids, minlength=network.config.vocab_size).clamp(min=1).float()


def deliver(network: Any, table: Any, out: Path, tokenizer: Any, task: TextClassification) -> dict[str, Any]:
    """model.onnx, compared with the network, its table's bytes with what the table claims.

    Raises:
        CheckFailed: they differ.
    """
    from hfcompress.formats import onnx_export
    from hfcompress.formats.click_onnx import table_bytes

    batch = onnx_export.parity_batch(tokenizer, task.data.texts("validation")[:PARITY_TEXTS], task.max_length)
    export_with_table(network, table, out)
    distance, largest = onnx_export.parity(network, out / "model.onnx", batch)
    if not distance <= PARITY * largest:
        raise CheckFailed(
            f"the exported graph's logits differ by {distance:.2g} from the network's; "
            "give another kind or other bits in --curve"
        )
    stored = table_bytes(out / "model.onnx", TABLE)
    claimed = table_sizes.table_bytes(table.description, table.rows, table.dim)
    if stored != claimed:
        raise CheckFailed(
            f"the graph's table takes {stored:,} bytes, {claimed:,} were claimed; "
            "give another kind or other bits in --curve"
        )
    return {
        "table_bytes": stored,
        "ratio": 4 * table.rows * table.dim / stored,
        "largest_logit_difference": distance,
    }


def export_with_table(network: Any, table: Any, out: Path) -> None:
    """Trace the network with a plain table in its place, then write the lookups where its rows were gathered."""
    import torch

    from hfcompress.formats import onnx_export

    embeddings = network.bert.embeddings
    embeddings.word_embeddings = torch.nn.Embedding(table.rows, table.dim)
    try:
        onnx_export.export(network, out, rewrite=lambda model: look_up_words(model, table))
    finally:
        embeddings.word_embeddings = table


def look_up_words(model: "ModelProto", table: Any) -> None:
    """Replace the Gather of the word table by the nodes and tensors of this one."""
    from onnx import helper

    from hfcompress.formats.onnx_export import replace_input
    from hfcompress.formats.onnx_tables import MICROSOFT, Lookup, look_up
    from hfcompress.formats.stored_tables import stored_table

    (gather,) = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] == f"{WORDS}.weight"]
    graph = Lookup(TABLE)
    found = look_up(graph, stored_table(table), gather.input[1])
    place = list(model.graph.node).index(gather)
    model.graph.node.remove(gather)
    for node in reversed(graph.nodes):
        model.graph.node.insert(place, node)
    replace_input(model, gather.output[0], found)
    model.graph.initializer.extend(graph.tensors)
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
