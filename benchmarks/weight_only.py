"""Every weight-only algorithm at every size on a real model, beside neural-compressor's on the same layers.

    python -m benchmarks.weight_only --model FOLDER [--stories] [--bits 2 3 4] [--group-sizes 32 64] [--tokens 8192]

MODEL is a Llama's folder: the `lm-...` of a run of summarize_7b, whose texts are then the licences, or with --stories
../shared/data/stories260k, of whose stories every other one calibrates and the others measure. Only the linear layers
within the decoder are rounded, symmetrically; embedding and head stay as they are. KL to the unrounded model in nats a
token; ours minus theirs is paired by document, with its standard error.
"""

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfcompress.evaluation.language import Scores, resample_weights, scores
from hfcompress.ops.grid import Grid
from hfcompress.tasks.causal_lm import CausalLM

OURS = ("rtn", "hqq", "gptq", "awq", "autoround")
Array = np.ndarray[Any, Any]


def stories_task(folder: Path, out: Path) -> CausalLM:
    """The stories as a data set: every other one is for calibration."""
    from datasets import Dataset

    stories = [s.strip() for s in (folder / "stories.txt").read_text().split("<|endoftext|>") if s.strip()]
    for split, texts in (("train", stories[::2]), ("validation", stories[::2]), ("test", stories[1::2])):
        Dataset.from_dict({"text": texts}).to_parquet(out / f"{split}.parquet")
    return CausalLM(dataset=str(out), window=256, stride=128, calibration_windows=12)


def log_probabilities(model: Any, windows: list[Any]) -> list[Array]:
    """What a model says of the scored tokens of every window, [tokens, vocab] each."""
    found = []
    with torch.inference_mode():
        for window in windows:
            logits = model(torch.tensor([window.ids])).logits[0, window.first - 1 : -1].float()
            found.append(logits.log_softmax(-1).numpy())
    return found


def ours(model: Path, algorithm: Any, grid: Grid, task: CausalLM) -> Any:
    """A layer at a time through the stage; the embedding and the head are the original's."""
    from transformers import AutoModelForCausalLM

    from hfcompress.packed import load_simulated
    from hfcompress.stages.weight_only import WeightOnly

    original = AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "work").mkdir()
        WeightOnly(algorithm, grid.bits, grid.group_size, grid.symmetric)(out, model=model, task=task)
        found = load_simulated(out)
    layers = {name: value for name, value in found.state_dict().items() if name.startswith("model.layers.")}
    original.load_state_dict(layers, strict=False)
    return original


def theirs(model: Path, algorithm: str, grid: Grid, ids: torch.Tensor) -> Any:
    """neural-compressor's quantization of the same linear layers."""
    from neural_compressor.torch.quantization import (
        AutoRoundConfig,
        AWQConfig,
        GPTQConfig,
        HQQConfig,
        RTNConfig,
        convert,
        prepare,
    )
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.float32).eval()
    common = {"bits": grid.bits, "use_sym": grid.symmetric, "group_size": grid.group_size}
    configs: dict[str, Callable[[], Any]] = {
        "rtn": lambda: RTNConfig(**common, use_layer_wise=False),
        "hqq": lambda: HQQConfig(bits=grid.bits, group_size=grid.group_size, quant_zero=False),
        "gptq": lambda: GPTQConfig(**common, act_order=True),
        "awq": lambda: AWQConfig(**common),
        "autoround": lambda: AutoRoundConfig(**common, iters=200, seqlen=ids.shape[1], use_layer_wise=False),
    }

    def calibrate(network: Any) -> None:
        with torch.no_grad():
            for window in ids:
                network(window.unsqueeze(0))

    prepared = prepare(network, configs[algorithm](), example_inputs=ids[:1])
    if algorithm in ("gptq", "awq", "autoround"):
        calibrate(prepared)
    return convert(prepared)


def paired(one: Scores, other: Scores) -> tuple[float, float]:
    """Mean KL of one minus the other's, and its standard error over draws of documents."""
    weights = resample_weights(len(one.tokens), 2000, 0)
    drawn = (weights @ (one.kl - other.kl)) / (weights @ one.tokens)
    return float((one.kl - other.kl).sum() / one.tokens.sum()), float(drawn.std(ddof=1))


def say(line: str) -> None:
    print(line, flush=True)


def row(found: Scores) -> str:
    return f"{found.perplexity:9.3f} {found.kl.sum() / found.tokens.sum():9.5f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--stories", action="store_true")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--algorithms", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--tokens", type=int, default=8192)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ["LOGLEVEL"] = "ERROR"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as folder:
        task = stories_task(options.model, Path(folder)) if options.stories else CausalLM(calibration_windows=64)
        task = replace(task, test_tokens=options.tokens)
        windows = task.test_windows(tokenizer)
        ids = torch.from_numpy(task.calibration(tokenizer))
        reference = log_probabilities(AutoModelForCausalLM.from_pretrained(options.model).eval(), windows)
        whole = scores(reference, windows, reference)
        read = {"tokens": int(whole.tokens.sum()), "documents": len(whole.tokens)}
        say(json.dumps({"model": options.model.name, **read, "perplexity": round(whole.perplexity, 4)}))
        say(f"{'bits group algorithm':24} {'perplexity':>9} {'KL':>9}   {'neural-compressor':>19}   ours - theirs")
        for bits in options.bits:
            for group in options.group_sizes:
                for algorithm in options.algorithms:
                    grid = Grid(bits, group, True)
                    made = log_probabilities(ours(options.model, algorithm, grid, task), windows)
                    own = scores(made, windows, reference)
                    line = f"{bits:4} {group:5} {algorithm:13} {row(own)}"
                    try:
                        network = theirs(options.model, algorithm, grid, ids)
                        other = scores(log_probabilities(network, windows), windows, reference)
                        change, error = paired(own, other)
                        line += f"   {row(other)}   {change:+.5f} ± {error:.5f}"
                    except Exception as error:  # a peer's failure is a row of the table
                        line += f"   {type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"
                    say(line)


if __name__ == "__main__":
    main()
