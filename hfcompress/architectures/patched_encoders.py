"""The shape of an encoder that was cut or factored: what its surgery.json leaves of the config's."""

from hfcompress.architectures import ENCODERS
from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.patches import SURGERY, Edit
from hfcompress.errors import UserError

Sizes = dict[str, tuple[int, int]]  # a linear layer's inputs and outputs, by its module


def edited(shape: Shape, edits: list[Edit]) -> Shape:
    """The shape with as many weights in its linear layers, and in its word embeddings, as the edits leave.

    Layers that were cut unlike each other, heads too, are said as one feed-forward width with which the encoder has
    as many weights; factors as the share of the weights that they have (`linear_share`).

    Raises:
        UserError: an edit is not one of such an encoder's.
    """
    if not edits:
        return shape
    sizes, ranks, word_weights = linear_sizes(shape), dict[str, int](), shape.word_weights
    try:
        for edit in edits:
            if edit["edit"] == "resize":
                inputs, outputs = sizes[edit["module"]]
                sizes[edit["module"]] = edit["to"].get("in_features", inputs), edit["to"].get("out_features", outputs)
            elif edit["edit"] == "low_rank_linear":
                ranks[edit["module"]] = edit["rank"]
            elif edit["edit"] == "tt_embedding":
                from hfcompress.ops.tensor_train import train_weights

                word_weights = train_weights(shape.vocab_size, shape.hidden_size, edit["rank"])
            elif edit["edit"] != "attributes":
                raise KeyError(edit["edit"])
        cut = sum(inputs * outputs for inputs, outputs in sizes.values())
        saved = sum(sizes[name][0] * sizes[name][1] - rank * sum(sizes[name]) for name, rank in ranks.items())
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{SURGERY} does not fit the encoder ({error}); make the model again") from None
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    others = hidden**2 * (4 * layers + 1)
    width = max(1, round((cut - others) / (2 * hidden * layers)))
    whole = others + 2 * hidden * layers * width
    share = (cut - saved) / whole if ranks or width == 1 else 1.0  # too few weights for any width: in the share
    return shape.with_(intermediate_size=width, linear_share=share, word_weights=word_weights, format="surgery")


def linear_sizes(shape: Shape) -> Sizes:
    """The linear layers of the encoder, and the pooler's."""
    encoder, hidden, found = ENCODERS[shape.model_type], shape.hidden_size, Sizes()
    for i in range(shape.num_hidden_layers):
        layer = f"{encoder.body}.{encoder.layers}.{i}"
        for name in (encoder.query, encoder.key, encoder.value, encoder.context_output):
            found[f"{layer}.{name}"] = hidden, hidden
        found[f"{layer}.{encoder.neurons_input}"] = hidden, shape.intermediate_size
        found[f"{layer}.{encoder.neurons_output}"] = shape.intermediate_size, hidden
    return found | {encoder.pooler: (hidden, hidden)}
