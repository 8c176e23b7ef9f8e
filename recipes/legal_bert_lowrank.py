"""legal_bert_lowrank: legal_bert's student by another road: low-rank factors instead of movement pruning."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hfcompress.budget import Budget
from hfcompress.run import Run
from hfcompress.stages.adopt import Adopt
from hfcompress.stages.distill import Distill
from hfcompress.stages.embeddings import TrimVocabulary
from hfcompress.stages.factorize import Factorize
from hfcompress.stages.finetune import Finetune
from hfcompress.stages.measure import Measure
from hfcompress.stages.movement_prune import MovementPrune
from hfcompress.stages.onnx import DynamicInt8, ExportOnnx
from hfcompress.stages.qat import QAT
from hfcompress.tasks.text_classification import TextClassification
from recipes import legal_bert, licence_teacher

SCALES = ("small", "full")


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
    factorize: Factorize = Factorize(keep_bytes=0.6),
    qat: QAT = QAT(),
    measure: Measure = Measure(),
) -> dict[str, Any]:
    """Distill a student, then make it smaller in two ways, movement pruning and low-rank factors, each down to int8.

    Args:
        base, teacher, trim_vocabulary, trim, finetune: as in legal_bert.
        student: a classifier distilled from this teacher that you have already (a folder); none: it is made here.
        task: the data.
        budget: the limits that the factored int8 student is held against.
        distill: the student's shape and how it learns from the teacher.
        prune: what movement pruning leaves of the student.
        factorize: which ranks are left of the student, and how the factors learn.
        qat: how both learn to compute in int8.
        measure: how the models are measured.
    """
    expert, source = legal_bert.made_or_adopted(
        run, base, teacher, task, trim if trim_vocabulary else None, finetune
    )
    if student == "none":
        small = run(distill, model=expert, task=task, name="student")
    else:
        small = run(Adopt(), model=run.base(student), task=task, name="student")
    guide = small if distill.linear_weight else expert  # as in legal_bert
    movement = run(prune, model=small, teacher=guide, task=task, name="movement")
    movement_int8 = run(qat, model=movement, teacher=guide, task=task, name="movement-int8")
    factored = run(factorize, model=small, teacher=guide, task=task, name="low-rank")
    factored_onnx = run(ExportOnnx(), model=factored, task=task, name="low-rank-onnx")
    factored_dynamic = run(DynamicInt8(), model=factored_onnx, task=task, name="low-rank-dynamic-int8")
    factored_int8 = run(qat, model=factored, teacher=guide, task=task, name="low-rank-int8")
    expert_onnx = run(ExportOnnx(), model=expert, task=task, name="teacher-onnx")
    return run.compare(
        expert,
        expert_onnx,
        small,
        movement,
        movement_int8,
        factored,
        factored_onnx,
        factored_dynamic,
        factored_int8,
        reference=expert,
        candidate=factored_int8,
        latency_reference=expert_onnx,
        deliver=(factored_onnx, factored_int8),
        base=source,
        budget=budget,
        task=task,
        measure=measure,
    )


def arguments(scale: str, folder: Path) -> dict[str, Any]:
    """What a scale changes of the recipe's defaults; `folder` is the run's."""
    found = legal_bert.arguments(scale, folder)
    like = found["prune"]  # the factors learn for as long as what is pruned does
    shared = {"num_train_epochs": like.num_train_epochs, "learning_rate": like.learning_rate}
    shared |= {"per_device_train_batch_size": like.per_device_train_batch_size}
    factorize = replace(Factorize(keep_bytes=0.6), mask_probability=like.mask_probability, **shared)
    return found | {"factorize": factorize}
