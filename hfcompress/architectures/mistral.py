"""Mistral, as MistralForCausalLM: Llama with a window in every layer (Jiang et al. 2023)."""

from hfcompress.architectures.decoder import Decoder
from hfcompress.architectures.llama import LLAMA_GRAPH

MISTRAL = Decoder(
    "Mistral",
    "mistral",
    "MistralForCausalLM",
    llama_cpp=LLAMA_GRAPH,
    # Of one with layer_types transformers 4.57 makes a Ministral, which reads them.
    fields={"num_key_value_heads": 8, "sliding_window": 4096, "layer_types": None},
)
