"""Movement pruning against magnitude and L1, whole structures, and against the paper's unstructured form.

`python -m benchmarks.pruning RUN` takes what a finished legal_bert run on its embedded data pruned, and what taught it
meanwhile, prunes with each importance to the same shape, and prints accuracy on validation and test. The unstructured
form (Sanh et al. 2020, section 4: single weights, top-v of all scores of a matrix) keeps as large a share of the
encoder's weights; its matrices hold zeros, so that neither the file nor the latency shrinks: it is a baseline and no
stage.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import TrainerCallback, set_seed

from hfcompress.architectures import encoders
from hfcompress.architectures.models import load_classifier, load_tokenizer, save
from hfcompress.compress.prune.movement import MovementPrune
from hfcompress.folders.record import cpu_name, read_json
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.ops.importance import cubic_schedule, top_share
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.losses import label_loss
from hfcompress.training.teacher_outputs import Wanted, teacher_outputs
from hfcompress.training.trainer import train

TASK = TextClassification()


class TopWeights(nn.Module):
    """Multiplies a matrix by the mask of its highest scores; the scores learn by the straight-through estimator."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros_like(weight))
        self.kept = 1.0

    def forward(self, weight: Tensor) -> Tensor:
        return weight * top_share(self.scores, self.kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--neurons", type=int, default=512)
    parser.add_argument("--epochs", type=float, default=2)
    arguments = parser.parse_args()
    records = {record["name"]: record for record in read_json(arguments.run / "details.json")["records"]}
    student, teacher = (arguments.run / records["slim"]["inputs"][role] for role in ("model", "teacher"))
    print(f"{cpu_name()}\n{'pruned by':26} {'encoder weights':>16} {'validation':>11} {'test':>7}")
    show("nothing (the student)", student, encoder_weights(student))
    with tempfile.TemporaryDirectory(dir=".", prefix="pruning-") as scratch:
        kept = 0
        for importance in ("movement", "magnitude", "l1"):
            out = Path(scratch) / importance
            (out / "work").mkdir(parents=True)
            stage = options(arguments, importance)
            stage(out, model=student, teacher=teacher, task=TASK)
            kept = encoder_weights(out)
            show(importance, out, kept)
        out = Path(scratch) / "unstructured"
        out.mkdir()
        prune_single_weights(options(arguments, "movement"), out, student, teacher, kept / encoder_weights(student))
        show("movement, single weights", out, kept)


def options(arguments: argparse.Namespace, importance: Any) -> MovementPrune:
    return MovementPrune(
        num_attention_heads=arguments.heads,
        intermediate_size=arguments.neurons,
        importance=importance,
        num_train_epochs=arguments.epochs,
        learning_rate=2e-4,
        mask_probability=0.1,
    )


def encoder_weights(folder: Path) -> int:
    """Elements of the encoder's matrices."""
    network = load_classifier(folder)
    return sum(parent.get_submodule(name).weight.numel() for parent, name in encoders.encoder_linears(network))


def prune_single_weights(stage: MovementPrune, out: Path, student: Path, teacher: Path, share: float) -> None:
    """The same schedule, losses and learning rates with a score for each weight."""
    set_seed(stage.seed)
    tokenizer, network = load_tokenizer(student), load_classifier(student)
    masks = [TopWeights(parent.get_submodule(name).weight) for parent, name in encoders.encoder_linears(network)]
    for (parent, name), mask in zip(encoders.encoder_linears(network), masks, strict=True):
        parametrize.register_parametrization(parent.get_submodule(name), "weight", mask)

    class Schedule(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            done = cubic_schedule(state.global_step, state.max_steps, stage.warm_up, stage.cool_down)
            for mask in masks:
                mask.kept = 1 - done * (1 - share)

    def groups(model: Any) -> list[dict[str, Any]]:
        scores = {id(mask.scores) for mask in masks}
        weights = [p for p in model.parameters() if id(p) not in scores]
        return [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": stage.weight_decay},
            {"params": [p for p in weights if p.ndim == 1], "weight_decay": 0.0},
            {"params": [mask.scores for mask in masks], "weight_decay": 0.0, "lr": stage.score_learning_rate},
        ]

    data = TASK.data.encode(tokenizer, TASK.max_length, "train")
    outputs = teacher_outputs(out / "work", teacher, data, Wanted())
    loss = label_loss(outputs, temperature=stage.temperature, logits_weight=stage.logits_weight, hard_weight=0.0)
    train(network, tokenizer, out / "work", stage, data, loss=loss, parameter_groups=groups, callbacks=[Schedule()])
    for parent, name in encoders.encoder_linears(network):
        parametrize.remove_parametrizations(parent.get_submodule(name), "weight", leave_parametrized=True)
    save(network, tokenizer, out)


def show(name: str, folder: Path, weights: int) -> None:
    predictor, found = Predictor(folder), []
    for split in ("validation", "test"):
        logits = predictor.logits(TASK.data.texts(split), TASK.max_length)
        found.append((logits.argmax(axis=1) == TASK.data.label_ids(split)).mean())
    print(f"{name:26} {weights:16,} {found[0]:11.3f} {found[1]:7.3f}", flush=True)


if __name__ == "__main__":
    main()
