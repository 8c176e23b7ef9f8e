"""Mistral-7B's shape with random weights: time, memory and size of streaming quantization, and of what it delivers.

    python -m benchmarks.shape_7b [--work FOLDER] [--layers 32] [--context 2048] [--threads 2]

Writes a bf16 checkpoint (14.5 GB at 32 layers), rounds it to 4 bits as a stream, writes the ONNX folder, and times
both against merely reading the input and writing the output; then a fresh process answers at the full context. Needs
about 25 GB of disk. The weights are noise: nothing is said about quality.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfcompress.checkpoint import INDEX, write_shard
from hfcompress.language_shape import LanguageShape

COPY_BYTES = 64_000_000


def config(layers: int) -> dict[str, Any]:
    """Mistral-7B-Instruct-v0.3's, with so many layers."""
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 32768,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }


def write_random(folder: Path, layers: int) -> None:
    """The checkpoint: a shard a layer; every matrix has its own noise, since onnxruntime keeps equal ones once."""
    import torch

    from hfcompress.stages.pretrain import byte_pair_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(layers)))
    byte_pair_tokenizer(["This licence grants rights."], 300).save_pretrained(folder)
    shape = LanguageShape.from_config(config(layers))
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        noise = torch.randn(1 << 22, generator=generator).mul_(0.02).to(torch.bfloat16)
        return noise.repeat(-(-rows * columns // len(noise)))[: rows * columns].view(rows, columns)

    places = {}
    for index in range(layers + 1):
        prefix = f"model.layers.{index}."
        names = [
            (n, r, c) for n, r, c in shape.linears() if n.startswith(prefix) or (index == layers and "layers" not in n)
        ]
        tensors = {f"{name}.weight": matrix(rows, columns) for name, rows, columns in names}
        norms = [f"{prefix}input_layernorm", f"{prefix}post_attention_layernorm"] if index < layers else ["model.norm"]
        tensors |= {f"{name}.weight": torch.ones(4096, dtype=torch.bfloat16) for name in norms}
        file = f"model-{index + 1:05d}-of-{layers + 1:05d}.safetensors"
        write_shard(folder / file, tensors)
        places |= dict.fromkeys(tensors, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def copying_seconds(source: Path, written: int, scratch: Path) -> float:
    """Merely reading the input and writing as many bytes as the output has."""
    begun = time.perf_counter()
    for file in sorted(source.glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while block := stream.read(COPY_BYTES):
                last = block
    with scratch.open("wb") as stream:
        for _ in range(written // COPY_BYTES + 1):
            stream.write(last[:COPY_BYTES].ljust(COPY_BYTES))
    seconds = time.perf_counter() - begun
    scratch.unlink()
    return seconds


def in_fresh_process(code: str) -> dict[str, Any]:
    """Run a stage alone, and print seconds and its process's peak memory."""
    wrapped = (
        "import json, time; from pathlib import Path; from hfcompress.evaluation.memory import rss_mb\n"
        f"begun = time.perf_counter()\n{code}\n"
        "print(json.dumps({'seconds': round(time.perf_counter() - begun, 1), 'peak_mb': round(rss_mb(), 1)}))"
    )
    done = subprocess.run([sys.executable, "-c", wrapped], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def say(what: str, found: Any) -> None:
    print(f"{what:34} {json.dumps(found)}", flush=True)


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "work").mkdir(parents=True)
    return folder


def stage(module: str, call: str, out: Path, model: Path, more: str = "") -> str:
    name = call.partition("(")[0]
    return f"from {module} import {name}\n{call}(Path({str(out)!r}), model=Path({str(model)!r}){more})"


def decode_seconds(folder: Path, threads: int, tokens: int, depth: int) -> Callable[[], Any]:
    """Milliseconds a token, the median, after `depth` others."""

    def measure() -> dict[str, float]:
        code = (
            f"from hfcompress.evaluation.onnx_decoder import OnnxDecoder\nimport statistics, time as t\n"
            f"d = OnnxDecoder(Path({str(folder)!r}), {threads})\nb = t.perf_counter()\n"
            f"d.append([5] * {depth})\nfirst = t.perf_counter() - b\ntimes = []\n"
            f"for _ in range({tokens}):\n b = t.perf_counter(); d.append([5]); times.append(t.perf_counter() - b)\n"
            "print(json.dumps({'ms': 1e3 * statistics.median(times), 'prompt_s': first}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", "import json\nfrom pathlib import Path\n" + code], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, default=Path("runs/shape_7b"))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    from hfcompress.devices import device
    from hfcompress.evaluation.language_memory import fresh_process
    from hfcompress.record import cpu_name

    work: Path = options.work
    here = device("here", options.threads)
    say("machine", {"cpu": cpu_name(), "read_gb_per_s": round(here.memory_bandwidth, 1)})
    source = work / "bf16"
    if not (source / INDEX).is_file():
        write_random(source, options.layers)
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    say("checkpoint", {"bytes": size})
    packed, onnx = fresh(work / "packed"), fresh(work / "onnx")
    task = ", task=None"
    weight_only = stage("hfcompress.stages.weight_only", "WeightOnly('rtn', max_memory_gb=4.0)", packed, source, task)
    found = in_fresh_process(weight_only)
    written = sum(file.stat().st_size for file in packed.glob("*.safetensors"))
    copied = copying_seconds(source, written, work / "scratch")
    say("rtn, 4 bits, groups of 128", found | {"bytes": written, "copy_s": round(copied, 1),
                                              "ratio": round(found["seconds"] / copied, 2)})  # fmt: skip
    genai = f"ExportGenai(context={options.context})"
    found = in_fresh_process(stage("hfcompress.stages.genai", genai, onnx, packed))
    say("onnx", found | {"bytes": (onnx / "model.onnx.data").stat().st_size})
    shutil.rmtree(onnx / "work", ignore_errors=True)
    read = LanguageShape.read(source)
    weights = (read.parameters - read.embedding_parameters) * 4.25 / 8
    for depth in (64, options.context - 64):
        timed = decode_seconds(onnx, options.threads, 12, depth)()
        floor = 1e3 * weights / (here.memory_bandwidth * 1e9)
        say(f"decode after {depth}", {name: round(v, 2) for name, v in timed.items()} | {"floor_ms": round(floor, 1)})
    say(f"fresh process, {options.context} tokens", fresh_process(onnx, options.context, options.threads))


if __name__ == "__main__":
    main()
