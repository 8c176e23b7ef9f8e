"""Llama, as LlamaForCausalLM: Llama 2 and 3, and the many models saved in its classes."""

from hfcompress.architectures.decoder import Decoder, LlamaCpp

LLAMA_GRAPH = LlamaCpp(
    "llama",
    rotates_neighbors=True,
    rope_types=("default", "linear", "llama3"),
    output_bias=True,
    mlp_bias=True,
)
LLAMA = Decoder(
    "Llama", "llama", "LlamaForCausalLM", llama_cpp=LLAMA_GRAPH, fields={"attention_bias": False, "mlp_bias": False}
)
