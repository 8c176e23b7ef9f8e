"""factorize: layers become low-rank factors, weighted by what they read, and learn on from there."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.errors import UnknownShape, UserError
from hfcompress.shape import Shape
from hfcompress.stages.finetune_images import TrainImages
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training import TrainTexts

if TYPE_CHECKING:
    from torch import Tensor

    from hfcompress.factorization import Layer, Measure, Option

CALIBRATION_BATCH = 16
Task = TextClassification | ImageClassification


@dataclass(frozen=True)
class Factorize(TrainTexts, TrainImages):
    """Factor the linear layers of a BERT's encoder and pooler, or the convolutions and linear layers of an image
    classifier, then train; the result is a model of `hfcompress.load`, and any stage's input.

    Exactly one of energy, keep_bytes and keep_flops says how much is left. A layer that would grow, a depthwise
    convolution and a layer whose weights another one shares stay as they are.
    """

    energy: float | None = None
    """Share of its output's mean square that each layer keeps."""
    keep_bytes: float | None = None
    """Share of the factorable layers' bytes; ranks are allotted over the layers at the least total error."""
    keep_flops: float | None = None
    """The same of their FLOPs for one example."""
    kind: Literal["svd", "tucker2", "cp"] = "tucker2"
    """What becomes of convolutions larger than 1x1; 1x1 ones and linear layers are always two factors (svd)."""
    weighted: bool = True
    """Errors count at a layer's output, for the inputs of calibration data; without it, plain decompositions of the
    weights."""
    calibration_examples: int = 256
    """Training examples, evenly over the classes, that the layers' inputs are taken from."""
    tt_rank: int | None = None
    """Also make the word embeddings a tensor train of this rank (beside the budget above); None: leave them."""
    temperature: float = 2.0
    logits_weight: float = 1.0
    """Of the soft labels, where there is a teacher."""
    hard_weight: float = 0.0
    """Of the labels, where there is a teacher; without one they are all there is."""
    cache: bool = True
    """A text teacher's outputs are computed once, on disk; an image teacher sees the varied images and runs along."""

    training: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise UserError(f"--factorize.temperature {self.temperature:g}: above 0")
        if min(self.logits_weight, self.hard_weight) < 0 or not self.logits_weight + self.hard_weight:
            raise UserError("--factorize.logits-weight and --factorize.hard-weight: not negative, and not both 0")
        if self.tt_rank is not None and self.tt_rank < 1:
            raise UserError(f"--factorize.tt-rank {self.tt_rank}: 1 or more; leave it out to keep the embeddings")

    def __call__(self, out: Path, *, model: Path, task: Task, teacher: Path | None = None) -> dict[str, Any]:
        from accelerate import PartialState
        from transformers import set_seed

        from hfcompress.distillation import taught_by
        from hfcompress.evaluation.accuracy import trainer_metrics
        from hfcompress.models import load_classifier, load_image_processor, load_tokenizer, save
        from hfcompress.training import train

        self.target()
        set_seed(self.seed)
        images = isinstance(task, ImageClassification)
        network = load_classifier(model, task.data.labels)
        processor: Any = load_image_processor(model) if images else load_tokenizer(model)
        measured = self.factor(network, processor, task)
        if not PartialState().is_main_process and not self.trains:
            return {}
        if self.trains:
            data = examples(task, processor, "train", self)
            progress = train(
                network,
                None if images else processor,
                out / "work",
                self,
                data,
                examples(task, processor, "validation", None),
                compute_metrics=trainer_metrics,
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
            raise UserError(
                "--factorize.energy, --factorize.keep-bytes, --factorize.keep-flops: give exactly one of them "
                f"({len(given)} are given; None takes one away)"
            )
        ((name, share),) = given.items()
        if not 0 < share <= 1:
            flag = name if name == "energy" else f"keep-{name}"
            raise UserError(f"--factorize.{flag} {share:g}: a share above 0 (a rank of 0 keeps nothing) and up to 1")
        return name, share

    def factor(self, network: Any, processor: Any, task: Task) -> dict[str, Any]:
        """Put factors into the network, which then knows its edits; returns what was done.

        Raises:
            UserError: it has factors already, it has nothing to factor, or no ranks meet the target.
        """
        from accelerate.utils import broadcast_object_list

        from hfcompress import bert
        from hfcompress.factorization import find_layers, is_factored, layer_options, put, put_tensor_train, watch
        from hfcompress.surgery import edits_of

        if is_factored(network):
            raise UserError("--factorize: the model consists of factors already; give the one that it was made from")
        names = None
        if not isinstance(task, ImageClassification):
            bert.require_bert(network)
            names = bert.linear_names(network)
        found, left_alone = find_layers(network, names)
        seen = watch(network, found, self.calibration(task, processor), self.kind, self.weighted)
        layers, done = [], []
        for name in found:
            try:
                layers.append(layer_options(network, name, self.kind, seen[name]))
            except ValueError as error:  # a layer that no example reaches
                left_alone[name] = str(error)
        chosen, edits = broadcast_object_list(self.choose(layers)), []  # of unlike machines the main one's
        for layer, option in zip(layers, chosen, strict=True):
            done.append(described(layer, option))
            if option.ranks is not None:
                edits.append(put(network, layer, option.ranks))
        if self.tt_rank is not None:
            edits.append(self.put_embeddings(network, task, put_tensor_train))
        if not edits:
            raise UserError("--factorize: no layer becomes smaller by these ranks; ask for less to be kept")
        network.edits = [*edits_of(network), *edits]
        return {"layers": done, "left_alone": left_alone, **totals(layers, chosen)}

    def choose(self, layers: "list[Layer]") -> "list[Option]":
        """An option for each layer, by energy or by the budget."""
        from hfcompress.factorization import by_budget, by_energy, least

        measure, share = self.target()
        if not layers:
            raise UserError("--factorize: the model has no linear layer or convolution that can be factored")
        if measure == "energy":
            return by_energy(layers, share)
        chosen = by_budget(layers, measure, share)
        if chosen is None:
            raise UserError(
                f"--factorize.keep-{measure} {share:g}: factors of the lowest ranks leave "
                f"{least(layers, measure):.3g}; give more than that"
            )
        return chosen

    def put_embeddings(self, network: Any, task: Task, put: Any) -> dict[str, Any]:
        if isinstance(task, ImageClassification):
            raise UserError(f"--factorize.tt-rank {self.tt_rank}: an image classifier has no word embeddings")
        try:
            return dict(put(network, "bert.embeddings.word_embeddings", self.tt_rank))
        except ValueError as error:
            raise UserError(f"--factorize.tt-rank {self.tt_rank}: {error}") from None

    def calibration(self, task: Task, processor: Any) -> "Iterator[dict[str, Tensor]]":
        """Batches of training examples without their labels, evenly over the classes.

        Raises:
            UserError: fewer examples than classes, so that a class would not be seen.
        """
        import torch

        classes = len(task.data.labels)
        if self.calibration_examples < classes:
            raise UserError(
                f"--factorize.calibration-examples {self.calibration_examples}: the task has {classes} classes, and "
                "each is to be seen; give at least as many"
            )
        data: Any = examples(task, processor, "train", None)
        rows = evenly(task.data.label_ids("train"), self.calibration_examples)
        for start in range(0, len(rows), CALIBRATION_BATCH):
            part = [data[row] for row in rows[start : start + CALIBRATION_BATCH]]
            if isinstance(task, ImageClassification):
                yield {"pixel_values": torch.stack([row["pixel_values"] for row in part])}
            else:
                names = ("input_ids", "attention_mask", "token_type_ids")
                texts = [{name: row[name] for name in names if name in row} for row in part]
                yield dict(processor.pad(texts, return_tensors="pt"))

    def predict(self, model: Any, *, task: Any = None, teacher: Any = None) -> Any:
        """The shape with that share of its linear layers.

        Raises:
            UnknownShape: the ranks follow from an energy, which only the weights say.
        """
        measure, share = self.target()
        if not isinstance(model, Shape):
            raise UnknownShape("--factorize: what ranks leave of an image classifier is known when it has been read")
        if self.tt_rank is not None:
            from hfcompress.ops.tensor_train import train_weights

            model = model.with_(word_weights=train_weights(model.vocab_size, model.hidden_size, self.tt_rank))
        if measure == "energy":
            raise UnknownShape("--factorize.energy: which ranks hold it is known when the model has been read")
        return model.with_(format="surgery", linear_share=share)


def examples(task: Task, processor: Any, split: str, options: TrainImages | None) -> Any:
    """The split as the Trainer reads it, images varied as the options say."""
    if isinstance(task, ImageClassification):
        return task.data.examples(processor, split, None if options is None else options.augment)
    return task.data.encode(processor, task.max_length, split)


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
