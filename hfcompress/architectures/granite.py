"""Granite, as GraniteForCausalLM: Llama with four multipliers (Granite 3; Shen et al. 2024, "Power Scheduler")."""

from hfcompress.architectures.decoder import Decoder, LlamaCpp

GRANITE = Decoder(
    "Granite",
    "granite",
    "GraniteForCausalLM",
    llama_cpp=LlamaCpp("granite", rotates_neighbors=True, output_bias=True, mlp_bias=True, multipliers=True),
    fields={
        "attention_bias": False,
        "mlp_bias": False,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
)
