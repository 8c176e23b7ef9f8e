"""factorize: layers become low-rank factors, weighted by what they read, and learn on from there."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.architectures.models import load_image_processor, load_tokenizer
from hfcompress.architectures.patches import edits_of
from hfcompress.errors import OptionError, Reason, UnknownShape, UserError
from hfcompress.evaluation.accuracy import trainer_metrics
from hfcompress.stage import TRAINING
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.task import Labelled
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune_images import TrainImages
from hfcompress.training.trainer import Train, TrainTexts, require_teaching, train, unused_by_teaching

if TYPE_CHECKING:
    from torch import Tensor

    from hfcompress.compress.factorize.ranks import Layer, Measure, Option

CALIBRATION_BATCH = 16
Kind = Literal["svd", "tucker2", "cp"]


@dataclass(frozen=True)
class Factoring(Train, ABC):
    """What the stages for texts and for images share: layers are factored, then trained; the result is a model of
    `hfcompress.load`, and any stage's input.

    Exactly one of energy, keep_bytes and keep_flops says how much is left. A layer that would grow, a depthwise
    convolution and a layer whose weights another one shares stay as they are.
    """

    energy: float | None = None
    """Share of its output's mean square that each layer keeps."""
    keep_bytes: float | None = None
    """Share of the factorable layers' bytes; ranks are allocated over the layers at the least total error."""
    keep_flops: float | None = None
    """The same of their FLOPs for one example."""
    weighted: bool = True
    """Errors count at a layer's output, for the inputs of calibration data; without it, plain decompositions of the
    weights."""
    calibration_examples: int = 256
    """Training examples, evenly over the classes, that the layers' inputs are taken from."""
    temperature: float = 2.0
    logits_weight: float = 1.0
    """Of the soft labels, where there is a teacher."""
    hard_weight: float = 0.0
    """Of the labels, where there is a teacher; without one they are all there is."""

    training: ClassVar[bool] = True
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*TRAINING, "tensorly")

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        found = super().unused(inputs) | unused_by_teaching(self, {"teacher": None} | inputs)
        if not self.weighted:
            found["calibration_examples"] = Reason("with {weighted:no}")
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        require_teaching(self, "logits_weight", "hard_weight")

    def factorize(self, out: Path, model: Path, task: Labelled, teacher: Path | None, kind: Kind) -> dict[str, Any]:
        """Factor and train as `__call__` is asked to.

        Args:
            kind: what becomes of convolutions larger than 1x1.
        """
        from accelerate import PartialState
        from transformers import set_seed

        from hfcompress.architectures.models import load_classifier, save
        from hfcompress.training.losses import taught_by

        self.target()
        set_seed(self.seed)
        network, processor = load_classifier(model, task.data.labels), self.processor(model)
        measured = self.factor(network, processor, task, kind)
        if not PartialState().is_main_process and not self.trains:
            return {}
        if self.trains:
            data = self.examples(task, processor, "train", varied=True)
            progress = train(
                network,
                task.padded_by(processor),
                out / "work",
                self,
                data,
                self.examples(task, processor, "validation"),
                compute_metrics=trainer_metrics(task),
                best_metric=task.metric if teacher is None else None,  # soft labels: as in distill
                loss=None if teacher is None else taught_by(teacher, self, out / "work", model, task, data),
            )
            measured = progress.as_dict() | measured
        save(network, processor, out)
        return measured

    @property
    def trains(self) -> bool:
        return self.num_train_epochs > 0 or self.max_steps > 0

    def target(self) -> "tuple[Literal['energy'] | Measure, float]":
        """What is kept, and how much of it.

        Raises:
            UserError: not exactly one of the three is given, or it is no share.
        """
        names: dict[Any, float | None] = {"energy": self.energy, "bytes": self.keep_bytes, "flops": self.keep_flops}
        given = {name: share for name, share in names.items() if share is not None}
        if len(given) != 1:
            reason = (
                "{energy}, {keep_bytes}, {keep_flops}: give exactly one of them ({n} are given; None takes one away)"
            )
            raise UserError(Reason(reason, n=len(given)))
        ((name, share),) = given.items()
        if not 0 < share <= 1:
            option = name if name == "energy" else f"keep_{name}"
            raise OptionError(option, "a share above 0 (a rank of 0 keeps nothing) and up to 1", share)
        return name, share

    def factor(self, network: Any, processor: Any, task: Labelled, kind: Kind) -> dict[str, Any]:
        """Put factors into the network, which then knows its edits; returns what was done.

        Raises:
            UserError: it has factors already, it has nothing to factor, or no ranks meet the target.
        """
        from accelerate.utils import broadcast_object_list

        from hfcompress.compress.factorize.ranks import find_layers, is_factored, layer_options, put, watch

        if is_factored(network):
            raise UserError("the model consists of factors already; give the one that it was made from")
        found, left_alone = find_layers(network, self.names(network))
        seen = watch(network, found, self.calibration(task, processor), kind, self.weighted)
        layers, done = [], []
        for name in found:
            try:
                layers.append(layer_options(network, name, kind, seen[name]))
            except ValueError as error:  # a layer that no example reaches
                left_alone[name] = str(error)
        chosen, edits = broadcast_object_list(self.choose(layers)), []  # of unlike machines the main one's
        for layer, option in zip(layers, chosen, strict=True):
            done.append(described(layer, option))
            if option.ranks is not None:
                edits.append(put(network, layer, option.ranks))
        edits += self.put_embeddings(network)
        if not edits:
            raise UserError("no layer becomes smaller by these ranks; ask for less to be kept")
        network.edits = [*edits_of(network), *edits]
        return {"layers": done, "left_alone": left_alone, **totals(layers, chosen)}

    def choose(self, layers: "list[Layer]") -> "list[Option]":
        """An option for each layer, by energy or by the budget."""
        from hfcompress.compress.factorize.ranks import by_budget, by_energy, least

        measure, share = self.target()
        if not layers:
            raise UserError("the model has no linear layer or convolution that can be factored")
        if measure == "energy":
            return by_energy(layers, share)
        chosen = by_budget(layers, measure, share)
        if chosen is None:
            reason = "factors of the lowest ranks leave {least:.3g}; give more than that"
            raise OptionError(f"keep_{measure}", reason, share, least=least(layers, measure))
        return chosen

    def calibration(self, task: Labelled, processor: Any) -> "Iterator[dict[str, Tensor]]":
        """Batches of training examples without their labels, evenly over the classes.

        Raises:
            UserError: fewer examples than classes, so that a class would not be seen.
        """
        classes = len(task.data.labels)
        if self.calibration_examples < classes:
            reason = "the task has {classes} classes, and each is to be seen; give at least as many"
            raise OptionError("calibration_examples", reason, self.calibration_examples, classes=classes)
        data = self.examples(task, processor, "train")
        rows = evenly(task.data.label_ids("train"), self.calibration_examples)
        for start in range(0, len(rows), CALIBRATION_BATCH):
            yield self.inputs([data[row] for row in rows[start : start + CALIBRATION_BATCH]], processor)

    @abstractmethod
    def processor(self, model: Path) -> Any:
        """What makes examples for the model."""

    @abstractmethod
    def examples(self, task: Any, processor: Any, split: str, varied: bool = False) -> Any:
        """The split as the Trainer reads it; images varied as the options say."""

    @abstractmethod
    def inputs(self, examples: list[Any], processor: Any) -> "dict[str, Tensor]":
        """A batch without its labels."""

    def names(self, network: Any) -> list[str] | None:
        """The layers that may be factored; None: all."""
        return None

    def put_embeddings(self, network: Any) -> list[dict[str, Any]]:
        """Put factors in the place of embeddings where that is asked for; returns the edits."""
        return []


