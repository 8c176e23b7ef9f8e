"""Which smaller shapes can be cut out of a model: refused from plain numbers, before anything is trained."""

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.errors import OptionError


def narrowed(
    model: Shape,
    *,
    num_hidden_layers: int | None = None,
    num_attention_heads: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
) -> Shape:
    """The shape that is left of `model` when so much of it is kept; None keeps all.

    Heads stay whole and the stock classes derive their size as hidden_size / num_attention_heads, so the hidden size
    is always heads x the model's own head size; one of the two is enough.

    Raises:
        OptionError: more than the model has, or what the stock class cannot express; says what is allowed.
    """
    head_size = model.hidden_size // model.num_attention_heads
    heads = num_attention_heads
    if heads is None:
        heads = model.num_attention_heads if hidden_size is None else hidden_size // head_size
    kept = {
        "num_hidden_layers": model.num_hidden_layers if num_hidden_layers is None else num_hidden_layers,
        "num_attention_heads": heads,
        "intermediate_size": model.intermediate_size if intermediate_size is None else intermediate_size,
    }
    if num_attention_heads is None and hidden_size is not None and not 1 <= heads <= model.num_attention_heads:
        reason = "a multiple of {size} (the head size) from {size} to {most} (the model it is cut from)"
        raise OptionError("hidden_size", reason, hidden_size, size=head_size, most=model.hidden_size)
    for name, value in kept.items():
        most = getattr(model, name)
        if not 1 <= value <= most:
            raise OptionError(name, "from 1 to {most} (the model it is cut from has no more)", value, most=most)
    if hidden_size is not None and hidden_size != heads * head_size:
        reason = "the hidden size is heads x head size; with {heads} heads of {size} it is {product}"
        raise OptionError("hidden_size", reason, hidden_size, heads=heads, size=head_size, product=heads * head_size)
    return model.with_(**kept, hidden_size=heads * head_size)
