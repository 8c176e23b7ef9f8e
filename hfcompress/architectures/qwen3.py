"""Qwen3, as Qwen3ForCausalLM: the dense models."""

from hfcompress.architectures.decoder import Decoder, LlamaCpp
from hfcompress.architectures.qwen2 import WINDOWS

QWEN3 = Decoder(
    "Qwen3",
    "qwen3",
    "Qwen3ForCausalLM",
    llama_cpp=LlamaCpp("qwen3"),
    fields={"head_dim": 128, "num_key_value_heads": 32, "attention_bias": False} | WINDOWS,
    head_norms=True,
)
