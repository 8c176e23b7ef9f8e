"""Gemma 2, as Gemma2ForCausalLM: Gemma with norms behind, caps, and a window in every other layer."""

from dataclasses import replace

from hfcompress.architectures.decoder import GELU_TANH, LlamaCpp
from hfcompress.architectures.gemma import GEMMA

FIELDS = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "hidden_activation": GELU_TANH,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "sliding_window": 4096,
    "layer_types": None,
    "query_pre_attn_scalar": 256,
}
GEMMA2 = replace(
    GEMMA,
    name="Gemma 2",
    model_type="gemma2",
    class_name="Gemma2ForCausalLM",
    # llama.cpp knows the 27B by its layers: it alone divides attention by another number than the head's size.
    llama_cpp=LlamaCpp("gemma2", own_head=False, unwindowed_every=2, scalar_of_even_heads_at=46, softcaps=True),
    fields=FIELDS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    norms_after=True,
    unwindowed_every=2,
)
