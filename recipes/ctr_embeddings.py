"""ctr_embeddings: a click model whose bytes are its id embeddings, ten times smaller, and accepted like a rollout."""

from pathlib import Path
from typing import Any

from hfcompress.budget import ClickBudget
from hfcompress.compress.embeddings.tables import CompressEmbeddings
from hfcompress.compress.quantize.towers import QuantizeTowers
from hfcompress.errors import UserError
from hfcompress.evaluation.measure_clicks import MeasureClicks
from hfcompress.formats.click_onnx import ExportClicks
from hfcompress.rollout.stage import Rollout
from hfcompress.runs.run import Run
from hfcompress.tasks.tabular_classification import GENERATED, Clicks
from hfcompress.training.train_clicks import TrainClicks

SCALES = ("small", "full")
CURVE = (
    "rows-8-3.7", "rows-4-7",
    "factorized-32-2", "factorized-8-5", "factorized-8-10", "factorized-8-20", "factorized-8-30",
    "hashed-8-5", "hashed-8-10", "hashed-8-20", "hashed-8-50", "hashed-8-100",
    "quotient_remainder-8-5", "quotient_remainder-8-10", "quotient_remainder-8-20", "quotient_remainder-8-50",
    "quotient_remainder-8-100",
    "mixed-8-5", "mixed-8-10", "mixed-8-15",
)  # fmt: skip
GENERATED_NOTE = (
    "The click log is generated: its ids, clicks and effects come out of a random generator (tasks/click_log.py). It "
    "says how the ways of compression compare where the truth is known, and nothing about any real traffic."
)


def recipe(
    run: Run,
    task: Clicks = Clicks(),
    budget: ClickBudget = ClickBudget(disk_mb=2.1, drop={"auc": 0.005, "ctr": 0.005}),
    train: TrainClicks = TrainClicks(),
    compress: CompressEmbeddings = CompressEmbeddings(),
    towers: QuantizeTowers = QuantizeTowers(),
    measure: MeasureClicks = MeasureClicks(),
    rollout: Rollout = Rollout(),
    curve: tuple[str, ...] = CURVE,
) -> dict[str, Any]:
    """Train a click model, compress its embeddings, quantize its towers, and hold what onnxruntime runs to a budget.

    Args:
        task: the click log.
        budget: the limits that the int8 ONNX model is held against.
        train: the model with whole tables.
        compress: how the delivered model's tables are compressed.
        towers: how its towers are brought to int8.
        measure: how the models are measured.
        rollout: the shadow and the A/B test.
        curve: other ways and ratios that are measured beside it, as KIND-BITS-RATIO.
    """
    baseline = run(train, task=task, name="baseline")
    whole = run(ExportClicks(), model=baseline, task=task, name="baseline-onnx")
    points = []
    for point in curve:
        other = run(CompressEmbeddings(**point_of(point)), model=baseline, task=task, name=f"{point}x-torch")
        points.append(run(ExportClicks(), model=other, task=task, name=f"{point}x"))
    small = run(compress, model=baseline, task=task, name="compressed-torch")
    compressed = run(ExportClicks(), model=small, task=task, name="compressed")
    quantized = run(towers, model=small, teacher=baseline, task=task, name="int8-torch")
    int8 = run(ExportClicks(), model=quantized, task=task, name="int8")
    tried = run(rollout, old=whole, new=int8, task=task, name="rollout")
    return run.compare(
        baseline,
        whole,
        *points,
        compressed,
        int8,
        reference=whole,
        candidate=int8,
        budget=budget,
        task=task,
        measure=measure,
        notes=(GENERATED_NOTE,) if task.dataset == GENERATED else (),
        sections={"rollout": tried},
    )


def point_of(text: str) -> dict[str, Any]:
    """KIND-BITS-RATIO as the options of a stage.

    Raises:
        UserError: it is none.
    """
    try:
        kind, bits, ratio = text.rsplit("-", 2)
        if kind not in ("rows", "factorized", "hashed", "quotient_remainder", "mixed") or bits not in ("4", "8", "32"):
            raise ValueError
        return {"kind": kind, "bits": int(bits), "ratio": float(ratio)}
    except ValueError:
        raise UserError(f"--curve {text}: KIND-BITS-RATIO, such as factorized-8-20") from None


def arguments(scale: str, folder: Path) -> dict[str, Any]:
    """What a scale changes of the recipe's defaults; `folder` is the run's."""
    return {"small": small, "full": full, "smoke": smoke}[scale](folder)


def small(folder: Path) -> dict[str, Any]:
    """Tables of 20 MB, 1.6 million rows of training: minutes on two cores."""
    return {}


def full(folder: Path) -> dict[str, Any]:
    """Tables of 205 MB."""
    return {
        "task": Clicks(users=1_000_000, items=660_000, categories=10_000, requests=4_000_000),
        "budget": ClickBudget(disk_mb=21, drop={"auc": 0.005, "ctr": 0.005}),
    }


def smoke(folder: Path) -> dict[str, Any]:
    """A few thousand ids: every stage, in less than a minute."""
    return {
        "task": Clicks(users=2_000, items=3_000, categories=20, requests=6_000),
        "budget": ClickBudget(disk_mb=0.12, drop={"auc": 0.05, "ctr": 0.3}),
        "train": TrainClicks(train_batch_size=256, num_train_epochs=3),
        "compress": CompressEmbeddings(train_batch_size=256),
        "towers": QuantizeTowers(train_batch_size=256),
        "measure": MeasureClicks(runs=10),
        "rollout": Rollout(tolerance="50%", shadowed=40),
        "curve": ("rows-4-6", "factorized-8-10", "hashed-8-20", "quotient_remainder-8-20"),
    }
