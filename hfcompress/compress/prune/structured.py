"""structured_prune: channels, heads and neurons cut a little, trained, cut again; the result is really smaller."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures import ENCODERS
from hfcompress.architectures.encoder_spec import Shape, linear_parameters, parameters
from hfcompress.architectures.models import load_image_processor, load_tokenizer
from hfcompress.architectures.native import named_shape
from hfcompress.compress.prune.target import Importance, Plan, Ranking, one_target
from hfcompress.errors import OptionError, Reason, UnknownShape, UserError, require, require_threads
from hfcompress.evaluation.accuracy import trainer_metrics
from hfcompress.planning.image_spec import ImageShape
from hfcompress.planning.machine import Machine
from hfcompress.stage import TRAINING
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.task import Labelled
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune_images import TrainImages
from hfcompress.training.trainer import Train, TrainTexts, require_teaching, train, unused_by_teaching

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from hfcompress.architectures.layers import Batch
    from hfcompress.training.trainer import Examples


@dataclass(frozen=True)
class StructuredPruning(Train, ABC):
    """What the stages for texts and for images share.

    The least important units are cut, the model is trained, and so on until the target is met (Li et al. 2017, section
    3.4). Exactly one of the four keep options says what is to be left. The training options are those after the last
    cut.
    """

    keep_flops: float | None = None
    """Share of the FLOPs for one example that is to be left."""
    keep_parameters: float | None = None
    """Share of the parameters."""
    keep_bytes: float | None = None
    """Share of the bytes that weights and statistics take in fp32."""
    keep_latency: float | None = None
    """Share of the milliseconds of the layers, each measured alone in onnxruntime on this machine."""
    importance: Importance = "taylor"
    """What a unit is worth: the loss's first-order change, the L1 norm of its filters, their distance from the
    geometric median, the error that is left when the other units take its place, or a random number."""
    ranking: Ranking = "global"
    """global: the lowest of all layers go; uniform: the same share of every layer."""
    reconstruct: bool = True
    """Before each cut, fit the layers that read what goes to do without it, by least squares (He et al. 2017)."""
    iterations: int = 5
    """Cuts; each leaves the same share of what it finds."""
    epochs_between: float = 0.5
    """Passes over the training data after each cut but the last."""
    round_to: int = 1
    """Every layer keeps a multiple of so many units, and at least so many."""
    scored_batches: int = 8
    """Training batches that Taylor's gradients are taken from, and that layers are fitted on."""
    temperature: float = 2.0
    logits_weight: float = 1.0
    """Of the soft labels, where there is a teacher."""
    hard_weight: float = 1.0
    """Of the labels, where there is a teacher."""
    threads: int = 1
    """Threads that latency is measured with."""

    training: ClassVar[bool] = True
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*TRAINING, "torch-pruning")

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        found = super().unused(inputs) | unused_by_teaching(self, {"teacher": None} | inputs)
        if self.iterations == 1:
            found["epochs_between"] = Reason("with {iterations} 1")
        if self.keep_latency is None:
            found["threads"] = Reason("without {keep_latency}")
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        require_threads(self)
        require(self, 1, "iterations", "round_to", "scored_batches")
        if not self.epochs_between > 0:
            raise OptionError("epochs_between", "above 0", self.epochs_between)
        require_teaching(self, "logits_weight", "hard_weight")

    def prune(
        self, out: Path, model: Path, task: Labelled, teacher: Path | None, states_weight: float
    ) -> dict[str, Any]:
        """Cut and train as `__call__` is asked to.

        Args:
            states_weight: of an image teacher's states in the loss.
        """
        from accelerate import PartialState
        from transformers import set_seed

        from hfcompress.architectures.models import load_classifier, save
        from hfcompress.compress.factorize.ranks import is_factored
        from hfcompress.compress.prune.iterations import prune
        from hfcompress.training.losses import taught_by

        plan = self.plan()
        set_seed(self.seed)
        network = load_classifier(model, task.data.labels)
        if is_factored(network):
            raise UserError(f"{model.name} has low-rank factors, which cannot be pruned: prune first, then factorize")
        whole = load_classifier(model, task.data.labels)
        processor, data, validation, batches = self.examples(model, task)
        loss = None
        if teacher is not None:
            loss = taught_by(teacher, self, out / "work", model, task, data, states_weight)

        def finetune(pruned: Any, work: Path, number: int) -> dict[str, Any]:
            last = number == self.iterations
            options = self if last else replace(self, num_train_epochs=self.epochs_between, max_steps=-1)
            return train(
                pruned,
                task.padded_by(processor),
                work,
                options,
                data,
                validation if last else None,
                compute_metrics=trainer_metrics(task),
                best_metric=task.metric if last else None,
                loss=loss,
            ).as_dict()

        plan = replace(plan, roots=self.roots(network, batches))
        measured = prune(network, plan, out / "work", batches, own_loss, finetune, Machine(self.threads))
        if PartialState().is_main_process:
            measured["saved_as"] = named_shape(whole, network)
            save(network, processor, out)
        return measured["iterations"][-1]["training"] | measured

    @abstractmethod
    def examples(self, model: Path, task: Any) -> "tuple[Any, Examples, Examples, list[Batch]]":
        """The model's processor, what it is trained and validated on, and labelled batches of unvaried examples."""

    @abstractmethod
    def roots(self, network: "PreTrainedModel", batches: "list[Batch]") -> tuple[str, ...] | None:
        """The layers that write what may be cut; None for all groups."""

    def scored(self, plain: Any, pad: Any) -> "list[Batch]":
        """Some batches of examples, drawn at random."""
        import torch

        order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(self.seed)).tolist()
        size = self.per_device_train_batch_size
        parts = [order[i : i + size] for i in range(0, min(len(order), self.scored_batches * size), size)]
        return [dict(pad([plain[row] for row in part])) for part in parts]

    def plan(self) -> Plan:
        """What is to be left, and by which ranking.

        Raises:
            UserError: not exactly one target is given.
        """
        measure, keep = one_target(
            {
                "flops": self.keep_flops,
                "parameters": self.keep_parameters,
                "bytes": self.keep_bytes,
                "latency": self.keep_latency,
            }
        )
        return Plan(
            measure,
            keep,
            self.importance,
            self.ranking,
            self.iterations,
            self.round_to,
            self.seed,
            reconstruct=self.reconstruct,
        )