@dataclass(frozen=True)
class Factorize(Factoring, TrainTexts):
    """Factor the linear layers of a text encoder and its pooler, then train."""

    tt_rank: int | None = None
    """Also make the word embeddings a tensor train of this rank (beside the budget above); None: leave them."""
    cache: bool = True
    """Compute the teacher's outputs once and keep them on disk while the stage runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tt_rank is not None and self.tt_rank < 1:
            raise OptionError("tt_rank", "1 or more; leave it out to keep the embeddings", self.tt_rank)

    def __call__(
        self, out: Path, *, model: Path, task: TextClassification, teacher: Path | None = None
    ) -> dict[str, Any]:
        return self.factorize(out, model, task, teacher, "svd")

    def processor(self, model: Path) -> Any:
        return load_tokenizer(model)

    def examples(self, task: TextClassification, processor: Any, split: str, varied: bool = False) -> Any:
        return task.data.encode(processor, task.max_length, split)

    def inputs(self, examples: list[Any], processor: Any) -> "dict[str, Tensor]":
        names = ("input_ids", "attention_mask", "token_type_ids")
        texts = [{name: row[name] for name in names if name in row} for row in examples]
        return dict(processor.pad(texts, return_tensors="pt"))

    def names(self, network: Any) -> list[str]:
        from hfcompress.architectures import encoders

        return encoders.linear_names(network)

    def put_embeddings(self, network: Any) -> list[dict[str, Any]]:
        from hfcompress.architectures import encoders
        from hfcompress.compress.factorize.ranks import put_tensor_train

        if self.tt_rank is None:
            return []
        try:
            name = f"{encoders.encoder_of(network).body}.embeddings.word_embeddings"
            return [put_tensor_train(network, name, self.tt_rank)]
        except ValueError as error:
            raise OptionError("tt_rank", "{error}", self.tt_rank, error=error) from None

    def predict(self, model: Any, *, task: Any = None, teacher: Any = None) -> Any:
        """The shape with that share of its linear layers.

        Raises:
            UnknownShape: the ranks follow from an energy, which only the weights say.
            UserError: no train of the word embeddings has the rank.
        """
        measure, share = self.target()
        if self.tt_rank is not None:
            from hfcompress.ops.tensor_train import train_weights

            try:
                words = train_weights(model.vocab_size, model.hidden_size, self.tt_rank)
            except ValueError as error:
                raise OptionError("tt_rank", "{error}", self.tt_rank, error=error) from None
            model = model.with_(word_weights=words)
        if measure == "energy":
            raise UnknownShape(Reason("{energy}: which ranks hold it is known when the model has been read"))
        return model.with_(format="surgery", linear_share=share)


@dataclass(frozen=True)
class FactorizeImages(Factoring, TrainImages):
    """Factor the convolutions and linear layers of an image classifier, then train.

    An image teacher sees the varied images and runs along.
    """

    kind: Kind = "tucker2"
    """What becomes of convolutions larger than 1x1; 1x1 ones and linear layers are always two factors (svd)."""

    def __call__(
        self, out: Path, *, model: Path, task: ImageClassification, teacher: Path | None = None
    ) -> dict[str, Any]:
        return self.factorize(out, model, task, teacher, self.kind)

    def processor(self, model: Path) -> Any:
        return load_image_processor(model)

    def examples(self, task: ImageClassification, processor: Any, split: Any, varied: bool = False) -> Any:
        return task.data.examples(processor, split, self.augment if varied else None)

    def inputs(self, examples: list[Any], processor: Any) -> "dict[str, Tensor]":
        import torch

        return {"pixel_values": torch.stack([row["pixel_values"] for row in examples])}

    def predict(self, model: Any, *, task: Any = None, teacher: Any = None) -> Any:
        """Refuses options that cannot be.

        Raises:
            UnknownShape: always.
        """
        self.target()
        raise UnknownShape("what ranks leave of an image classifier is known when it has been read")


def evenly(labels: list[int], count: int) -> list[int]:
    """Rows of `count` examples (all, if there are fewer): one of each class in turn, in the order of the data."""
    turns: dict[int, int] = {}
    order = []
    for row, label in enumerate(labels):
        turns[label] = turns.get(label, -1) + 1
        order.append((turns[label], row))
    return [row for _, row in sorted(order)[:count]]


def described(layer: "Layer", option: "Option") -> dict[str, Any]:
    """A layer's row in the record."""
    return {
        "module": layer.name,
        "kind": layer.kind if option.ranks else "as it was",
        "ranks": list(option.ranks or ()),
        "weights_before": layer.options[0].weights,
        "weights": option.weights,
        "error": option.error,
    }


def totals(layers: "list[Layer]", chosen: "list[Option]") -> dict[str, Any]:
    """Shares that are left of the factorable layers, and the sum of their errors."""
    shares = {
        measure: sum(o.cost(measure) for o in chosen) / sum(layer.options[0].cost(measure) for layer in layers)
        for measure in ("bytes", "flops")
    }
    return {"kept": shares, "total_error": sum(option.error for option in chosen)}
