"""A model on the meta device has the tensors and the ties of one that is built with its weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

from hfcompress.architectures.meta import meta_model

SMALL = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def ties(model: torch.nn.Module) -> list[set[str]]:
    """Return the names of each tensor that has several."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return [together for together in names.values() if len(together) > 1]


@pytest.mark.parametrize("tied", [True, False])
def test_names_shapes_types_and_ties_are_those_of_the_model_with_weights(tied: bool) -> None:
    config = LlamaConfig(**SMALL, tie_word_embeddings=tied)
    real, empty = AutoModelForCausalLM.from_config(config), meta_model(AutoModelForCausalLM, config)
    assert {name: (t.shape, t.dtype) for name, t in empty.state_dict().items()} == {
        name: (t.shape, t.dtype) for name, t in real.state_dict().items()
    }
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    assert ties(empty) == ties(real) == ([{"model.embed_tokens.weight", "lm_head.weight"}] if tied else [])


def test_models_that_are_built_afterwards_get_weights() -> None:
    meta_model(AutoModelForSequenceClassification, BertConfig(**SMALL))
    with pytest.raises(ValueError, match="hidden size"):
        meta_model(AutoModelForSequenceClassification, BertConfig(**SMALL | {"num_attention_heads": 3}))
    torch.manual_seed(0)
    word, normal = torch.nn.Linear(8, 8), AutoModelForSequenceClassification.from_config(BertConfig(**SMALL))
    assert 0 < word.weight.std() < 1
    assert 0.01 < normal.bert.embeddings.word_embeddings.weight.std() < 0.03
