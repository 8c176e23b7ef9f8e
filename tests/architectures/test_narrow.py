"""Shapes that cannot be are refused with the option and what is allowed."""

import pytest

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.subnetworks import narrowed
from hfcompress.errors import UserError

MINILM = Shape(num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536, vocab_size=30522)


def test_nothing_given_keeps_all() -> None:
    assert narrowed(MINILM) == MINILM


@pytest.mark.parametrize("options", [{"num_attention_heads": 8}, {"hidden_size": 256}])
def test_heads_and_hidden_size_define_each_other(options: dict[str, int]) -> None:
    found = narrowed(MINILM, **options)  # type: ignore[arg-type]
    assert (found.num_attention_heads, found.hidden_size) == (8, 256)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_hidden_layers": 7}, ["num_hidden_layers 7", "from 1 to 6"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers 0", "from 1 to 6"]),
        ({"num_attention_heads": 13}, ["num_attention_heads 13", "from 1 to 12"]),
        ({"num_attention_heads": 0}, ["num_attention_heads 0", "from 1 to 12"]),
        ({"intermediate_size": 4096}, ["intermediate_size 4096", "from 1 to 1536"]),
        ({"hidden_size": 250}, ["hidden_size 250", "7 heads of 32", "224"]),
        ({"hidden_size": 16}, ["hidden_size 16", "multiple of 32", "from 32 to 384"]),
        ({"hidden_size": 768}, ["hidden_size 768", "from 32 to 384"]),
        ({"hidden_size": 256, "num_attention_heads": 4}, ["hidden_size 256", "4 heads of 32", "128"]),
    ],
)
def test_what_cannot_be_is_named(options: dict[str, int], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        narrowed(MINILM, **options)  # type: ignore[arg-type]
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
