"""What kind of model a config.json describes: asked here alone, of the tables of architectures.

The stack of layers says which sizes a model has (`is_decoder`), its head says what it is asked (`is_causal_lm`,
`classifies_texts`): a Llama with a classification head is a decoder, and no causal LM.
"""

from pathlib import Path
from typing import Any

from hfcompress.architectures import DECODERS, IMAGE_MODELS
from hfcompress.architectures.click_inputs import MODEL_TYPE
from hfcompress.folders.guard import read_config

CAUSAL = ("CausalLM", "LMHeadModel")
"""Ends of the names of classes that write on from a text."""
WRITERS = (*CAUSAL, "ConditionalGeneration")
"""Those, and the ends of the names of classes that read another text first."""
TEXT_CLASSIFIER = "ForSequenceClassification"

Config = dict[str, Any]


def is_click_model(config: Config) -> bool:
    """Return whether a config is of a model of clicks, our own architecture."""
    return config.get("model_type") == MODEL_TYPE


def is_image_model(config: Config) -> bool:
    """Return whether a config is of an image classifier; transformers is asked only where no table says it."""
    kind = config.get("model_type")
    if kind in IMAGE_MODELS:
        return True
    could_be = named(config, "ForImageClassification") or "vocab_size" not in config
    return could_be and isinstance(kind, str) and is_vision(kind)


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder's config.json is of an image classifier; a missing one is not.

    Raises:
        UserError: see `guard.read_config`.
    """
    return (folder / "config.json").is_file() and is_image_model(read_config(folder))


def is_decoder(config: Config) -> bool:
    """Return whether a config is of a decoder: one of the table whatever its head is, or any causal LM."""
    return config.get("model_type") in DECODERS or is_causal_lm(config)


def is_causal_lm(config: Config) -> bool:
    """Return whether a config names the class of a causal LM."""
    return named(config, *CAUSAL)


def writes_text(config: Config) -> bool:
    """Return whether a config names the class of a model that writes text, be it of a text that it reads first."""
    return named(config, *WRITERS)


def classifies_texts(config: Config) -> bool:
    """Return whether a config names the class of a text classifier."""
    return named(config, TEXT_CLASSIFIER)


def is_text_classifier(made: type) -> bool:
    """Return whether a class of transformers is a text classifier's."""
    return made.__name__.endswith(TEXT_CLASSIFIER)


def named(config: Config, *ends: str) -> bool:
    """Return whether a config names a class whose name ends so."""
    return any(str(name).endswith(ends) for name in config.get("architectures") or [])


def is_vision(model_type: str) -> bool:
    """Return whether transformers has an image classifier of a model type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
