"""Train, TrainTexts: the options that training stages share, and the one Trainer call behind all of them."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from hfcompress.errors import OptionError, Reason, UserError, require, require_numbers
from hfcompress.ops.precision import use_bf16
from hfcompress.training.reporters import require_reporter

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

    Examples: TypeAlias = "Dataset | torch.utils.data.Dataset[dict[str, Any]]"  # rows, or a dict an index
    Loss = Callable[[PreTrainedModel, dict[str, torch.Tensor]], torch.Tensor]
    ParameterGroups = Callable[[PreTrainedModel], list[dict[str, Any]]]

BARRIER = timedelta(hours=12)
PADDING_UNIT = 8
SEEDS = 2**32  # that numpy takes
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values", "labels")


@dataclass(frozen=True)
class Train:
    """Names and meanings are those of `transformers.TrainingArguments`."""

    num_train_epochs: float = 3.0
    """Passes over the training data (when max_steps is not given)."""
    max_steps: int = -1
    """Optimizer steps; -1 means as many as num_train_epochs says."""
    learning_rate: float = 5e-5
    per_device_train_batch_size: int = 32
    """Examples a process and a step; the global batch is this times processes times gradient_accumulation_steps."""
    gradient_accumulation_steps: int = 1
    warmup_ratio: float = 0.06
    weight_decay: float = 0.01
    label_smoothing_factor: float = 0.0
    bf16: Literal["auto", "yes", "no"] = "auto"
    """bf16 autocast; auto turns it on where the GPU, or the CPU (AVX512-BF16 or AMX), computes in it."""
    saves_per_epoch: int = 2
    """Checkpoints an epoch: what a killed run loses at most."""
    seed: int = 42
    report_to: str = "none"
    """Where the Trainer reports to: none, tensorboard, wandb, ..."""

    def __post_init__(self) -> None:
        """What is refused of these options; subclasses begin with it.

        Raises:
            UserError: an option out of its range.
        """
        require_numbers(self, "max_steps")
        require(self, 1, "per_device_train_batch_size", "gradient_accumulation_steps", "saves_per_epoch")
        for name in ("warmup_ratio", "label_smoothing_factor"):
            if not getattr(self, name) < 1:
                raise OptionError(name, "from 0 to below 1", getattr(self, name))
        if self.max_steps < 1 and self.max_steps != -1:
            raise OptionError("max_steps", "at least 1, or -1 for as many as {num_train_epochs} says", self.max_steps)
        if self.seed >= SEEDS:
            raise OptionError("seed", f"below {SEEDS}", self.seed)
        require_reporter(self.report_to)

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`; subclasses add theirs."""
        return {"num_train_epochs": Reason("with {max_steps} {n}", n=self.max_steps)} if self.max_steps > 0 else {}


