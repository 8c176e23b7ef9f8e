"""summarize_7b: from a causal LM to a 4-bit one that fits a device's memory, and streams summaries from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.budget import LanguageBudget
from hfcompress.compress.quantize.autotune import Autotune
from hfcompress.compress.quantize.bit_allocation import Allot
from hfcompress.compress.quantize.calibrate import Calibrate
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.errors import OptionError
from hfcompress.evaluation.measure_language import MeasureLanguage
from hfcompress.evaluation.measure_summaries import MeasureSummaries
from hfcompress.formats.compressed_tensors import ExportTransformers
from hfcompress.formats.genai import ExportGenai
from hfcompress.formats.gguf import ExportGguf
from hfcompress.formats.runtimes.llama_decoder import import_llama
from hfcompress.runs.run import Run
from hfcompress.tasks.summarization import Summarization
from hfcompress.tasks.text_generation import CausalLM
from hfcompress.training.adopt_language import AdoptLanguage
from hfcompress.training.pretrain import Pretrain

SCALES = ("small", "full")
NEEDED = {
    "pretrain": "without {.base} pretrain",
    "autotune": "without {.quantize} autotune",
    **dict.fromkeys(("calibrate", "allot", "weight_only"), "with {.quantize} autotune"),
    "documents": "without {documents.dataset}",
    "summaries": "without {documents.dataset}",
    **dict.fromkeys(("genai.context", "measure.context", "summaries.context"), "here: give {budget.context}"),
}
PRETRAIN = "pretrain"
MISTRAL_7B = LanguageShape(
    layers=32,
    hidden=4096,
    intermediate=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=32768,
    tied=False,
    context=32768,
    layer_plain=8192,
)
KNOWN_SHAPES = {"mistralai/Mistral-7B-Instruct-v0.3": MISTRAL_7B}
SMALL_NOTE = (
    "The small scale's model has a few million parameters and has seen three million tokens of licences: its numbers "
    "are real, its summaries are not worth reading."
)


def recipe(
    run: Run,
    base: str = PRETRAIN,
    task: CausalLM = CausalLM(),
    budget: LanguageBudget = LanguageBudget(
        disk_mb=2.75, ram_gb=0.25, context=512, latency_ms=5, first_token_ms=500, drop={"perplexity": 0.03}
    ),
    pretrain: Pretrain = Pretrain(),
    quantize: Literal["allot", "autotune"] = "allot",
    autotune: Autotune = Autotune(),
    calibrate: Calibrate = Calibrate(),
    allot: Allot = Allot(),
    weight_only: WeightOnly = WeightOnly(),
    genai: ExportGenai = ExportGenai(),
    formats: tuple[Literal["transformers", "gguf"], ...] = ("transformers",),
    measure: MeasureLanguage = MeasureLanguage(),
    documents: Summarization = Summarization(),
    summaries: MeasureSummaries = MeasureSummaries(),
) -> dict[str, Any]:
    """Calibrate a causal LM, allocate bits to its matrices, quantize it, and hold what onnxruntime runs to a budget.

    Args:
        base: a Llama, Mistral, Ministral, Qwen2, Qwen3, Phi-3, Granite, SmolLM3 or Gemma (1, 2, 3 of text) checkpoint:
            a Hub id (org/name@revision) or a folder; pretrain: a small Llama is trained on the task's texts first.
        task: the texts that calibrate and that perplexity is measured on.
        budget: the limits that the ONNX model is held against.
        pretrain: the small model and how it is trained.
        quantize: how the matrices get their bits: allot chooses those of each within the budget; autotune tries
            configurations of all by Neural Compressor, the smallest first, until one keeps the budget's drop.
        autotune: the configurations that are tried.
        calibrate: how the effect of rounding is measured.
        allot: which grids a matrix may get, and what all of them may take.
        weight_only: the algorithm, and the memory that it may take.
        genai: how the ONNX model is written.
        formats: what is delivered beside ONNX; gguf needs the extras gguf and llama-cpp.
        measure: how the models are measured.
        documents: a data set of documents and their summaries, to see what the models make of them.
        summaries: how that is measured.
    """
    if "gguf" in formats:
        import_llama()  # refused now, not when everything else is done
    if base == PRETRAIN:
        model = run(pretrain, task=task, name="lm")
    else:
        model = run(AdoptLanguage(), model=run.base(base, KNOWN_SHAPES.get(base)), name="lm")
    limits = {"ram_gb": budget.ram_gb, "disk_mb": budget.disk_mb}
    serving = {"context": budget.context, "kv_bits": genai.kv_bits}
    allotment = tuned = None
    if quantize == "autotune":
        allowed = {"drop": allowed_drop(budget), "confidence": budget.confidence}
        packed = tuned = run(autotune, model=model, task=task, **allowed, **limits, **serving, name="packed")
    else:
        statistics = run(calibrate, model=model, task=task, name="calibration")
        allotment = run(allot, model=model, calibration=statistics, **limits, **serving, name="allotment")
        packed = run(weight_only, model=model, task=task, allotment=allotment, name="packed")
    onnx = run(replace(genai, context=budget.context), model=packed, task=task, name="onnx")

    others = []
    if "transformers" in formats:
        others.append(run(ExportTransformers(), model=packed, task=task, name="transformers"))
    if "gguf" in formats:
        others.append(run(ExportGguf(), model=packed, name="gguf"))

    # What one would do without choosing: the same number of bits for all, to nearest.
    plain = run(WeightOnly(algorithm="rtn", bits=4, group_size=128), model=model, task=task, name="rtn-4-g128")
    said = None
    if documents.dataset:
        told = replace(summaries, context=budget.context)
        said = run(told, models={"lm": model, "onnx": onnx}, task=documents, reference="lm", name="summaries")
    return run.compare(
        model,
        plain,
        packed,
        onnx,
        *others,
        reference=model,
        candidate=onnx,
        budget=budget,
        task=task,
        measure=replace(measure, context=budget.context),
        base=base,
        notes=(SMALL_NOTE,) if base == PRETRAIN else (),
        deliver=(*others, onnx),
        sections={"allotment": allotment, "autotune": tuned, "summaries": said},
    )


def allowed_drop(budget: LanguageBudget) -> float:
    """Return by what share the perplexity may rise.

    Raises:
        OptionError: the budget does not say it.
    """
    if "perplexity" not in budget.drop:
        reason = (
            "it does not limit perplexity, and {.quantize} autotune stops where one is kept; give it one, such as 0.03"
        )
        raise OptionError("budget.drop", reason)
    return budget.drop["perplexity"]


def arguments(scale: str, folder: Path) -> dict[str, Any]:
    """What a scale changes of the recipe's defaults; `folder` is the run's."""
    return {"small": small, "full": full, "smoke": smoke}[scale](folder)


def small(folder: Path) -> dict[str, Any]:
    """Two CPU cores, no Hub: a Llama of 3.7 million parameters, trained for some eight quiet minutes."""
    return {"pretrain": PRETRAINED}


PRETRAINED = Pretrain(
    num_train_epochs=1,
    learning_rate=1.5e-3,
    per_device_train_batch_size=4,
    group_by_length=False,
    weight_decay=0.1,
)


def full(folder: Path) -> dict[str, Any]:
    """Mistral-7B in 4.0 GB."""
    return {
        "base": "mistralai/Mistral-7B-Instruct-v0.3",
        "budget": LanguageBudget(ram_gb=4.0, context=2048, latency_ms=100, drop={"perplexity": 0.03}),
        "allot": Allot(bits=(2, 4, 8), group_sizes=(128, 256)),
        "weight_only": WeightOnly(max_memory_gb=4.0),
    }


def smoke(folder: Path) -> dict[str, Any]:
    """A tiny Llama, trained for a few steps: every stage, in less than a minute."""
    from hfcompress.recipes import tiny

    data = tiny.made(folder / "smoke" / "data", tiny.write_dataset)
    return {
        "task": CausalLM(dataset=str(data), window=32, stride=16, calibration_windows=4, test_tokens=512),
        "budget": LanguageBudget(disk_mb=5, context=32, drop={"perplexity": 0.9}),
        "pretrain": Pretrain(
            max_steps=20, learning_rate=1e-3, per_device_train_batch_size=4, group_by_length=False,
            vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        ),
        "autotune": Autotune(configurations=("rtn-4-g64", "rtn-8-g64"), tokens=512, resamples=200),
        "calibrate": Calibrate(windows=4),
        "genai": ExportGenai(windows=4),
        "allot": Allot(group_sizes=(32, 64)),
        "measure": MeasureLanguage(new_tokens=4, runs=2, resamples=200),
    }  # fmt: skip
