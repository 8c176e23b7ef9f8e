"""Mistral-7B's shape with random weights: time, memory and size of streaming quantization, and of what it delivers.

    python -m benchmarks.shape_7b [--work FOLDER] [--layers 32] [--context 2048] [--threads 2] [--ram-gb 4.0]
    python -m benchmarks.shape_7b --gptq [--layers 1] [--windows 128]

Writes a bf16 checkpoint (14.5 GB at 32 layers), allots bits for the memory given, rounds to nearest as a stream,
writes the ONNX folder, and times the last two against merely reading the input and writing the output; then a fresh
process answers at the full context, beside what `plan` predicts. Needs about 25 GB of disk. With --gptq only the
calibrated algorithm's time and memory a layer are taken. The weights are noise: nothing is said about quality.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfcompress.architectures.checkpoint import INDEX, write_shard
from hfcompress.architectures.decoder_spec import LanguageShape

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

    from hfcompress.training.pretrain import byte_pair_tokenizer

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
        "import json, time; from pathlib import Path; from hfcompress.formats.memory import rss_mb\n"
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


def decode_seconds(folder: Path, threads: int, tokens: int, depth: int) -> Callable[[], Any]:
    """Milliseconds a token, the median, after `depth` others."""

    def measure() -> dict[str, float]:
        code = (
            f"from hfcompress.formats.runtimes.onnx_decoder import OnnxDecoder\nimport statistics, time as t\n"
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


def measured_stage(work: Path, name: str, module: str, call: str, **inputs: Any) -> tuple[Path, dict[str, Any]]:
    """Run a stage in a fresh process into its folder."""
    out = fresh(work / name)
    given = "".join(f", {key}={source(value)}" for key, value in inputs.items())
    stage = call.partition("(")[0]
    task = "from hfcompress.tasks.text_generation import CausalLM\n" if "task" in inputs else ""
    found = in_fresh_process(f"{task}from {module} import {stage}\n{call}(Path({str(out)!r}){given})")
    shutil.rmtree(out / "work", ignore_errors=True)
    return out, found


def source(value: Any) -> str:
    """An input as Python: folders are paths, the rest stands as it is written."""
    return f"Path({str(value)!r})" if isinstance(value, Path) else str(value)


def weights_bytes(folder: Path) -> int:
    files = [*folder.glob("*.safetensors"), *folder.glob("*.onnx.data")]
    return sum(file.stat().st_size for file in files)


def streamed(work: Path, checkpoint: Path, options: argparse.Namespace) -> Path:
    """Allot, round, write the ONNX folder; what the last two take is held against mere copying."""
    calibration, found = measured_stage(
        work,
        "calibration",
        "hfcompress.compress.quantize.calibrate",
        "Calibrate(windows=1)",
        model=checkpoint,
        task="CausalLM(window=128, stride=64, calibration_windows=1)",
    )
    say("calibrate, 128 tokens", found)
    allotment, found = measured_stage(
        work,
        "allotment",
        "hfcompress.compress.quantize.bit_allocation",
        "Allot(group_sizes=(128, 256))",
        model=checkpoint,
        calibration=calibration,
        ram_gb=options.ram_gb,
        context=options.context,
    )
    say(f"allot, {options.ram_gb} GB", found | chosen_bits(allotment))
    packed, of_rtn = measured_stage(
        work,
        "packed",
        "hfcompress.compress.quantize.weight_only",
        "WeightOnly('rtn', max_memory_gb=4.0)",
        model=checkpoint,
        task=None,
        allotment=allotment,
    )
    say("rtn", of_rtn | {"bytes": weights_bytes(packed)})
    onnx, of_onnx = measured_stage(
        work,
        "onnx",
        "hfcompress.formats.genai",
        f"ExportGenai(context={options.context}, windows=1)",
        model=packed,
        task="CausalLM(window=128, stride=64, calibration_windows=1)",
    )
    say("onnx, int8 cache", of_onnx | {"bytes": weights_bytes(onnx)})
    _, of_float = measured_stage(
        work,
        "float",
        "hfcompress.formats.genai",
        f"ExportGenai('float32', context={options.context}, windows=1)",
        model=packed,
        task="CausalLM(window=128, stride=64, calibration_windows=1)",
    )
    shutil.rmtree(work / "float")
    say("onnx, float32 cache", of_float)
    copied = copying_seconds(checkpoint, weights_bytes(onnx), work / "scratch")
    seconds = of_rtn["seconds"] + of_float["seconds"]
    say(
        "rtn + onnx, float32 cache",
        {"seconds": round(seconds, 1), "copy_s": round(copied, 1), "ratio": round(seconds / copied, 2)},
    )
    return onnx


def chosen_bits(allotment: Path) -> dict[str, Any]:
    """How many weights have which grid, and what that takes."""
    found = json.loads((allotment / "allotment.json").read_text())
    share: dict[str, float] = {}
    total = sum(module["weights"] for module in found["modules"].values())
    for name, grid in found["grids"].items():
        key = f"{grid['bits']}g{grid['group_size']}"
        share[key] = share.get(key, 0.0) + found["modules"][name]["weights"] / total
    return {"share": {key: round(value, 4) for key, value in sorted(share.items())}} | {
        name: found[name] for name in ("bytes", "resident_bytes", "allowed_resident_bytes")
    }


def served(onnx: Path, options: argparse.Namespace) -> None:
    """Decoding and memory of the ONNX folder, beside the prediction for this machine."""
    from hfcompress.formats.language_memory import fresh_process
    from hfcompress.planning.decoders import expected
    from hfcompress.planning.devices.memory import decode_ms, device, first_token_ms

    parts = expected(onnx, options.context)
    read = LanguageShape.read(onnx)
    shape = replace(
        read,
        kv_bits=8,
        resident_bits=8 * parts["weights"] / (read.layer_parameters + read.head_parameters),
        embedding_bits=8 * parts["embedding"] / read.embedding_parameters,
    )
    for depth in (64, options.context - 64):
        before = device("here", options.threads)  # shared memory is not equally fast from minute to minute
        timed = decode_seconds(onnx, options.threads, 24, depth)()
        after = device("here", options.threads)
        predicted = {
            "predicted_ms": [round(decode_ms(shape, here, depth), 1) for here in (before, after)],
            "predicted_prompt_s": [round(first_token_ms(shape, here, depth) / 1e3, 1) for here in (before, after)],
            "gb_per_s": [round(here.memory_bandwidth, 1) for here in (before, after)],
        }
        say(f"decode after {depth}", {name: round(v, 2) for name, v in timed.items()} | predicted)
    told = {name: round(value / 1e6, 1) for name, value in parts.items()}
    say("expected resident, MB", told | {"sum": round(sum(told.values()), 1)})
    say(f"fresh process, {options.context} tokens", fresh_process(onnx, options.context, options.threads))


def one_gptq(work: Path, checkpoint: Path, layers: int, windows: int) -> None:
    """GPTQ of windows of 512 tokens, under 4 GB."""
    task = f"CausalLM(window=512, stride=256, calibration_windows={windows})"
    out, found = measured_stage(
        work,
        "gptq",
        "hfcompress.compress.quantize.weight_only",
        "WeightOnly('gptq', max_memory_gb=4.0)",
        model=checkpoint,
        task=task,
    )
    written = [file.stat().st_mtime for file in sorted(out.glob("*.safetensors"))]  # embedding, layers, head
    found |= {"layer_s": round((written[-2] - written[0]) / layers, 1), "head_s": round(written[-1] - written[-2], 1)}
    say(f"gptq, {layers} layers and the head, {512 * windows:,} tokens", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, default=Path("runs/shape_7b"))
    parser.add_argument("--layers", type=int)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ram-gb", type=float, default=4.0)
    parser.add_argument("--gptq", action="store_true")
    parser.add_argument("--windows", type=int, default=128, help="of 512 tokens, that calibrate with --gptq")
    options = parser.parse_args()
    from hfcompress.folders.record import cpu_name

    layers = options.layers or (1 if options.gptq else 32)
    work: Path = options.work
    say("machine", {"cpu": cpu_name(), "threads": options.threads})
    checkpoint = work / f"bf16-{layers}"
    if not (checkpoint / INDEX).is_file():
        write_random(checkpoint, layers)
    say("checkpoint", {"bytes": weights_bytes(checkpoint)})
    if options.gptq:
        one_gptq(work, checkpoint, layers, options.windows)
    else:
        served(streamed(work, checkpoint, options), options)


if __name__ == "__main__":
    main()
