"""factorize_embeddings: a BERT's embeddings as a small table times a matrix (ALBERT's form), then distilled."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures.bert import BERT
from hfcompress.architectures.encoder_spec import Shape, embedding_parameters, embedding_rows
from hfcompress.errors import OptionError, Reason, UnknownShape, UserError
from hfcompress.stage import TRAINING
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.trainer import TrainTexts, require_teaching, train, unused_by_teaching

if TYPE_CHECKING:
    import torch

MEASURED_TEXTS, MEASURED_BATCH = 2_000, 32  # training texts whose looked-up vectors say which directions are read
LEAST_SIZE = 2  # one direction


@dataclass(frozen=True)
class FactorizeEmbeddings(TrainTexts):
    """Word, position and type embeddings keep the directions that the training texts read most; then distillation.

    The result is a stock AlbertForSequenceClassification that shares no layers. At its start it is the same function
    but for what lies outside these directions (see ops/norm_factors.py); with the whole hidden size it is the same.
    """

    embedding_size: int | None = None
    """Numbers a word piece, at most the hidden size. Give this, energy or table_mb."""
    energy: float | None = None
    """Or: the share of what the first LayerNorm reads that must stay, such as 0.95."""
    table_mb: float | None = None
    """Or: what the tables may take in 8 bits, with a scale a row."""
    temperature: float = 2.0
    logits_weight: float = 1.0
    hard_weight: float = 0.0
    cache: bool = True
    """Compute the teacher's outputs once, on disk; without it, for every batch anew."""

    training: ClassVar[bool] = True
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*TRAINING, "tensorly")

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        return super().unused(inputs) | unused_by_teaching(self, inputs)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_teaching(self, "logits_weight", "hard_weight")

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        from transformers import set_seed

        from hfcompress.architectures import albert
        from hfcompress.architectures.albert import require_bert
        from hfcompress.architectures.models import load_classifier, load_tokenizer, save
        from hfcompress.ops import norm_factors
        from hfcompress.training.losses import label_loss
        from hfcompress.training.teacher_outputs import Wanted, teacher_outputs

        tokenizer, network = load_tokenizer(model), load_classifier(model, task.data.labels)
        require_bert(network)
        shape = Shape.from_config(network.config.to_dict(), network.config.num_labels)
        data = task.data.encode(tokenizer, task.max_length, "train")
        shares, directions = norm_factors.directions_of(moments_of(network, tokenizer, data))
        size = self.size(shape) or norm_factors.size_for_energy(shares, float(self.energy or 0))
        small = albert.factorized(network, directions[: size - 1])
        del network
        set_seed(self.seed)
        outputs = teacher_outputs(out / "work", model, data, Wanted(), cache=self.cache, bf16=self.bf16)
        loss = label_loss(
            outputs, temperature=self.temperature, logits_weight=self.logits_weight, hard_weight=self.hard_weight
        )
        progress = train(small, tokenizer, out / "work", self, data, loss=loss)
        save(small, tokenizer, out)
        after = shape.with_(embedding_size=size)
        return progress.as_dict() | {
            "embedding_size": size,
            "energy": float(shares[: size - 1].sum()),
            "embedding_parameters": {"before": embedding_parameters(shape), "after": embedding_parameters(after)},
        }

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        """As the stage would make it.

        Raises:
            UnknownShape: the size follows from an energy, which only the weights say.
            UserError: another architecture, before anything is trained; or see `size`.
        """
        if model.model_type not in BERT.model_types:
            reason = "a {kind}: embeddings are factorized for BERT alone; give another {.base}"
            raise UserError(Reason(reason, kind=model.model_type))
        size = self.size(model)
        if size is None:
            raise UnknownShape(Reason("{energy}: which size holds it is known when the model has been read"))
        return model.with_(embedding_size=size)

    def size(self, model: Shape) -> int | None:
        """The embedding size that was asked for; None where an energy says it.

        Raises:
            UserError: none or several of the three were given, or the size cannot be.
        """
        given = {n: getattr(self, n) for n in ("embedding_size", "energy", "table_mb") if getattr(self, n) is not None}
        if len(given) != 1:
            raise UserError(Reason("{embedding_size}, {energy}, {table_mb}: give one of them"))
        if self.energy is not None:
            if not 0 < self.energy <= 1:
                raise OptionError("energy", "above 0, at most 1", self.energy)
            return None
        if self.embedding_size is not None:
            if not LEAST_SIZE <= self.embedding_size <= model.hidden_size:
                reason = "from {least} to the hidden size, {most}"
                raise OptionError(
                    "embedding_size", reason, self.embedding_size, least=LEAST_SIZE, most=model.hidden_size
                )
            return self.embedding_size
        rows = embedding_rows(model)
        fits = int((1e6 * float(self.table_mb or 0) - 4 * model.hidden_size - 4 * rows) // (rows + model.hidden_size))
        if fits < LEAST_SIZE:
            raise OptionError("table_mb", "{rows:,} rows do not fit; give more, or trim", self.table_mb, rows=rows)
        return min(fits, model.hidden_size)


def moments_of(network: Any, tokenizer: Any, data: Any) -> "torch.Tensor":
    """Second moments [hidden size, hidden size] of what the first LayerNorm reads in the training texts."""
    import torch

    from hfcompress.ops.norm_factors import read_moments

    size = network.config.hidden_size
    total, read = torch.zeros(size, size, dtype=torch.float64), []
    norm = network.bert.embeddings.LayerNorm
    hook = norm.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    columns = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in data.column_names]
    texts = data.select(range(0, len(data), max(1, len(data) // MEASURED_TEXTS))).select_columns(columns)
    try:
        with torch.inference_mode():
            for start in range(0, len(texts), MEASURED_BATCH):
                batch = tokenizer.pad(texts[start : start + MEASURED_BATCH], return_tensors="pt")
                network.bert.embeddings(
                    **{name: batch[name] for name in ("input_ids", "token_type_ids") if name in batch}
                )
                total += read_moments(read.pop()[batch["attention_mask"].bool()])
    finally:
        hook.remove()
    return total
