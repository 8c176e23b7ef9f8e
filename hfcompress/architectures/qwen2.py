"""Qwen2 and Qwen2.5, as Qwen2ForCausalLM."""

from hfcompress.architectures.decoder import Decoder, LlamaCpp

WINDOWS = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28, "layer_types": None}
QWEN2 = Decoder(
    "Qwen2",
    "qwen2",
    "Qwen2ForCausalLM",
    llama_cpp=LlamaCpp("qwen2", even_heads=True),
    fields={"num_key_value_heads": 32} | WINDOWS,
    query_biases=True,
)
