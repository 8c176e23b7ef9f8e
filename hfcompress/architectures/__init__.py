"""What is known of transformers' architectures: module names, config fields, shapes, and how a cut model is saved."""

from hfcompress.architectures.bert import BERT
from hfcompress.architectures.distilbert import DISTILBERT
from hfcompress.architectures.electra import ELECTRA
from hfcompress.architectures.encoder import Encoder
from hfcompress.architectures.roberta import ROBERTA

KNOWN = (BERT, ROBERTA, DISTILBERT, ELECTRA)
ENCODERS: dict[str, Encoder] = {kind: encoder for encoder in KNOWN for kind in encoder.model_types}
"""config.json's model_type -> the encoder. A new architecture is a file beside these and an entry here."""