@dataclass(frozen=True)
class StructuredPrune(StructuredPruning, TrainTexts):
    """Cut attention heads and feed-forward neurons of an encoder, train, and repeat until the target is met."""

    heads: bool = True
    """Cut attention heads."""
    neurons: bool = True
    """Cut feed-forward neurons."""
    cache: bool = True
    """Compute the teacher's outputs once and keep them on disk while the stage runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.heads and not self.neurons:
            raise UserError(Reason("{heads} and {neurons}: one of them at least"))

    def __call__(
        self, out: Path, *, model: Path, task: TextClassification, teacher: Path | None = None
    ) -> dict[str, Any]:
        return self.prune(out, model, task, teacher, states_weight=0.0)

    def roots(self, network: "PreTrainedModel", batches: "list[Batch]") -> tuple[str, ...]:
        """Those of heads and of neurons.

        Raises:
            UserError: a text classifier of no known architecture, or one whose heads cannot go.
        """
        from hfcompress.architectures import encoders

        encoder = encoders.encoder_of(network)
        self._require_heads(network.config.model_type)
        kinds = [(encoder.query, self.heads), (encoder.neurons_input, self.neurons)]
        layers = [f"{encoder.body}.{encoder.layers}.{i}" for i in range(len(encoders.layers(network)))]
        return tuple(f"{layer}.{name}" for layer in layers for name, wanted in kinds if wanted)

    def examples(self, model: Path, task: TextClassification) -> "tuple[Any, Examples, Examples, list[Batch]]":
        from transformers import DataCollatorWithPadding

        tokenizer = load_tokenizer(model)
        data, validation = (task.data.encode(tokenizer, task.max_length, split) for split in ("train", "validation"))
        plain = data.select_columns([n for n in data.column_names if n not in ("index", "length", "group")])
        return tokenizer, data, validation, self.scored(plain, DataCollatorWithPadding(tokenizer))

    def predict(self, model: Shape, *, task: Any = None, teacher: Any = None) -> Shape:
        """The shape with fewer neurons that meets the target, whichever units will go in the end.

        Raises:
            UserError: an architecture whose heads cannot go, before anything is trained.
        """
        plan = self.plan()
        self._require_heads(model.model_type)
        return fewer_neurons(model, plan)

    def _require_heads(self, model_type: str) -> None:
        if self.heads and not ENCODERS[model_type].heads_cut_in_place:
            reason = "heads of a {model_type} are not cut one by one here; give {heads:no}"
            raise OptionError("heads", reason, model_type=model_type)


@dataclass(frozen=True)
class StructuredPruneImages(StructuredPruning, TrainImages):
    """Cut channels of an image classifier, train, and repeat until the target is met.

    An image teacher sees the varied images and runs along.
    """

    states_weight: float = 0.0
    """Of what the teacher's stages or blocks give, against the pruned model's; above 0 residual streams stay."""
    round_to: int = 8
    """Every layer keeps a multiple of so many channels, and at least so many: between multiples of 4, onnxruntime's
    blocked convolutions do not apply, and a pruned model takes longer than a whole one."""

    def __call__(
        self, out: Path, *, model: Path, task: ImageClassification, teacher: Path | None = None
    ) -> dict[str, Any]:
        return self.prune(out, model, task, teacher, self.states_weight)

    def roots(self, network: "PreTrainedModel", batches: "list[Batch]") -> tuple[str, ...] | None:
        """Channels within the blocks, where the states are to be kept."""
        from hfcompress.compress.prune.channel_groups import find_groups, inner_roots
        from hfcompress.compress.prune.iterations import first_inputs

        if not self.states_weight:
            return None
        return inner_roots(network, find_groups(network, first_inputs(network, batches, 1))[0])

    def examples(self, model: Path, task: ImageClassification) -> "tuple[Any, Examples, Examples, list[Batch]]":
        from transformers import default_data_collator

        processor = load_image_processor(model)
        data = task.data.examples(processor, "train", self.augment)
        batches = self.scored(task.data.examples(processor, "train"), default_data_collator)
        return processor, data, task.data.examples(processor, "validation"), batches

    def predict(self, model: ImageShape, *, task: Any = None, teacher: Any = None) -> ImageShape:
        """The shape with the target's share of the FLOPs.

        Raises:
            UnknownShape: the target is no share of the FLOPs.
            UserError: states are to be compared where there are none.
        """
        plan = self.plan()
        if self.states_weight and teacher is None:
            raise OptionError("states_weight", "for models that have a teacher", self.states_weight)
        if plan.measure != "flops":
            raise UnknownShape(Reason(f"{{keep_{plan.measure}}}: what it leaves of an image model is known later"))
        uniform = plan.ranking == "uniform" and (model.uniform or not model.is_pruned)
        return model.with_(keep_flops=model.keep_flops * plan.keep, uniform=uniform, round_to=plan.round_to)


def own_loss(network: Any, batch: "Batch") -> "torch.Tensor":
    """The model's own cross-entropy."""
    loss: torch.Tensor = network(**{name: tensor for name, tensor in batch.items() if name != "index"}).loss
    return loss


def fewer_neurons(model: Shape, plan: Plan) -> Shape:
    """The most neurons a layer with which the encoder's matrices (or, as asked, all parameters) meet the target.

    Which heads and neurons go is decided by the data; a model that meets the target with heads costs the same.
    """
    cost = parameters if plan.measure in ("parameters", "bytes") else linear_parameters
    sizes = range(model.intermediate_size, 0, -1)
    limit = plan.keep * cost(model)
    fitting = (n for n in sizes if cost(model.with_(intermediate_size=n)) <= limit)
    return model.with_(intermediate_size=next(fitting, 1))
