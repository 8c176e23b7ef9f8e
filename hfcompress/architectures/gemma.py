"""Gemma, as GemmaForCausalLM: norms that multiply by 1 + their weight, a scaled embedding, GELU."""

from hfcompress.architectures.decoder import GELU_TANH, Decoder, LlamaCpp

GEMMA = Decoder(
    "Gemma",
    "gemma",
    "GemmaForCausalLM",
    llama_cpp=LlamaCpp("gemma", own_head=False),
    fields={
        "head_dim": 256,
        "num_key_value_heads": 16,
        "hidden_act": GELU_TANH,
        "tie_word_embeddings": True,
        "attention_bias": False,
    },
    norm_offset=1.0,
    embedding_root=True,
    usual_activation=GELU_TANH,
    overflows_float16=True,
)
