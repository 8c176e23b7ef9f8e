"""any_causal_lm: the linear layers of a causal LM of any architecture in 2 to 8 bits, as a transformers folder."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hfcompress.budget import LanguageBudget
from hfcompress.compress.quantize.linears import QuantizeLinears
from hfcompress.errors import UserError
from hfcompress.evaluation.measure_language import MeasureLanguage
from hfcompress.runs.run import Run
from hfcompress.tasks.text_generation import CausalLM
from hfcompress.training.adopt_language import AdoptLanguage

SCALES = ("small", "full")
NEEDED = {"measure.context": "here: give {budget.context}"}


def recipe(
    run: Run,
    base: str = "",
    task: CausalLM = CausalLM(),
    budget: LanguageBudget = LanguageBudget(context=512, drop={"perplexity": 0.05}),
    quantize_linears: QuantizeLinears = QuantizeLinears(),
    measure: MeasureLanguage = MeasureLanguage(),
) -> dict[str, Any]:
    """Round the linear layers of a causal LM that summarize_7b does not know, and hold the result against a budget.

    Args:
        base: any causal LM of transformers: a Hub id (org/name@revision) or a folder.
        task: the texts that perplexity is measured on.
        budget: the limits.
        quantize_linears: bits, groups and the algorithm.
        measure: how the models are measured.
    """
    if not base:
        raise UserError("any_causal_lm needs a model: --base FOLDER or --base org/name")
    model = run(AdoptLanguage(any_architecture=True), model=run.base(base), name="lm")
    packed = run(quantize_linears, model=model, disk_mb=budget.disk_mb, name="packed")
    return run.compare(
        model,
        packed,
        reference=model,
        candidate=packed,
        budget=budget,
        task=task,
        measure=replace(measure, context=budget.context),
        base=base,
    )


def arguments(scale: str, folder: Path) -> dict[str, Any]:
    """Both scales are the model that is given; smoke makes a tiny GPT-NeoX."""
    if scale != "smoke":
        return {}
    from hfcompress.recipes import tiny

    data = tiny.made(folder / "smoke" / "data", tiny.write_dataset)
    base = tiny.made(folder / "smoke" / "base", partial(tiny.write_gpt_neox, data=data))
    return {
        "base": str(base),
        "task": CausalLM(dataset=str(data), window=32, stride=16, calibration_windows=4, test_tokens=512),
        "budget": LanguageBudget(disk_mb=5, context=32, drop={"perplexity": 0.9}),
        "measure": MeasureLanguage(new_tokens=4, runs=2, resamples=200),
    }
