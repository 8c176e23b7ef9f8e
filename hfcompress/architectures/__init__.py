"""What is known of transformers' architectures: module names, config fields, shapes, and how a cut model is saved."""

from hfcompress.architectures.bert import BERT
from hfcompress.architectures.distilbert import DISTILBERT
from hfcompress.architectures.electra import ELECTRA
from hfcompress.architectures.encoder import Encoder
from hfcompress.architectures.image import ImageArchitecture
from hfcompress.architectures.mobilenet_v2 import MOBILENET_V2
from hfcompress.architectures.resnet import RESNET
from hfcompress.architectures.roberta import ROBERTA

KNOWN = (BERT, ROBERTA, DISTILBERT, ELECTRA)
ENCODERS: dict[str, Encoder] = {kind: encoder for encoder in KNOWN for kind in encoder.model_types}
"""config.json's model_type -> the encoder. A new architecture is a file beside these and an entry here."""

KNOWN_IMAGE_MODELS = (MOBILENET_V2, RESNET)
IMAGE_MODELS: dict[str, ImageArchitecture] = {kind: each for each in KNOWN_IMAGE_MODELS for kind in each.model_types}
"""config.json's model_type -> the image architecture, whose list of blocks is read wherever its layers are needed."""
