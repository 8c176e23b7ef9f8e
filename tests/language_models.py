"""Tiny causal LMs for tests: a Llama from a config, a tokenizer of bytes, and texts that it can learn."""

from pathlib import Path
from typing import Any

from hfcompress.architectures.checkpoint import write_shard
from hfcompress.ops.grid import Grid
from hfcompress.tasks.text_generation import CausalLM
from hfcompress.training.pretrain import Pretrain, byte_pair_tokenizer

WORDS = ["the", "licence", "grants", "you", "a", "right", "to", "use", "copy", "modify", "and", "distribute", "these"]


def texts(count: int, seed: int) -> list[str]:
    """Sentences in which a word mostly decides the next one, so that there is something to learn."""
    import numpy as np

    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        places = [int(random.integers(len(WORDS)))]
        for _ in range(39):
            follows = (3 * places[-1] + 1) % len(WORDS)
            places.append(follows if random.random() < 0.8 else int(random.integers(len(WORDS))))
        found.append(" ".join(WORDS[place] for place in places) + ".")
    return found


def write_task(folder: Path) -> CausalLM:
    """A data set of such texts as a task with windows of 32 tokens."""
    from datasets import Dataset

    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate({"train": 60, "validation": 8, "test": 12}.items()):
        Dataset.from_dict({"text": texts(count, seed)}).to_parquet(folder / f"{split}.parquet")
    return CausalLM(dataset=str(folder), window=32, stride=16, calibration_windows=8, test_tokens=400)


def train_llama(folder: Path, task: CausalLM, *, steps: int, layers: int) -> Path:
    """A Llama of hidden size 64 that has learned a task's texts."""
    Pretrain(
        max_steps=steps, learning_rate=5e-3, per_device_train_batch_size=8, group_by_length=False, bf16="no",
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=layers,
    )(folder, task=task)  # fmt: skip
    return folder


def write_llama(folder: Path, *, tied: bool = True, kind: str = "Llama", seed: int = 0, **changes: Any) -> Path:
    """A random model with large weights, so that its predictions are far from uniform."""
    import torch
    import transformers

    torch.manual_seed(seed)
    shape = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
        "initializer_range": 0.12,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**shape | changes)
    getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).save_pretrained(folder)
    byte_pair_tokenizer(texts(60, 0), shape["vocab_size"]).save_pretrained(folder)
    return folder


def write_decoder(folder: Path, model_type: str, **changes: Any) -> Path:
    """A random model of any class, with large weights, and with norms and biases of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, initializer_range=0.12, **ids | changes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight += torch.linspace(-0.3, 0.5, len(weight))
            if name.endswith(".bias"):
                weight.normal_(std=0.3)
    model.save_pretrained(folder)
    byte_pair_tokenizer(texts(60, 0), model.config.vocab_size).save_pretrained(folder)
    return folder


def pack_model(model: Path, out: Path, grid: Grid) -> Path:
    """Every matrix rounded to nearest, as a packed folder."""
    from hfcompress.compress.quantize.weight_only import WeightOnly

    (out / "work").mkdir(parents=True)
    WeightOnly("rtn", grid.bits, grid.group_size, grid.symmetric)(out, model=model, task=CausalLM())
    return out


def rewrite(model: Path, name: str, value: Any) -> None:
    """Replace a tensor in model.safetensors."""
    from safetensors.torch import load_file

    tensors = load_file(model / "model.safetensors")
    tensors[name] = value(tensors[name])
    write_shard(model / "model.safetensors", tensors)
