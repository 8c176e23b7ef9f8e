"""RoBERTa, XLM-RoBERTa and CamemBERT (Liu et al. 2019): BERT's layers, and a head of two layers instead of a pooler.

Rows of the position table begin behind the padding token's: two positions fewer than the table has rows.
"""

from hfcompress.architectures.encoder import Encoder

ROBERTA = Encoder(
    model_types=("roberta", "xlm-roberta", "camembert"),
    body="roberta",
    pooler="classifier.dense",
    classifier="classifier.out_proj",
    defaults={"type_vocab_size": 1},
)
