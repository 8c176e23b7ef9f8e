"""Causal LMs that keep more of a text than keys and values: Mamba, convolutions, linear attention.

Such a state cannot be rewound to fewer tokens, as speculation, streaming and the measurement of a prompt ask for.
"""

import sys
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError

ATTENTION = {"attention", "full_attention", "sliding_attention", "chunked_attention"}


def require_key_values(folder: Path, config: Any, model_class: type | None = None) -> None:
    """Refuse a model whose layers keep a state that is no keys and values.

    transformers says so by `_is_stateful`, by the kinds of layers in the config, or in version 4 by a cache class in
    the architecture's own module.

    Args:
        config: transformers' config of the folder.
        model_class: the class of the model; None for the one that AutoModelForCausalLM would take.

    Raises:
        UserError: with the model_type.
    """
    from transformers import AutoModelForCausalLM, cache_utils

    if model_class is None:
        model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "layers_block_type", None) or ())}
    module = vars(sys.modules[model_class.__module__]) if model_class else {}
    own = [
        found
        for name, found in module.items()
        if name.endswith("Cache") and isinstance(found, type) and found.__module__ != cache_utils.__name__
    ]
    if getattr(model_class, "_is_stateful", False) or kinds - ATTENTION or own:
        raise stateful(folder, config)


def stateful(folder: Path, config: Any) -> UserError:
    """Return the refusal of a model whose state is more than keys and values."""
    return UserError(
        f"{folder}: a {config.model_type} keeps a state of the text beside keys and values, or in place of them, and "
        "only these can be read back; transformers' own generate runs it"
    )
