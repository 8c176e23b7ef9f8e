"""Each weight-only algorithm by our code and by each engine that has it, on one model and the same grids.

    python -m benchmarks.engines --model FOLDER [--stories] [--bits 4 3 2] [--group-sizes 32] [--steps 200]

MODEL as in benchmarks/weight_only.py, whose texts and scores these are: KL to the unrounded model in nats per token,
of the layers' matrices alone; differences are paired by document, with their standard errors. All go through the same
stage, `WeightOnly`, so that both codes calibrate on the same inputs and end in the same quantized format. One seed.
"""

import argparse
import json
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.weight_only import log_probabilities, paired, say, stories_task
from benchmarks.weight_only_peers import loaded
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.engines import ENGINES
from hfcompress.engines.engine import Autoround
from hfcompress.evaluation.language import Scores, scores
from hfcompress.ops.grid import Grid
from hfcompress.tasks.text_generation import CausalLM

ALGORITHMS = ("rtn", "hqq", "gptq", "awq", "autoround")


def rounded(model: Path, stage: WeightOnly, task: CausalLM) -> Any:
    """The model with the layers that a stage makes; the embedding and the head are the original's."""
    from hfcompress.architectures.quantized_model import load_simulated

    original = loaded(model)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "work").mkdir()
        stage(Path(folder), model=model, task=task)
        found = load_simulated(Path(folder)).state_dict()
    layers = {name: value for name, value in found.items() if name.startswith("model.layers.")}
    original.load_state_dict(layers, strict=False)
    return original


def row(stage: WeightOnly, found: Scores, seconds: float, ours: Scores | None) -> None:
    """Print a line of the table."""
    kl = found.kl.sum() / found.tokens.sum()
    difference = "{:+.5f} ± {:.5f}".format(*paired(ours, found)) if ours is not None else ""
    zero = "middle" if stage.symmetric else "integer"
    cells = [stage.bits, stage.group_size or "row", zero, stage.algorithm, stage.engine, f"{kl:.5f}", difference]
    say("| " + " | ".join(map(str, [*cells, f"{seconds:.0f}"])) + " |")


def measure(options: argparse.Namespace, task: CausalLM) -> None:
    """All rows."""
    from transformers import AutoTokenizer

    windows = task.test_windows(AutoTokenizer.from_pretrained(options.model))
    reference = log_probabilities(loaded(options.model), windows)
    whole = scores(reference, windows, reference)
    say(json.dumps({"tokens": int(whole.tokens.sum()), "perplexity": round(whole.perplexity, 4)}) + "\n")
    say("| bits | group | zero | algorithm | engine | KL | ours minus it | seconds |")
    say("|---|---|---|---|---|---|---|---|")
    for bits, size, zero in ((b, g, z) for b in options.bits for g in options.group_sizes for z in options.zeros):
        for algorithm in options.algorithms:
            grid, ours = Grid(bits, size, zero == "middle"), None
            have = [name for name, engine in ENGINES.items() if algorithm in engine.algorithms]
            for engine in ["own", *(name for name in have if not ENGINES[name].refusal(algorithm, grid))]:
                own = Autoround(options.steps)
                stage = WeightOnly(algorithm, bits, size, grid.symmetric, autoround=own, engine=engine)  # type: ignore[arg-type]
                begun = time.monotonic()
                network = rounded(options.model, stage, task)
                seconds = time.monotonic() - begun
                found = scores(log_probabilities(network, windows), windows, reference)
                row(stage, found, seconds, ours)
                ours = found if engine == "own" else ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--stories", action="store_true")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[32])
    parser.add_argument("--zeros", nargs="+", choices=("middle", "integer"), default=["middle", "integer"])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=8192)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        task = stories_task(options.model, Path(folder)) if options.stories else CausalLM(calibration_windows=64)
        measure(options, replace(task, test_tokens=options.tokens))


if __name__ == "__main__":
    main()
