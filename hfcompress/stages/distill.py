"""distill: a student with fewer layers (if asked, less width), cut from the teacher and trained to answer like it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.errors import UserError
from hfcompress.shape import Shape
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training import Train

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel

    from hfcompress.teacher_outputs import Teacher, Wanted


@dataclass(frozen=True)
class Distill(Train):
    """Weights of 0 switch a loss off; what the active losses need of the teacher is computed once and cached."""

    num_hidden_layers: int = 4
    hidden_size: int | None = None
    """The teacher's when not given; always heads x the teacher's head size."""
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    temperature: float = 2.0
    logits_weight: float = 1.0
    """Soft labels (Hinton 2015)."""
    hard_weight: float = 0.0
    """Cross-entropy with the true labels."""
    hidden_weight: float = 0.0
    """Hidden states of the mapped layers (TinyBERT)."""
    attention_weight: float = 0.0
    """Attention maps of the mapped layers (TinyBERT)."""
    relation_weight: float = 0.0
    """Relations among queries, keys and values of the last layer (MiniLMv2)."""
    relation_heads: int = 12
    extra_text: Path | None = None
    """Unlabelled text, one a line, that the student is also taught on."""
    cache: bool = True
    """Compute the teacher's outputs once, on disk; without it, for every batch anew."""

    training: ClassVar[bool] = True

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        from transformers import set_seed

        from hfcompress.evaluation.accuracy import trainer_metrics
        from hfcompress.models import load_classifier, load_tokenizer, save
        from hfcompress.teacher_outputs import teacher_outputs
        from hfcompress.training import train

        set_seed(self.seed)
        tokenizer = load_tokenizer(model)
        teacher = load_classifier(model, task.data.labels)
        student, mapped = self.student(teacher)
        data = self._training_data(task, tokenizer)
        wanted = self._wanted([old + 1 for old in mapped], teacher.config.num_hidden_layers)
        outputs = teacher_outputs(out / "work", model, data, wanted, cache=self.cache)
        mine = self._wanted(list(range(1, len(mapped) + 1)), len(mapped))
        if self.attention_weight:
            student.set_attn_implementation("eager")
        if student.config.hidden_size != teacher.config.hidden_size and self.hidden_weight:
            add_projections(student, teacher.config.hidden_size, len(mapped))
        progress = train(
            student,
            tokenizer,
            out / "work",
            self,
            data,
            task.data.encode(tokenizer, task.max_length, "validation"),
            compute_metrics=trainer_metrics,
            best_metric=task.metric,
            loss=self.loss(outputs, mine),
        )
        if hasattr(student, "projections"):
            del student.projections
        save(student, tokenizer, out)
        return progress.as_dict() | {"teacher_layers": mapped}

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        size = model.hidden_size // model.num_attention_heads
        heads = self.num_attention_heads or (self.hidden_size or model.hidden_size) // size
        return model.with_(
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=heads,
            hidden_size=heads * size,
            intermediate_size=self.intermediate_size or model.intermediate_size,
        )

    def student(self, teacher: "PreTrainedModel") -> "tuple[PreTrainedModel, list[int]]":
        """The student at its start, and the teacher's layers that it was made of.

        Raises:
            UserError: a shape that the teacher does not hold or the stock class cannot express.
        """
        from hfcompress import bert

        bert.require_bert(teacher)
        config, size = teacher.config, bert.head_size(teacher)
        heads = self.num_attention_heads or (self.hidden_size or config.hidden_size) // size
        hidden = bert.check_shape("distill", size, heads, self.hidden_size, config.num_attention_heads)
        neurons = self.intermediate_size or config.intermediate_size
        if not 1 <= self.num_hidden_layers <= config.num_hidden_layers:
            raise UserError(
                f"--distill.num-hidden-layers {self.num_hidden_layers}: from 1 to {config.num_hidden_layers} "
                "(the teacher's)"
            )
        if not 1 <= neurons <= config.intermediate_size:
            raise UserError(
                f"--distill.intermediate-size {neurons}: from 1 to {config.intermediate_size} (the teacher's)"
            )
        head_scores, neuron_scores, dimension_scores = bert.weight_scores(teacher)
        chosen = evenly_spread(config.num_hidden_layers, self.num_hidden_layers)
        kept = bert.Kept(
            layers=chosen,
            heads=[highest(head_scores[i], heads) for i in chosen],
            neurons=[highest(neuron_scores[i], neurons) for i in chosen],
            dimensions=highest(dimension_scores, hidden),
        )
        return bert.cut(teacher, kept), chosen

    def _training_data(self, task: TextClassification, tokenizer: Any) -> "Dataset":
        """The training split and, behind it, the extra text with the label -100."""
        from datasets import concatenate_datasets

        data = task.data.encode(tokenizer, task.max_length, "train")
        if self.extra_text is None:
            return data
        from hfcompress.stages.embeddings import read_texts

        extra = task.data.encode_unlabelled(tokenizer, task.max_length, read_texts(self.extra_text), first=len(data))
        return concatenate_datasets([data, extra.cast(data.features)])

    def _wanted(self, layers: list[int], last: int) -> "Wanted":
        from hfcompress.teacher_outputs import Wanted

        return Wanted(
            hidden_layers=tuple(layers) if self.hidden_weight else (),
            attention_layers=tuple(layers) if self.attention_weight else (),
            relation_layer=last if self.relation_weight else None,
        )

    def loss(
        self, teacher: "Teacher", mine: "Wanted"
    ) -> "Callable[[PreTrainedModel, dict[str, torch.Tensor]], torch.Tensor]":
        """The weighted sum of the losses whose weight is not 0."""
        from hfcompress.ops import losses
        from hfcompress.teacher_outputs import forward

        def compute(model: Any, batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
            student, target, mask = forward(model, batch, mine), teacher(batch), batch["attention_mask"].float()
            total = self.logits_weight * losses.soft_cross_entropy(
                student["logits"], target["logits"], self.temperature
            )
            if self.hard_weight:
                total = total + self.hard_weight * losses.labelled_cross_entropy(student["logits"], batch["labels"])
            if self.hidden_weight:
                states = project(model, student["hidden"])
                total = total + self.hidden_weight * sum(
                    losses.hidden_mse(states[:, :, i], target["hidden"][:, :, i], mask) for i in range(states.shape[2])
                )
            if self.attention_weight:
                total = total + self.attention_weight * sum(
                    losses.attention_mse(student["attention"][..., i], target["attention"][..., i], mask)
                    for i in range(student["attention"].shape[-1])
                )
            if self.relation_weight:
                total = total + self.relation_weight * sum(
                    losses.relation_kl(
                        student["relations"][:, :, i], target["relations"][:, :, i], mask, self.relation_heads
                    )
                    for i in range(3)
                )
            return total

        return compute


def evenly_spread(layers: int, count: int) -> list[int]:
    """Which of `layers` layers a student of `count` is made of: the last of each of `count` equal parts."""
    return [round((i + 1) * layers / count) - 1 for i in range(count)]


def highest(scores: "torch.Tensor", count: int) -> "torch.Tensor":
    """The positions of the highest scores, in ascending order."""
    return scores.topk(count).indices.sort().values


def add_projections(student: Any, teacher_size: int, layers: int) -> None:
    """Learned maps from the student's hidden states to the teacher's size; they live only during training."""
    from torch import nn

    student.projections = nn.ModuleList(
        nn.Linear(student.config.hidden_size, teacher_size, bias=False) for _ in range(layers)
    )


def project(model: Any, states: "torch.Tensor") -> "torch.Tensor":
    """Hidden states [batch, tokens, layers, size] in the teacher's size."""
    import torch

    projections = getattr(getattr(model, "module", model), "projections", None)
    if projections is None:
        return states
    return torch.stack([layer(states[:, :, i]) for i, layer in enumerate(projections)], dim=2)
