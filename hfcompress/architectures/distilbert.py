"""DistilBERT (Sanh et al. 2019): no token types, and names of its own."""

from hfcompress.architectures.encoder import Encoder

DISTILBERT = Encoder(
    model_types=("distilbert",),
    body="distilbert",
    pooler="pre_classifier",
    classifier="classifier",
    layers="transformer.layer",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    context_output="attention.out_lin",
    context_norm="sa_layer_norm",
    neurons_input="ffn.lin1",
    neurons_output="ffn.lin2",
    neurons_norm="output_layer_norm",
    fields={
        "num_hidden_layers": "n_layers",
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
    defaults={
        "type_vocab_size": 0,
        "num_hidden_layers": 6,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "vocab_size": 30522,
    },
    starts_as_mean=False,  # its head's activation is a ReLU
    heads_cut_in_place=False,
)
