"""How a pruned model is written down: as a stock class's config where one can express its shape, else as edits."""

import copy
from typing import TYPE_CHECKING, Any

from hfcompress.architectures import ENCODERS, IMAGE_MODELS
from hfcompress.architectures.patches import edits_of, resizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def named_shape(whole: "PreTrainedModel", network: "PreTrainedModel") -> str:
    """Give `network`, cut in place from what `whole` still is, the config or the edits that lead to its shape.

    Returns: "transformers" when its config says the shape, "surgery" when its edits do.
    """
    changes = None if edits_of(whole) else config_changes(network)
    if changes is not None:
        config = copy.deepcopy(network.config)
        config.update(changes)
        stock = type(network)(config)
        if not resizes(stock, network):
            network.config.update(changes)
            return "transformers"
    network.edits = [*edits_of(whole), *resizes(whole, network)]
    return "surgery"


def config_changes(network: Any) -> dict[str, Any] | None:
    """The fields of a config that come nearest to the model's widths; None for a class that has no such fields.

    An image model says it of itself (see `image.ImageArchitecture`). An encoder's layers all have the same number of
    neurons, and heads only shrink with the hidden size.
    """
    if encoder := ENCODERS.get(network.config.model_type):
        first = network.get_submodule(f"{encoder.body}.{encoder.layers}.0.{encoder.neurons_input}")
        return {encoder.name("intermediate_size"): first.out_features}
    if image := IMAGE_MODELS.get(network.config.model_type):
        return image.config_changes(network)
    return None
