"""distill: a student with fewer layers (if asked, less width), cut from the teacher and trained to answer like it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.subnetworks import narrowed
from hfcompress.compress.embeddings.trim_vocabulary import read_texts
from hfcompress.errors import OptionError, Reason
from hfcompress.stage import TRAINING
from hfcompress.tasks.linear import unseen_probabilities
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.trainer import TrainTexts, require_teaching, train, unused_by_teaching

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel

    from hfcompress.training.teacher_outputs import Teacher, Wanted

LOSSES = ("logits_weight", "hard_weight", "hidden_weight", "attention_weight", "relation_weight")


@dataclass(frozen=True)
class Distill(TrainTexts):
    """Weights of 0 switch a loss off; what the active losses need of the teacher is computed once and cached."""

    num_hidden_layers: int = 4
    hidden_size: int | None = None
    """The teacher's when not given; always heads x the teacher's head size."""
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    temperature: float = 2.0
    logits_weight: float = 1.0
    """Soft labels (Hinton 2015)."""
    linear_weight: float = 0.0
    """Share of the soft labels that a second teacher gives, the linear baseline (TF-IDF + SVM), cross-fitted: what it
    would say of each training text had it not seen the text's group. 0 leaves the teacher alone."""
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
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TRAINING

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        found = super().unused(inputs) | unused_by_teaching(self, inputs)
        if not self.relation_weight:
            found["relation_heads"] = Reason("with {relation_weight} 0")
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        require_teaching(self, *LOSSES)

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        from transformers import set_seed

        from hfcompress.architectures import encoders
        from hfcompress.architectures.models import load_classifier, load_tokenizer, save
        from hfcompress.training.teacher_outputs import teacher_outputs

        set_seed(self.seed)
        tokenizer = load_tokenizer(model)
        teacher = load_classifier(model, task.data.labels)
        student, mapped = self.student(teacher)
        layers, size = teacher.config.num_hidden_layers, teacher.config.hidden_size
        del teacher  # its outputs come from `outputs` from here on
        if self.attention_weight:
            student = encoders.with_attention_maps(student)
        if self.hidden_weight and student.config.hidden_size != size:
            add_projections(student, size, len(mapped))
        data, linear = self._training_data(task, tokenizer), self._linear(task)
        wanted = self._wanted([old + 1 for old in mapped], layers)
        outputs = teacher_outputs(out / "work", model, data, wanted, cache=self.cache, bf16=self.bf16)
        mine = self._wanted(list(range(1, len(mapped) + 1)), len(mapped))
        progress = train(  # to the last weights: a few validation texts do not say which are nearest
            student,
            tokenizer,
            out / "work",
            self,
            data,
            loss=self.loss(outputs, mine, linear),
        )
        if hasattr(student, "projections"):
            del student.projections
        save(student, tokenizer, out)
        return progress.as_dict() | {"teacher_layers": mapped}

    def predict(self, model: Shape, *, task: TextClassification | None = None) -> Shape:
        """The student's shape; refuses options that cannot be, so that `plan` and `run` stop before any training."""
        self._check_losses()
        student = narrowed(
            model,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
        )
        if self.relation_weight:
            check_relation_heads(self.relation_heads, model.hidden_size, student.hidden_size)
        return student

    def _check_losses(self) -> None:
        if not 0 <= self.linear_weight <= 1:
            raise OptionError("linear_weight", "a share, from 0 to 1", self.linear_weight)
        if self.linear_weight and not self.logits_weight:
            raise OptionError("linear_weight", "mixes soft labels; give {logits_weight} too, or leave it at 0")
        if self.linear_weight and self.extra_text is not None:
            raise OptionError("linear_weight", "for labelled texts alone; leave {extra_text} out")

    def student(self, teacher: "PreTrainedModel") -> "tuple[PreTrainedModel, list[int]]":
        """The student at its start, and the teacher's layers that it was made of.

        Raises:
            UserError: an architecture that cannot be cut, or see `predict`.
        """
        from hfcompress.architectures import encoders

        encoders.require_native(teacher)
        shape = self.predict(Shape.from_config(teacher.config.to_dict(), teacher.config.num_labels))
        head_scores, neuron_scores, dimension_scores = encoders.weight_scores(teacher)
        chosen = evenly_spread(teacher.config.num_hidden_layers, shape.num_hidden_layers)
        kept = encoders.Kept(
            layers=chosen,
            heads=[highest(head_scores[i], shape.num_attention_heads) for i in chosen],
            neurons=[highest(neuron_scores[i], shape.intermediate_size) for i in chosen],
            dimensions=highest(dimension_scores, shape.hidden_size),
        )
        return encoders.cut(teacher, kept), chosen

    def _training_data(self, task: TextClassification, tokenizer: Any) -> "Dataset":
        """The training split and, behind it, the extra text with the label -100."""
        from datasets import concatenate_datasets

        data = task.data.encode(tokenizer, task.max_length, "train")
        if self.extra_text is None:
            return data

        extra = task.data.encode_unlabelled(tokenizer, task.max_length, read_texts(self.extra_text), first=len(data))
        return concatenate_datasets([data, extra.cast(data.features)])

    def _wanted(self, layers: list[int], last: int) -> "Wanted":
        from hfcompress.training.teacher_outputs import Wanted

        return Wanted(
            hidden_layers=tuple(layers) if self.hidden_weight else (),
            attention_layers=tuple(layers) if self.attention_weight else (),
            relation_layer=last if self.relation_weight else None,
        )

    def _linear(self, task: TextClassification) -> "torch.Tensor | None":
        """The second teacher's probabilities [training texts, classes]."""
        import torch

        if not self.linear_weight:
            return None
        data = task.data
        texts, labels, groups = data.texts("train"), data.label_ids("train"), data.groups("train")
        return torch.from_numpy(unseen_probabilities(texts, labels, groups, len(data.labels))).float()

    def loss(
        self, teacher: "Teacher", mine: "Wanted", linear: "torch.Tensor | None" = None
    ) -> "Callable[[PreTrainedModel, dict[str, torch.Tensor]], torch.Tensor]":
        """The weighted sum of the losses whose weight is not 0."""
        from hfcompress.ops import losses
        from hfcompress.training.teacher_outputs import forward

        def compute(model: Any, batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
            student, target, mask = forward(model, batch, mine), teacher(batch), batch["attention_mask"].float()
            soft = target["logits"]
            if linear is not None:
                second = linear[batch["index"].cpu()].to(soft.device)
                soft = losses.mixed_logits(soft.float(), second, self.linear_weight, self.temperature)
            total = self.logits_weight * losses.soft_cross_entropy(student["logits"], soft, self.temperature)
            if self.hard_weight:
                total = total + self.hard_weight * losses.labelled_cross_entropy(
                    student["logits"], batch["labels"], self.label_smoothing_factor
                )
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
    """Which of `layers` layers (from 0) a student of `count` is made of: the last of each of `count` equal parts.

    Where the parts are not whole their ends are rounded; the teacher's last layer is always among them.
    """
    return [round((i + 1) * layers / count) - 1 for i in range(count)]


def check_relation_heads(heads: int, *hidden_sizes: int) -> None:
    """Relations are formed head by head, so teacher and student must both be divisible (MiniLMv2, section 3.1).

    Raises:
        UserError: with the numbers that are allowed.
    """
    common = math.gcd(*hidden_sizes)
    if heads < 1 or common % heads:
        allowed = [n for n in range(1, 65) if common % n == 0]
        raise OptionError(
            "relation_heads",
            "must divide the hidden sizes {sizes}; one of {allowed}",
            heads,
            sizes=" and ".join(map(str, hidden_sizes)),
            allowed=", ".join(map(str, allowed)),
        )


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

    from hfcompress.architectures import encoders

    projections = getattr(encoders.unwrapped(model), "projections", None)
    if projections is None:
        return states
    return torch.stack([layer(states[:, :, i]) for i, layer in enumerate(projections)], dim=2)
