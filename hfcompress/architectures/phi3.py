"""Phi-3, Phi-3.5 and Phi-4 mini, as Phi3ForCausalLM: fused matrices, and heads of which a part is rotated."""

from hfcompress.architectures.decoder import Decoder, LlamaCpp

PHI3 = Decoder(
    "Phi-3",
    "phi3",
    "Phi3ForCausalLM",
    llama_cpp=LlamaCpp("phi3", even_heads=True),
    fields={"rms_norm_eps": 1e-5, "sliding_window": None, "partial_rotary_factor": 1.0},
    fused=True,
)
