"""Seconds and memory of the legal_bert recipe: of a finished run, of the teacher cache, and of BERT-Large's export.

`python -m benchmarks.legal_bert RUN [--large]` prints tables from the run's records and measures the rest now. With
--large, BERT-Large's shape with random weights goes through export and int8, each in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hfcompress.folders.record import cpu_name, peak_rss_mb, read_json

EXAMPLES = 512

EXPORT = """
import sys
from pathlib import Path
from hfcompress.formats.memory import rss_mb
folder, out = map(Path, sys.argv[1:])
from hfcompress.formats import onnx_export as onnx_graph
from hfcompress.architectures.models import load_classifier
before = rss_mb()
onnx_graph.export(load_classifier(folder), out)
print(before, rss_mb())
"""
QUANTIZE = """
import sys
from pathlib import Path
from hfcompress.formats.memory import rss_mb
folder, out = map(Path, sys.argv[1:])
import optimum.onnxruntime
from hfcompress.formats.onnx import DynamicInt8
(out / "work").mkdir(parents=True, exist_ok=True)
before = rss_mb()
DynamicInt8()(out, model=folder, task=None)
print(before, rss_mb())
"""

FOLD = """
import sys
from pathlib import Path
import torch
from hfcompress.formats.memory import rss_mb
folder, out = map(Path, sys.argv[1:])
from hfcompress.architectures.models import load_classifier
from hfcompress.ops.fake_quant import ActivationQuantizer
from hfcompress.compress.quantize.qat import prepare, write_int8
before = rss_mb()
network = load_classifier(folder)
prepare(network, symmetric=False, learned=True)
for module in network.modules():
    if isinstance(module, ActivationQuantizer):
        module.observing = True
with torch.inference_mode():
    network(input_ids=torch.arange(64)[None])
write_int8(network, out)
print(before, rss_mb())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--large", action="store_true", help="also BERT-Large's shape (2 GB of disk, minutes)")
    arguments = parser.parse_args()
    print(cpu_name())
    details = read_json(arguments.run / "details.json")
    print_stages(details["records"])
    print_ratios(details["models"])
    print_teacher_cache(arguments.run, details)
    if arguments.large:
        print_large()


def print_stages(records: list[dict[str, Any]]) -> None:
    """Seconds and peak memory of each stage; the peak is the whole process's up to then."""
    print(f"\n{'artifact':24} {'stage':16} {'s':>8} {'peak MB':>8} {'samples/s':>10}")
    for record in records:
        rate = record["measured"].get("samples_per_second")
        print(
            f"{record['name']:24} {record['stage']:16} {record['seconds']:8.0f} {record['peak_rss_mb']:8.0f} "
            f"{rate if rate is not None else '–':>10}"
        )


def print_ratios(models: list[dict[str, Any]]) -> None:
    """p50 of every model over the int8 student's, from one interleaved run."""
    times = {model["name"]: model["latency_ms"]["p50"] for model in models}
    print(f"\n{'model':24} {'p50 ms':>8} {'over int8':>10}")
    for name, value in times.items():
        print(f"{name:24} {value:8.2f} {value / times['int8']:10.2f}")


def print_teacher_cache(run: Path, details: dict[str, Any]) -> None:
    """Filling the cache once and reading it, against running the teacher for every batch; logits alone."""
    import numpy as np
    import torch

    from hfcompress.architectures.models import load_tokenizer
    from hfcompress.tasks.text_classification import TextClassification
    from hfcompress.training.teacher_outputs import Wanted, teacher_outputs

    record = next(r for r in details["records"] if r["name"] == "teacher")
    teacher = run / f"teacher-{record['key']}"
    tokenizer = load_tokenizer(teacher)
    task = TextClassification()
    data = task.data.encode(tokenizer, details["max_length"], "train").select(range(EXAMPLES))
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "stage" / "work"
        begun = time.perf_counter()
        cached = teacher_outputs(work, teacher, data, Wanted())
        fill = time.perf_counter() - begun
        live = teacher_outputs(work, teacher, data, Wanted(), cache=False)
        seconds = {}
        for name, source in (("cached", cached), ("live", live)):
            begun = time.perf_counter()
            for start in range(0, EXAMPLES, 32):
                rows = data[list(range(start, start + 32))]
                ids = {k: rows[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
                batch = dict(tokenizer.pad(ids, return_tensors="pt"))
                batch["index"] = torch.from_numpy(np.arange(start, start + 32))
                source(batch)
            seconds[name] = time.perf_counter() - begun
    print(
        f"\nteacher, {EXAMPLES} texts: cache filled in {fill:.1f} s, then {seconds['cached']:.2f} s an epoch; "
        f"live {seconds['live']:.1f} s an epoch"
    )


def print_large() -> None:
    """BERT-Large's shape through export and Optimum's dynamic int8, peak memory beside the fp32 file."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    with tempfile.TemporaryDirectory(dir=".") as scratch:
        folders = [Path(scratch) / name for name in ("model", "onnx", "int8", "qdq")]
        torch.manual_seed(0)
        config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
        BertForSequenceClassification(config).save_pretrained(folders[0])
        folders[1].mkdir()
        folders[3].mkdir()
        (folders[2] / "work").mkdir(parents=True)
        print(f"\n(this process: {peak_rss_mb():.0f} MB)")
        for name, program, source, out in (
            ("export", EXPORT, folders[0], folders[1]),
            ("int8 as qat writes it", FOLD, folders[0], folders[3]),
            ("dynamic int8 (Optimum)", QUANTIZE, folders[1], folders[2]),
        ):
            begun = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", program, str(source), str(out)], capture_output=True, text=True
            )
            if done.returncode:
                print(f"{name}: failed: {done.stderr.strip().splitlines()[-1]}")
                continue
            before, peak = map(float, done.stdout.split()[-2:])
            size = sum(file.stat().st_size for file in out.glob("model.onnx*")) / 1e6
            fp32 = sum(file.stat().st_size for file in folders[1].glob("model.onnx*")) / 1e6
            print(
                json.dumps(
                    {
                        "step": name,
                        "seconds": round(time.perf_counter() - begun, 1),
                        "file_mb": round(size, 1),
                        "peak_mb": round(peak),
                        "peak_over_fp32_file": round(peak / fp32, 2),
                        "imports_mb": round(before),
                    }
                )
            )


if __name__ == "__main__":
    main()
