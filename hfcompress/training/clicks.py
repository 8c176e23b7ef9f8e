"""Training a click model: one loop for the baseline and for what is fine-tuned after its tables were compressed."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.architectures.click_inputs import inputs_of, new_config
from hfcompress.errors import OptionError, Reason, UserError, require_numbers
from hfcompress.tasks.click_log import ClickLog
from hfcompress.tasks.tabular_classification import IDS
from hfcompress.training.click_checkpoint import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    import numpy as np
    import torch

    from hfcompress.architectures.click_model import ClickModel

UNKNOWN = -1  # an id that no table has


@dataclass(frozen=True)
class ClickTrain:
    """How a click model is trained; the Trainer's names where they mean the same."""

    num_train_epochs: float = 1.0
    learning_rate: float = 2e-3
    """Of the towers, and of dense matrices in the tables."""
    table_learning_rate: float = 1e-2
    """Of the tables' rows, by lazy Adam: a row moves when it is read."""
    train_batch_size: int = 2048
    id_dropout: float = 0.02
    """Share of the ids that are taken for unknown, so that the unknown row learns what to say."""
    conversion_weight: float = 0.5
    """Of the conversions' loss beside the clicks'."""
    saves: int = 4
    """Checkpoints on the way: a training that was killed goes on at the last one."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(self)
        if not 0 <= self.id_dropout < 1:
            raise OptionError("id_dropout", "from 0 to below 1", self.id_dropout)
        if self.train_batch_size < 1 or self.num_train_epochs <= 0 or self.saves < 0:
            raise UserError(Reason("{train_batch_size} and {num_train_epochs} must be above 0, {saves} 0 or more"))


def fit(
    network: "ClickModel",
    log: ClickLog,
    options: ClickTrain,
    work: Path | None = None,
    teacher: "np.ndarray[Any, Any] | None" = None,
    soft_share: float = 0.5,
) -> dict[str, Any]:
    """Train in place.

    Args:
        work: where checkpoints go; a training that was killed goes on at the last one. None: there are none.
        teacher: [rows, 2] logits of the model that the network is to resemble; `soft_share` of the targets is what
            it says, the rest what happened.

    Returns: steps, rows, the mean loss of the first and the last tenth of the steps, and resumed_at_step.

    Raises:
        UserError: the loss is not finite.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    inputs = {name: torch.from_numpy(array) for name, array in inputs_of(log).items()}
    targets = targets_of(log, teacher, soft_share)
    optimizers = optimizers_of(network, options)
    steps = max(1, round(options.num_train_epochs * len(log) / options.train_batch_size))
    begun, losses = load_checkpoint(work, network, optimizers) if work else (0, [])
    every = -(-steps // (options.saves + 1))
    batches = Batches(len(log), options)
    network.train()
    bar = tqdm(range(begun, steps), desc="  training", disable=None, file=sys.stderr, initial=begun, total=steps)
    for step in bar:
        rows = batches.rows(step)
        batch = batches.with_unknown(step, {name: tensor[rows] for name, tensor in inputs.items()})
        losses.append(update(network, batch, targets[rows], optimizers, options, 1 - step / steps))
        if not np.isfinite(losses[-1]):
            raise UserError(Reason("the loss is not finite at step {step}; lower {learning_rate}", step=step + 1))
        if work and (step + 1) % every == 0 and step + 1 < steps:
            save_checkpoint(work, step + 1, network, optimizers, losses)
    network.eval()
    tenth = max(1, steps // 10)
    return {
        "steps": steps,
        "rows": steps * options.train_batch_size,
        "first_loss": float(np.mean(losses[:tenth])),
        "last_loss": float(np.mean(losses[-tenth:])),
        "resumed_at_step": begun,
    }


def targets_of(log: ClickLog, teacher: "np.ndarray[Any, Any] | None", soft_share: float) -> "torch.Tensor":
    """[rows, 2]: what happened, and for a share of it what a teacher says would."""
    import numpy as np
    import torch

    happened = torch.from_numpy(np.stack([log.click, log.conversion], axis=1).astype(np.float32))
    if teacher is None:
        return happened
    return (1 - soft_share) * happened + soft_share * torch.from_numpy(teacher).sigmoid()


class Batches:
    """Which rows a step reads and which ids it takes for unknown: from the seed and the step alone."""

    def __init__(self, rows: int, options: ClickTrain) -> None:
        self.count, self.options = rows, options
        self.an_epoch = max(1, rows // options.train_batch_size)
        self.epoch = -1
        self.order: torch.Tensor | None = None

    def rows(self, step: int) -> "torch.Tensor":
        """[batch]; every epoch has an order of its own, and leaves out the rows that fill no batch."""
        import numpy as np
        import torch

        epoch, place = divmod(step, self.an_epoch)
        if epoch != self.epoch or self.order is None:
            order = np.random.default_rng([self.options.seed, epoch]).permutation(self.count)
            self.epoch, self.order = epoch, torch.from_numpy(order)
        return self.order[place * self.options.train_batch_size :][: self.options.train_batch_size]

    def with_unknown(self, step: int, batch: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """The batch with a share of its ids unknown."""
        import torch

        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step)
        for name in IDS:
            drop = torch.rand(len(batch[name]), generator=generator) < self.options.id_dropout
            batch[name] = torch.where(drop, UNKNOWN, batch[name])
        return batch


def update(
    network: "ClickModel",
    batch: "dict[str, torch.Tensor]",
    targets: "torch.Tensor",
    optimizers: "list[torch.optim.Optimizer]",
    options: ClickTrain,
    share: float,
) -> float:
    """One step, at this share of the learning rates; its loss."""
    import torch

    logits = network(**batch)
    weight = torch.tensor([1.0, options.conversion_weight]).expand_as(logits)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, weight=weight)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        optimizer.step()
    return float(loss.detach())


def optimizers_of(network: "ClickModel", options: ClickTrain) -> "list[torch.optim.Optimizer]":
    """Lazy Adam for what is looked up by row, Adam for the rest; both remember their first learning rate."""
    import torch

    looked_up: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in network.named_parameters():
        dense = name.startswith("towers.") or name.endswith(".b") or ".projections." in name
        (rest if dense else looked_up).append(parameter)
    found: list[torch.optim.Optimizer] = [
        torch.optim.SparseAdam(looked_up, lr=options.table_learning_rate),
        torch.optim.Adam(rest, lr=options.learning_rate),
    ]
    for optimizer in found:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return found


def new_click_model(rows: dict[str, int], dim: int, bottom: int, top: tuple[int, ...], unknown: str) -> "ClickModel":
    """A model with whole tables, its weights drawn by torch's generator."""
    import torch

    from hfcompress.architectures.click_model import ClickModel

    network = ClickModel(new_config(rows, dim, bottom, top, unknown))
    for table in network.tables.values():
        torch.nn.init.normal_(table.weight, std=0.05)
    return network
