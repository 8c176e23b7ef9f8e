"""One technique alone: the weights of a causal LM in fewer bits, in a format that stock tools load."""

from pathlib import Path
from typing import Any

from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.errors import OptionError
from hfcompress.formats.compressed_tensors import ExportTransformers
from hfcompress.formats.genai import ExportGenai
from hfcompress.formats.gguf import ExportGguf
from hfcompress.planning.plan import Plan
from hfcompress.runs.prepare import run_folder
from hfcompress.runs.run import Run
from hfcompress.stage import Stage
from hfcompress.tasks.splits import EMBEDDED
from hfcompress.tasks.text_generation import CausalLM
from hfcompress.training.adopt_language import AdoptLanguage

FORMATS = ("transformers", "onnx", "gguf")
GROUP_SIZE, GGUF_GROUP_SIZE = 128, 32  # llama.cpp's blocks have 32 weights


def quantize(
    model: str,
    bits: int,
    format: str,
    algorithm: Any,
    group_size: int | None,
    data: str | Path | CausalLM | None,
    run_dir: str | Path | None,
) -> Path:
    """Quantize a causal LM; see `hfcompress.quantize`. The stages are planned first, so that refusals come early."""
    if format not in FORMATS:
        raise OptionError(".format", "choose from {known}", format, known=" ".join(FORMATS))
    if group_size is None:
        group_size = GGUF_GROUP_SIZE if format == "gguf" else GROUP_SIZE
    stage = WeightOnly(algorithm=algorithm or ("hqq" if data is None else "gptq"), bits=bits, group_size=group_size)
    task = data if isinstance(data, CausalLM) else CausalLM(dataset=EMBEDDED if data is None else str(data))
    writer: Stage = {"transformers": ExportTransformers, "onnx": ExportGenai, "gguf": ExportGguf}[format]()
    given = {} if format == "gguf" else {"task": task}

    def steps(run: Any) -> Any:
        adopted = run(AdoptLanguage(), model=run.base(model), name="lm")
        quantized = run(stage, model=adopted, task=task, name="quantized")
        return run(writer, model=quantized, **given, name=format)

    name = Path(model.partition("@")[0]).name or "model"
    folder = run_folder(run_dir, "quantize", name)
    try:
        steps(Plan(fetches=True))
    except OptionError as error:
        if error.field == ".base":  # what a recipe calls the model
            error.field = ".model"
        raise
    run = Run(folder, "quantize", name)
    try:
        return Path(steps(run).path)
    finally:
        run.close()
