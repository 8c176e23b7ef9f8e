"""Every weight-only algorithm at every size on a real model, beside neural-compressor's and onnxruntime's own.

    python -m benchmarks.weight_only --model FOLDER [--stories] [--bits 2 3 4 8] [--group-sizes 32 64 128 0]

MODEL is a Llama's folder: the `lm-...` of a run of summarize_7b, whose texts are then the licences, or with --stories
../shared/data/stories260k, of whose stories every other one calibrates and the others measure. Only the linear layers
within the decoder are rounded; embedding and head stay as they are. A matrix whose columns the group does not divide
gets whole rows, from every tool. KL to the unrounded model in nats a token; differences are paired by document, with
their standard errors. Prints a table in Markdown.
"""

import argparse
import json
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.weight_only_peers import ORT, loaded, neural_compressor, onnxruntime
from hfcompress.evaluation.drawn import group_weights
from hfcompress.evaluation.language import Scores, scores
from hfcompress.ops.grid import Grid
from hfcompress.tasks.text_generation import CausalLM

OURS = ("rtn", "hqq", "gptq", "awq", "autoround")
Array = np.ndarray[Any, Any]


def stories_task(folder: Path, out: Path) -> CausalLM:
    """The stories as a data set: every other one is for calibration; the last of them is the validation split."""
    from datasets import Dataset

    stories = [s.strip() for s in (folder / "stories.txt").read_text().split("<|endoftext|>") if s.strip()]
    *calibrating, last = stories[::2]
    for split, texts in (("train", calibrating), ("validation", [last]), ("test", stories[1::2])):
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
    from hfcompress.architectures.quantized_model import load_simulated
    from hfcompress.compress.quantize.weight_only import WeightOnly

    original = loaded(model)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "work").mkdir()
        WeightOnly(algorithm, grid.bits, grid.group_size, grid.symmetric)(out, model=model, task=task)
        found = load_simulated(out)
    layers = {name: value for name, value in found.state_dict().items() if name.startswith("model.layers.")}
    original.load_state_dict(layers, strict=False)
    return original


def paired(one: Scores, other: Scores) -> tuple[float, float]:
    """Mean KL of one minus the other's, and its standard error over draws of documents."""
    weights = group_weights(len(one.tokens), 2000, 0)
    drawn = (weights @ (one.kl - other.kl)) / (weights @ one.tokens)
    return float((one.kl - other.kl).sum() / one.tokens.sum()), float(drawn.std(ddof=1))


def say(line: str) -> None:
    print(line, flush=True)


class Table:
    """Rows of a grid: what each tool's algorithm costs, beside ours."""

    def __init__(self, windows: list[Any], reference: list[Array]) -> None:
        self.windows, self.reference = windows, reference
        say("| bits | group | zero | algorithm | tool | perplexity | KL | minus our rtn | ours minus it |")
        say("|---|---|---|---|---|---|---|---|---|")

    def score(self, network: Any) -> Scores:
        return scores(log_probabilities(network, self.windows), self.windows, self.reference)

    def row(
        self, grid: Grid, algorithm: str, tool: str, found: Scores, rtn: Scores | None, ours: Scores | None
    ) -> None:
        zero = (
            "middle" if grid.symmetric else "integer" if tool != "neural-compressor" or algorithm != "hqq" else "float"
        )
        kl = found.kl.sum() / found.tokens.sum()
        cells = [f"{one[0]:+.5f} ± {one[1]:.5f}" if one else "" for one in (
            paired(found, rtn) if rtn is not None and rtn is not found else None,
            paired(ours, found) if ours is not None else None,
        )]  # fmt: skip
        group = grid.group_size or "row"
        line = [grid.bits, group, zero, algorithm, tool, f"{found.perplexity:.3f}", f"{kl:.5f}", *cells]
        say("| " + " | ".join(map(str, line)) + " |")

    def peer(self, grid: Grid, algorithm: str, tool: str, make: Any, rtn: Scores | None, ours: Scores | None) -> None:
        """A peer's row; where it fails, why."""
        try:
            self.row(grid, algorithm, tool, self.score(make()), rtn, ours)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0][:60]
            line = [grid.bits, grid.group_size or "row", "", algorithm, tool, f"{type(error).__name__}: {reason}"]
            say("| " + " | ".join(map(str, line)) + " | | | |")


def measure(options: argparse.Namespace, task: CausalLM, table: Table, ids: torch.Tensor) -> None:
    """All rows of the table."""
    for grid in (Grid(b, g, z == "middle") for b in options.bits for g in options.group_sizes for z in options.zeros):
        found: dict[str, Scores] = {}
        for algorithm in options.algorithms:
            found[algorithm] = table.score(ours(options.model, algorithm, grid, task))
            table.row(grid, algorithm, "hfcompress", found[algorithm], found.get("rtn"), None)
        for algorithm in options.algorithms if "neural-compressor" in options.peers else ():
            # Its HQQ has no middle to be fixed; its autoround fails here (NameError), and is asked once a grid.
            if algorithm != "hqq" or not grid.symmetric:
                make = lambda algorithm=algorithm, grid=grid: neural_compressor(options.model, algorithm, grid, ids)  # noqa: E731
                table.peer(grid, algorithm, "neural-compressor", make, found.get("rtn"), found[algorithm])
        for algorithm, like in ORT.items() if "onnxruntime" in options.peers else ():
            # Its middle is its rtn's alone; it has no kernel for 3 bits, which k_quant does not need.
            if (algorithm == "rtn" or not grid.symmetric) and (algorithm == "k_quant" or grid.bits != 3):
                make = lambda algorithm=algorithm, grid=grid: onnxruntime(options.model, algorithm, grid)  # noqa: E731
                table.peer(grid, algorithm, "onnxruntime", make, found.get("rtn"), found.get(like))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--stories", action="store_true")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 8])
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[32, 64, 128, 0])
    parser.add_argument("--zeros", nargs="+", choices=("middle", "integer"), default=["middle", "integer"])
    parser.add_argument("--algorithms", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--peers", nargs="*", default=["neural-compressor", "onnxruntime"])
    parser.add_argument("--tokens", type=int, default=8192)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ["LOGLEVEL"] = "ERROR"
    from transformers import AutoTokenizer

    from hfcompress.folders.record import cpu_name

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as folder:
        task = stories_task(options.model, Path(folder)) if options.stories else CausalLM(calibration_windows=64)
        task = replace(task, test_tokens=options.tokens)
        windows = task.test_windows(tokenizer)
        ids = torch.from_numpy(task.calibration(tokenizer))
        reference = log_probabilities(loaded(options.model), windows)
        whole = scores(reference, windows, reference)
        read = {"cpu": cpu_name(), "tokens": int(whole.tokens.sum()), "documents": len(whole.tokens)}
        say(json.dumps({"model": options.model.name, **read, "perplexity": round(whole.perplexity, 4)}) + "\n")
        measure(options, task, Table(windows, reference), ids)


if __name__ == "__main__":
    main()
