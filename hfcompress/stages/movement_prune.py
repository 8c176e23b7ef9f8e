"""movement_prune: heads, neurons and residual dimensions pruned while distilling; the result is really smaller."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.errors import UserError
from hfcompress.shape import Shape
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training import Train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-3  # logits of the cut model against the masked one, fp32


@dataclass(frozen=True)
class MovementPrune(Train):
    """Movement pruning (Sanh et al. 2020) of whole structures, with the teacher's soft labels.

    Every layer keeps the same number of heads and neurons, and the hidden size shrinks with the heads (heads x head
    size): that is the shape a stock BERT can have.
    """

    num_attention_heads: int = 8
    """Heads that every layer keeps; the hidden size becomes this times the head size."""
    intermediate_size: int = 1024
    """Feed-forward neurons that every layer keeps."""
    importance: Literal["movement", "magnitude", "l1"] = "movement"
    """What is kept: where the weights move away from zero, or (baselines) where they are large."""
    score_learning_rate: float = 1e-2
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

    def __call__(self, out: Path, *, model: Path, teacher: Path, task: TextClassification) -> dict[str, Any]:
        import torch
        from transformers import set_seed

        from hfcompress.distillation import label_loss
        from hfcompress.models import load_classifier, load_tokenizer, save
        from hfcompress.pruning import Pruner
        from hfcompress.teacher_outputs import Wanted, teacher_outputs
        from hfcompress.training import train

        set_seed(self.seed)
        tokenizer = load_tokenizer(model)
        network = load_classifier(model, task.data.labels)
        self._check(network)
        pruner = Pruner(
            network, self.num_attention_heads, self.intermediate_size, self.importance, self.warm_up, self.cool_down
        )
        data = task.data.encode(tokenizer, task.max_length, "train")
        outputs = teacher_outputs(out / "work", teacher, data, Wanted(), cache=self.cache)
        progress = train(
            network,
            tokenizer,
            out / "work",
            self,
            data,
            loss=label_loss(
                outputs, temperature=self.temperature, logits_weight=self.logits_weight, hard_weight=self.hard_weight
            ),
            parameter_groups=self.parameter_groups,
            callbacks=[pruner.callback()],
        )
        pruner.finish()
        probe = {
            "input_ids": torch.arange(5, 5 + 16)[None] % network.config.vocab_size,
            "attention_mask": torch.ones(1, 16, dtype=torch.long),
        }
        network.cpu().eval()
        with torch.inference_mode():
            masked = network(**probe).logits
        slim = pruner.cut()
        with torch.inference_mode():
            distance = float((slim(**probe).logits - masked).abs().max())
        if distance > TOLERANCE:
            raise RuntimeError(f"the cut model's logits differ by {distance:.2g} from the masked model's")
        save(slim, tokenizer, out)
        return progress.as_dict() | {
            "kept": pruner.kept_as_lists(),
            "schedule": pruner.history,
            "largest_difference_of_cut_to_masked": distance,
        }

    def predict(self, model: Shape, *, teacher: Shape, task: TextClassification) -> Shape:
        size = model.hidden_size // model.num_attention_heads
        return model.with_(
            num_attention_heads=self.num_attention_heads,
            hidden_size=self.num_attention_heads * size,
            intermediate_size=self.intermediate_size,
        )

    def _check(self, network: "PreTrainedModel") -> None:
        from hfcompress import bert

        bert.require_bert(network)
        config = network.config
        bert.check_shape("prune", bert.head_size(network), self.num_attention_heads, None, config.num_attention_heads)
        if not 1 <= self.intermediate_size <= config.intermediate_size:
            raise UserError(
                f"--prune.intermediate-size {self.intermediate_size}: from 1 to {config.intermediate_size} "
                "(the student's)"
            )
        if self.warm_up + self.cool_down >= 1:
            raise UserError(
                f"--prune.warm-up {self.warm_up:g} and --prune.cool-down {self.cool_down:g}: together below 1"
            )

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
