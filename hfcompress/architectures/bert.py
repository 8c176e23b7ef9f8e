"""BERT, as BertForSequenceClassification (Devlin et al. 2019)."""

from hfcompress.architectures.encoder import Encoder

BERT = Encoder(model_types=("bert",), body="bert", pooler="bert.pooler.dense", classifier="classifier")
