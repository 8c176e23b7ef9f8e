"""Gemma 3 of text, as Gemma3ForCausalLM: Gemma 2 without caps, with normed heads and two rotary tables."""

from dataclasses import replace

from hfcompress.architectures.gemma2 import FIELDS, GEMMA2

GEMMA3 = replace(
    GEMMA2,
    name="Gemma 3 (text)",
    model_type="gemma3_text",
    class_name="Gemma3ForCausalLM",
    llama_cpp=None,
    # Its class reads attn_logit_softcapping, and applies none.
    fields=FIELDS | {"sliding_window_pattern": 6, "final_logit_softcapping": None, "rope_theta": 1_000_000.0},
    head_norms=True,
    unwindowed_every=0,
    local_rotary=True,
)
