"""SmolLM3, as SmolLM3ForCausalLM: Llama of which every fourth layer does not rotate (NoPE; Yang et al. 2025)."""

from hfcompress.architectures.decoder import Decoder, LlamaCpp

SMOLLM3 = Decoder(
    "SmolLM3",
    "smollm3",
    "SmolLM3ForCausalLM",
    llama_cpp=LlamaCpp("smollm3", rotates_neighbors=True, unrotated_every=4),
    fields={
        "num_key_value_heads": 4,
        "rope_theta": 2_000_000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "sliding_window": None,
        "use_sliding_window": False,
        "layer_types": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    },
)