@dataclass(frozen=True)
class TrainTexts(Train):
    """The same, and what only means something for texts."""

    mask_probability: float = 0.0
    """Share of a training text's tokens that are [MASK] instead, drawn anew each step: word dropout (Iyyer 2015)."""
    group_by_length: bool = True
    """Batches of texts of similar length: less padding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mask_probability < 1:
            raise OptionError("mask_probability", "from 0 to below 1", self.mask_probability)


def require_teaching(options: Any, *weights: str) -> None:
    """Refuse a loss of nothing, and soft labels at no temperature.

    Args:
        options: has `temperature`; weights: its names of the loss's parts.

    Raises:
        UserError: the temperature is 0, or all weights are.
    """
    if not options.temperature > 0:
        raise OptionError("temperature", "must be above 0", options.temperature)
    if not any(getattr(options, name) for name in weights):
        raise UserError(Reason(", ".join(f"{{{name}}}" for name in weights) + ": not all of them 0"))


def unused_by_teaching(options: Any, inputs: dict[str, Any]) -> dict[str, Reason]:
    """Which options of a loss of soft and hard labels have no effect, and why (see `stage.unused_options`).

    Args:
        options: has temperature, logits_weight, hard_weight and label_smoothing_factor.
        inputs: without a `teacher` among them the loss is that of the labels, where the stage can do without.
    """
    found = {}
    if inputs.get("teacher", True) is None:
        names = ("temperature", "logits_weight", "hard_weight", "states_weight", "cache")
        return dict.fromkeys(names, Reason("without a teacher"))
    if not options.logits_weight:
        found["temperature"] = Reason("with {logits_weight} 0")
    if not options.hard_weight:
        found["label_smoothing_factor"] = Reason("with {hard_weight} 0: the labels are not in the loss")
    return found


@dataclass
class Progress:
    """What one training did, for the record."""

    steps: int
    samples: int
    seconds: float
    final_loss: float
    best_metric: float | None
    resumed_at_step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "samples": self.samples,
            "train_seconds": round(self.seconds, 2),
            "samples_per_second": round(self.samples / self.seconds, 2) if self.seconds else None,
            "final_loss": self.final_loss,
            "best_metric": self.best_metric,
            "resumed_at_step": self.resumed_at_step,
            "history": self.history,
        }


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the Trainer writes trainer_state.json last of all."""
    steps = {int(path.name.split("-")[1]): path for path in folder.glob("checkpoint-*") if path.is_dir()}
    for step in sorted(steps, reverse=True):
        try:
            json.loads((steps[step] / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return steps[step]
    return None


def train(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    work: Path,
    options: Train,
    train_data: "Examples",
    validation: "Examples | None" = None,
    *,
    compute_metrics: "Callable[[Any], dict[str, float]] | None" = None,
    best_metric: str | None = None,
    loss: "Loss | None" = None,
    parameter_groups: "ParameterGroups | None" = None,
    callbacks: "Sequence[TrainerCallback]" = (),
) -> Progress:
    """Train `model` in place with the Trainer, on all ranks, resuming from the last whole checkpoint in `work`.

    Args:
        model: any module the Trainer takes; after the call it holds the trained weights (the best ones by
            `best_metric` on `validation` when that is given, else the last).
        tokenizer: what pads a batch of texts; None for examples that are stacked as they are, such as images.
        work: where checkpoints go; survives a kill.
        train_data, validation: columns input_ids, attention_mask (or pixel_values), labels and whatever else `loss`
            reads (scalars become tensors).
        loss: replaces the model's own loss; gets the wrapped model and the batch, returns a scalar.
        parameter_groups: optimizer groups for AdamW, when not every parameter has the same learning rate.

    Raises:
        UserError: the loss is not finite, or the launcher shards the weights.
    """
    import transformers
    from transformers import DataCollatorWithPadding, default_data_collator

    refuse_sharding()
    if validation is None or best_metric is None:
        validation, best_metric = None, None
    if tokenizer is None and isinstance(options, TrainTexts):
        options = replace(options, group_by_length=False)
    if tokenizer is None:
        require_pairs(model, options)
    odd = tokenizer is None and leaves_one(len(train_data), options)
    arguments = training_arguments(work, options, len(train_data) - odd, best_metric)
    trainer = _trainer_class()(
        model=model,
        args=arguments,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=padding_unit(model))
        if tokenizer
        else default_data_collator,
        train_dataset=train_data,
        eval_dataset=validation,
        compute_metrics=compute_metrics,
        callbacks=[*callbacks, _stop_on_nan(), _tells_epochs(train_data)],
    )
    trainer.model_accepts_loss_kwargs = False  # the loss is a mean: let the Trainer divide it by the accumulation
    trainer.own_loss = loss
    trainer.own_drop_last = odd  # batch norms cannot be trained on one small image
    trainer.own_groups = parameter_groups
    trainer.remove_callback(transformers.PrinterCallback)
    if trainer.pop_callback(transformers.trainer_callback.ProgressCallback):
        trainer.add_callback(_progress_bar())
    checkpoint = last_whole_checkpoint(work / "checkpoints")
    masked = options.mask_probability if isinstance(options, TrainTexts) else 0.0
    with masks_tokens(model, tokenizer, masked):
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # Accelerate left its bf16 autocast around `forward`: what follows (export, comparison) is to compute in fp32.
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    progress = _progress(trainer, result, options, int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    refuse_nan(result.training_loss, progress.steps, options.learning_rate)  # the mean, with steps that no log shows
    return progress


def padding_unit(model: "PreTrainedModel") -> int | None:
    """Tokens whose multiple a batch's length is, for faster kernels; None where a text could outgrow its positions."""
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    return PADDING_UNIT if positions % PADDING_UNIT == 0 else None


def require_pairs(model: "PreTrainedModel", options: Train) -> None:
    """Refuse batches of one image where batch norms are trained: they need two values of each channel.

    Raises:
        UserError: the batch size is 1.
    """
    from torch import nn

    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    if options.per_device_train_batch_size == 1 and any(isinstance(module, norms) for module in model.modules()):
        raise OptionError("per_device_train_batch_size", "batch norms are trained on two images at least; give 2", 1)


def leaves_one(examples: int, options: Train) -> bool:
    """Whether a last batch of one example is left; on several processes Accelerate fills it up."""
    from accelerate import PartialState

    return PartialState().num_processes == 1 and examples % options.per_device_train_batch_size == 1


def refuse_nan(loss: float, step: int, learning_rate: float) -> None:
    """Stop a training that has come to no number.

    Raises:
        UserError: the loss is not finite.
    """
    if not math.isfinite(loss):
        reason = (
            "the loss is {loss} at step {step}; lower {learning_rate} (it is {rate:g}) or set {bf16} no; the last "
            "checkpoint is kept"
        )
        raise UserError(Reason(reason, loss=loss, step=step, rate=learning_rate))


def refuse_sharding() -> None:
    """Stop under FSDP: what follows a training cuts, exports and saves whole weights, and would get a rank's share.

    Raises:
        UserError: accelerate was configured for FSDP.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError(
            "accelerate shards the weights (FSDP), and the stages need them whole; launch with "
            "recipes/accelerate/several_gpus.yaml, which does not"
        )


def training_arguments(work: Path, options: Train, examples: int, best_metric: str | None) -> "TrainingArguments":
    """The Trainer's arguments for training on so many examples; with a metric it is measured at every checkpoint."""
    from transformers import TrainingArguments

    from hfcompress.evaluation.metrics import metric_named

    steps_per_epoch = max(1, math.ceil(examples / global_batch(options)))
    every = max(1, steps_per_epoch // options.saves_per_epoch)
    bf16 = use_bf16(options.bf16)
    # Accelerate reads this and TrainingArguments leaves it behind: a stage after one in bf16 would compute in bf16.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"
    return TrainingArguments(
        output_dir=str(work / "checkpoints"),
        num_train_epochs=options.num_train_epochs,
        max_steps=options.max_steps,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.per_device_train_batch_size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        weight_decay=options.weight_decay,
        label_smoothing_factor=options.label_smoothing_factor,
        bf16=bf16,
        seed=options.seed,
        report_to=[] if options.report_to == "none" else options.report_to,
        use_cpu=not _has_accelerator(),
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        eval_strategy="steps" if best_metric else "no",
        eval_steps=every,
        load_best_model_at_end=best_metric is not None,
        metric_for_best_model=best_metric,
        greater_is_better=metric_named(best_metric).larger_is_better if best_metric is not None else None,
        logging_steps=10,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
        ddp_timeout=int(BARRIER.total_seconds()),
        ddp_find_unused_parameters=False,
        disable_tqdm=not progress_wanted(),
        **renamed(options),
    )


def _progress(trainer: Any, result: Any, options: Train, resumed_at_step: int) -> Progress:
    history = [{k: v for k, v in entry.items() if isinstance(v, int | float)} for entry in trainer.state.log_history]
    return Progress(
        steps=trainer.state.global_step,
        samples=trainer.state.global_step * global_batch(options),
        seconds=result.metrics.get("train_runtime", 0.0),
        final_loss=next((e["loss"] for e in reversed(history) if "loss" in e), result.training_loss),
        best_metric=trainer.state.best_metric,
        resumed_at_step=resumed_at_step,
        history=history,
    )


@contextmanager
def masks_tokens(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", probability: float
) -> Iterator[None]:
    """While `model` is in train mode, replace that share of its input tokens by [MASK], special tokens left out.

    What else reads the batch, such as a teacher, sees the whole text.

    Raises:
        UserError: the tokenizer has no mask token.
    """
    import torch

    if not probability:
        yield
        return
    if tokenizer is None or tokenizer.mask_token_id is None:
        raise OptionError("mask_probability", "there is no tokenizer with a mask token here; leave the option out")
    special, mask = torch.tensor(tokenizer.all_special_ids), tokenizer.mask_token_id

    def replace(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if not module.training:
            return None
        ids = kwargs["input_ids"]
        drawn = torch.rand(ids.shape, device=ids.device) < probability
        return args, kwargs | {"input_ids": ids.masked_fill(drawn & ~torch.isin(ids, special.to(ids.device)), mask)}

    hook = model.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def renamed(options: Train) -> dict[str, Any]:
    """Return the options that the installed transformers has under other names than the other one (4 and 5)."""
    import transformers

    grouped = isinstance(options, TrainTexts) and options.group_by_length
    if int(transformers.__version__.split(".")[0]) >= 5:
        strategy = "group_by_length" if grouped else "random"
        return {"train_sampling_strategy": strategy, "warmup_steps": options.warmup_ratio}
    return {"group_by_length": grouped, "warmup_ratio": options.warmup_ratio}


def global_batch(options: Train) -> int:
    """Examples an optimizer step over all processes."""
    from accelerate import PartialState

    return options.per_device_train_batch_size * options.gradient_accumulation_steps * PartialState().num_processes


def progress_wanted() -> bool:
    """Whether to draw bars: not when HF_HUB_DISABLE_PROGRESS_BARS says so."""
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_PROGRESS_BARS


def _has_accelerator() -> bool:
    import torch

    return bool(torch.cuda.is_available() or torch.backends.mps.is_available())


def _trainer_class() -> Any:
    """The Trainer with a loss and optimizer groups of the caller's; made here, so that importing this is quick."""
    import torch
    from transformers import Trainer
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class EpochSampler(LengthGroupedSampler):
        """An order that depends on seed and epoch alone: the same on every rank, and after a resume amid an epoch."""

        seed, epoch = 0, 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Any:
            self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
            return super().__iter__()

    class StageTrainer(Trainer):
        own_loss: Any = None
        own_groups: Any = None
        own_drop_last: bool = False

        def get_train_dataloader(self) -> Any:
            self.args.dataloader_drop_last = self.own_drop_last
            loader = super().get_train_dataloader()
            self.args.dataloader_drop_last = False  # which is that of evaluation, too
            return loader

        def _get_train_sampler(self, *arguments: Any) -> Any:
            sampler = super()._get_train_sampler(*arguments)
            if isinstance(sampler, LengthGroupedSampler):
                lengths = list(sampler.lengths)  # a column of datasets reads its table for each number
                sampler = EpochSampler(sampler.batch_size, lengths=lengths)
                sampler.seed = self.args.seed
            return sampler

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            if self.own_loss is not None and model.training and not return_outputs:
                return self.own_loss(model, inputs)
            inputs = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
            return super().compute_loss(model, inputs, return_outputs, **kwargs)

        def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return super().prediction_step(
                model, {name: inputs[name] for name in MODEL_INPUTS if name in inputs}, *args, **kwargs
            )

        def create_optimizer(self, *model: Any) -> Any:
            if self.own_groups is not None:
                self.optimizer: Any = torch.optim.AdamW(self.own_groups(self.model), lr=self.args.learning_rate)
            return super().create_optimizer(*model)

    return StageTrainer


def _progress_bar() -> Any:
    """The Trainer's bar with the numbers at its end: standard output is for data."""
    from transformers.trainer_callback import ProgressCallback

    from hfcompress.evaluation.metrics import METRICS

    class Bar(ProgressCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            names = ("loss", *(f"eval_{metric}" for metric in METRICS))
            if self.training_bar is not None and logs:
                self.training_bar.set_postfix({name: f"{logs[name]:.4f}" for name in names if name in logs})

    return Bar


def _tells_epochs(data: Any) -> Any:
    """Tell the data which pass over it begins, where it asks for that: also after a resume amid one."""
    from transformers import TrainerCallback

    class TellsEpochs(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if tell := getattr(data, "set_epoch", None):
                tell(int(state.epoch or 0))

    return TellsEpochs()


def _stop_on_nan() -> Any:
    from transformers import TrainerCallback

    class StopOnNan(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            refuse_nan((logs or {}).get("loss", 0.0), state.global_step, args.learning_rate)

    return StopOnNan()
