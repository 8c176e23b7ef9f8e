"""What is known of transformers' architectures: module names, config fields, shapes, and how a cut model is saved."""

from hfcompress.architectures.bert import BERT
from hfcompress.architectures.decoder import Decoder
from hfcompress.architectures.distilbert import DISTILBERT
from hfcompress.architectures.electra import ELECTRA
from hfcompress.architectures.encoder import Encoder
from hfcompress.architectures.gemma import GEMMA
from hfcompress.architectures.gemma2 import GEMMA2
from hfcompress.architectures.gemma3 import GEMMA3
from hfcompress.architectures.granite import GRANITE
from hfcompress.architectures.image import ImageArchitecture
from hfcompress.architectures.llama import LLAMA
from hfcompress.architectures.ministral import MINISTRAL
from hfcompress.architectures.mistral import MISTRAL
from hfcompress.architectures.mobilenet_v2 import MOBILENET_V2
from hfcompress.architectures.phi3 import PHI3
from hfcompress.architectures.qwen2 import QWEN2
from hfcompress.architectures.qwen3 import QWEN3
from hfcompress.architectures.resnet import RESNET
from hfcompress.architectures.roberta import ROBERTA
from hfcompress.architectures.smollm3 import SMOLLM3

KNOWN = (BERT, ROBERTA, DISTILBERT, ELECTRA)
ENCODERS: dict[str, Encoder] = {kind: encoder for encoder in KNOWN for kind in encoder.model_types}
"""config.json's model_type -> the encoder. A new architecture is a file beside these and an entry here."""

KNOWN_DECODERS = (LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, GEMMA, GEMMA2, GEMMA3, MINISTRAL, GRANITE, SMOLLM3)
DECODERS: dict[str, Decoder] = {decoder.model_type: decoder for decoder in KNOWN_DECODERS}
"""config.json's model_type -> the causal LM. A new one is a file beside these and an entry in KNOWN_DECODERS."""

KNOWN_IMAGE_MODELS = (MOBILENET_V2, RESNET)
IMAGE_MODELS: dict[str, ImageArchitecture] = {kind: each for each in KNOWN_IMAGE_MODELS for kind in each.model_types}
"""config.json's model_type -> the image architecture, whose list of blocks is read wherever its layers are needed."""
