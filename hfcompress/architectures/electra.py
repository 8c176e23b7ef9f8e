"""ELECTRA's discriminators (Clark et al. 2020): BERT's layers, and a head of two layers instead of a pooler.

Those of the small size project narrower embeddings to the hidden size, and are refused.
"""

from hfcompress.architectures.encoder import Encoder

ELECTRA = Encoder(
    model_types=("electra",),
    body="electra",
    pooler="classifier.dense",
    classifier="classifier.out_proj",
    defaults={"embedding_size": 128},
    as_hidden_size=("embedding_size",),
    starts_as_mean=False,  # its head's activation is a GELU
)
