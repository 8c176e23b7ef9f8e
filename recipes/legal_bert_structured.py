"""legal_bert_structured: legal_bert's student, smaller by structured pruning and low-rank factors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hfcompress.budget import Budget
from hfcompress.compress.distill import Distill
from hfcompress.compress.embeddings.trim_vocabulary import TrimVocabulary
from hfcompress.compress.factorize.factorize import Factorize
from hfcompress.compress.prune.movement import MovementPrune
from hfcompress.compress.prune.structured import StructuredPrune
from hfcompress.compress.quantize.qat import QAT
from hfcompress.engines import optimum
from hfcompress.evaluation.measure import Measure
from hfcompress.formats.onnx import DynamicInt8, ExportOnnx
from hfcompress.recipes import legal_bert, licence_teacher
from hfcompress.runs.run import Run
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.adopt import Adopt
from hfcompress.training.finetune import Finetune

SCALES, NEEDED, ANSWERED = ("small", "full"), legal_bert.NEEDED, legal_bert.ANSWERED


def recipe(
    run: Run,
    base: str = licence_teacher.BASE,
    teacher: str = "auto",
    student: str = "none",
    task: TextClassification = licence_teacher.TASK,
    budget: Budget = Budget(disk_mb=12, latency_ratio=0.25, drop={"accuracy": 0.02}),
    trim_vocabulary: bool = True,
    trim: TrimVocabulary = licence_teacher.TRIM,
    finetune: Finetune = Finetune(),
    distill: Distill = Distill(),
    prune: MovementPrune = MovementPrune(),
    structured: StructuredPrune = StructuredPrune(keep_flops=0.8),
    factorize: Factorize = Factorize(keep_bytes=0.75),
    low_rank: Factorize = Factorize(keep_bytes=0.6),
    qat: QAT = QAT(),
    optimum_python: Path | None = None,
    measure: Measure = Measure(),
) -> dict[str, Any]:
    """Distill a student and make it smaller by three roads, each down to int8: movement pruning, as legal_bert does;
    low-rank factors alone; and structured pruning with factors of what is left, which the budget is about.

    Args:
        base, teacher, trim_vocabulary, trim, finetune: as in legal_bert.
        student: a classifier distilled from this teacher that you have already (a folder); none: it is made here.
        task: the data.
        budget: the limits that the structured, factored int8 student is held against.
        distill: the student's shape and how it learns from the teacher.
        prune: what movement pruning leaves of the student.
        structured: which heads and neurons are left, other numbers in every layer.
        factorize: which ranks are then left of each layer.
        low_rank: which ranks are left of the student where nothing is pruned.
        qat: how all three learn to compute in int8.
        optimum_python: as in legal_bert.
        measure: how the models are measured.
    """
    here = optimum.find(optimum_python)
    vocabulary = trim if trim_vocabulary else None
    expert, source = legal_bert.made_or_adopted(run, base, teacher, task, vocabulary, finetune)
    if student == "none":
        small = run(distill, model=expert, task=task, name="student")
    else:
        small = run(Adopt(), model=run.base(student), task=task, name="student")
    guide = small if distill.linear_weight else expert  # as in legal_bert
    ways: dict[str, Any] = {"task": task, "teacher": guide}
    movement = run(prune, model=small, **ways, name="movement")
    factored = run(low_rank, model=small, **ways, name="low-rank")
    pruned = run(structured, model=small, **ways, name="structured")
    both = run(factorize, model=pruned, **ways, name="structured-low-rank")
    movement_int8 = run(qat, model=movement, **ways, name="movement-int8")
    factored_int8 = run(qat, model=factored, **ways, name="low-rank-int8")
    int8 = run(qat, model=both, **ways, name="structured-low-rank-int8")

    expert_onnx = run(ExportOnnx(), model=expert, task=task, name="teacher-onnx")
    onnx = run(ExportOnnx(), model=both, task=task, name="structured-low-rank-onnx")
    rounded = DynamicInt8(python=optimum_python)
    dynamic = [run(rounded, model=onnx, task=task, name="structured-low-rank-dynamic-int8")] if here else []
    return run.compare(
        expert,
        expert_onnx,
        small,
        movement,
        movement_int8,
        factored,
        factored_int8,
        pruned,
        both,
        onnx,
        *dynamic,
        int8,
        reference=expert,
        candidate=int8,
        latency_reference=expert_onnx,
        deliver=(onnx, int8),
        base=source,
        budget=budget,
        task=task,
        measure=measure,
        notes=() if here else (optimum.left_out("structured-low-rank-dynamic-int8"),),
    )


def arguments(scale: str, folder: Path) -> dict[str, Any]:
    """legal_bert's of the scale; what is pruned and factored learns for as many epochs as what movement prunes."""
    found = legal_bert.arguments(scale, folder)
    like: MovementPrune = found["prune"]
    epochs = like.num_train_epochs
    shared: dict[str, Any] = {
        "learning_rate": like.learning_rate,
        "per_device_train_batch_size": like.per_device_train_batch_size,
        "mask_probability": like.mask_probability,
    }
    structured = StructuredPrune(
        keep_flops=0.8,
        iterations=2,
        epochs_between=epochs / 6,  # after the first cut; the second is followed by twice as much
        num_train_epochs=epochs / 3,
        hard_weight=0.0,
        **shared,
    )
    low_rank = Factorize(keep_bytes=0.6, num_train_epochs=epochs, **shared)
    factorize = replace(low_rank, keep_bytes=0.75, num_train_epochs=epochs / 2)
    return found | {"structured": structured, "factorize": factorize, "low_rank": low_rank}
