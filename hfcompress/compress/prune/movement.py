"""movement_prune: heads, neurons and residual dimensions pruned while distilling; the result is really smaller."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.subnetworks import narrowed
from hfcompress.errors import CheckFailed, Reason, UserError
from hfcompress.evaluation.accuracy import trainer_metrics
from hfcompress.stage import TRAINING
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.trainer import TrainTexts, require_teaching, train, unused_by_teaching

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfcompress.compress.prune.pruner import Pruner

PROBED_TEXTS = 64
TOLERANCE = 1e-3  # logits of the cut model against the masked one, fp32


@dataclass(frozen=True)
class MovementPrune(TrainTexts):
    """Movement pruning (Sanh et al. 2020) of whole structures, with the teacher's soft labels.

    Every layer keeps the same number of heads and neurons, and the hidden size shrinks with the heads (heads x head
    size): that is the shape a stock class can have.
    """

    num_attention_heads: int = 8
    """Heads that every layer keeps; the hidden size becomes this times the head size."""
    intermediate_size: int = 1024
    """Feed-forward neurons that every layer keeps."""
    importance: Literal["movement", "magnitude", "l1"] = "movement"
    """What is kept: where the weights move away from zero, or (baselines) where they are large."""
    score_learning_rate: float = 1e-2
    """Of the movement scores; it follows the same schedule as learning_rate."""
    warm_up: float = 0.1
    """Share of the steps before pruning begins."""
    cool_down: float = 0.4
    """Share of the steps, at the end, with the final masks."""
    temperature: float = 2.0
    logits_weight: float = 1.0
    hard_weight: float = 0.0
    cache: bool = True
    """Compute the teacher's outputs once, on disk; without it, for every batch anew."""

    training: ClassVar[bool] = True
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TRAINING

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        found = super().unused(inputs) | unused_by_teaching(self, inputs)
        if self.importance != "movement":
            reason = "with {importance} {kind}: no scores are learned"
            found["score_learning_rate"] = Reason(reason, kind=self.importance)
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        require_teaching(self, "logits_weight", "hard_weight")
        if self.warm_up + self.cool_down >= 1:
            reason = "{warm_up} {up:g} and {cool_down} {down:g}: shares of the steps, together below 1"
            raise UserError(Reason(reason, up=self.warm_up, down=self.cool_down))

    def __call__(self, out: Path, *, model: Path, teacher: Path, task: TextClassification) -> dict[str, Any]:
        from accelerate import PartialState
        from transformers import set_seed

        from hfcompress.architectures import encoders
        from hfcompress.architectures.models import load_classifier, load_tokenizer, save
        from hfcompress.compress.prune.pruner import Pruner
        from hfcompress.training.losses import label_loss
        from hfcompress.training.teacher_outputs import Wanted, require_same_task, teacher_outputs

        require_same_task(model, teacher)
        set_seed(self.seed)
        tokenizer, network = load_tokenizer(model), load_classifier(model, task.data.labels)
        encoders.require_native(network)
        self.predict(Shape.from_config(network.config.to_dict(), network.config.num_labels))
        pruner = Pruner(
            network, self.num_attention_heads, self.intermediate_size, self.importance, self.warm_up, self.cool_down
        )
        data = task.data.encode(tokenizer, task.max_length, "train")
        outputs = teacher_outputs(out / "work", teacher, data, Wanted(), cache=self.cache, bf16=self.bf16)
        progress = train(
            network,
            tokenizer,
            out / "work",
            self,
            data,
            loss=label_loss(
                outputs,
                temperature=self.temperature,
                logits_weight=self.logits_weight,
                hard_weight=self.hard_weight,
                label_smoothing=self.label_smoothing_factor,
            ),
            parameter_groups=self.parameter_groups,
            callbacks=[pruner.callback()],  # and no best checkpoint: before the cool-down it would not be the target's
        )
        pruner.finish()
        if not PartialState().is_main_process:
            return {}
        slim, checked = cut_and_check(pruner, tokenizer, task)
        save(slim, tokenizer, out)
        kept = pruner.kept_as_lists()
        return progress.as_dict() | checked | {"kept": kept, "schedule": pruner.schedule(progress.steps)}

    def predict(self, model: Shape, *, teacher: Shape | None = None, task: TextClassification | None = None) -> Shape:
        """The pruned shape; refuses one that cannot be, so that `plan` and `run` stop before any training."""
        return narrowed(model, num_attention_heads=self.num_attention_heads, intermediate_size=self.intermediate_size)

    def parameter_groups(self, network: Any) -> list[dict[str, Any]]:
        """Scores learn at their own rate, and neither they nor biases and LayerNorms decay."""
        groups: dict[str, list[Any]] = {"decayed": [], "plain": [], "scores": []}
        for name, parameter in network.named_parameters():
            kind = "scores" if name.startswith("pruner.") else "plain" if parameter.ndim == 1 else "decayed"
            groups[kind].append(parameter)
        return [
            {"params": groups["decayed"], "weight_decay": self.weight_decay},
            {"params": groups["plain"], "weight_decay": 0.0},
            {"params": groups["scores"], "weight_decay": 0.0, "lr": self.score_learning_rate},
        ]


def cut_and_check(
    pruner: "Pruner", tokenizer: "PreTrainedTokenizerBase", task: TextClassification
) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """The smaller model, held against the masked one on validation texts, and what was measured of it.

    Raises:
        CheckFailed: the logits differ: what was cut away was not masked, or the other way round.
    """
    import numpy as np
    from transformers import EvalPrediction

    data = task.data.encode(tokenizer, task.max_length, "validation")
    probe = data.select(range(min(len(data), PROBED_TEXTS)))
    masked = all_logits(pruner.network, tokenizer, probe)
    slim = pruner.cut()
    logits = all_logits(slim, tokenizer, data)
    distance = float((logits[: len(probe)] - masked).abs().max())
    if not distance <= TOLERANCE * max(1.0, float(masked.abs().max())):
        reason = (
            "the cut model's logits differ by {distance:.2g} from the masked model's; "
            "lower {learning_rate}, or keep more ({num_attention_heads}, {intermediate_size})"
        )
        raise CheckFailed(Reason(reason, distance=distance))
    metrics = trainer_metrics(task)(EvalPrediction(logits.numpy(), np.array(data["labels"])))
    return slim, {"validation": metrics, "largest_difference_of_cut_to_masked": distance}


def all_logits(network: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", data: "Dataset") -> "torch.Tensor":
    """Logits [rows, classes] in fp32, without dropout."""
    import torch
    from transformers import DataCollatorWithPadding

    from hfcompress.training.teacher_outputs import INPUTS

    inputs = data.select_columns([name for name in INPUTS if name in data.column_names])
    pad = DataCollatorWithPadding(tokenizer)
    network.eval()
    with torch.inference_mode():
        batches = (pad(inputs[start : start + 64]).to(network.device) for start in range(0, len(data), 64))
        return torch.cat([network(**batch).logits.float().cpu() for batch in batches])
