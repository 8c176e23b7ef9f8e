"""Rows and columns that stay are the right ones, and copies."""

import torch
from torch import nn

from hfcompress.ops.slicing import cut_embedding, cut_layer_norm, cut_linear, head_rows


def numbered_linear() -> nn.Linear:
    layer = nn.Linear(3, 2)
    layer.weight.data = torch.tensor([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]])
    layer.bias.data = torch.tensor([7.0, 8.0])
    return layer


def test_the_rows_of_heads_are_blocks() -> None:
    assert head_rows(torch.tensor([0, 2]), 3).tolist() == [0, 1, 2, 6, 7, 8]


def test_a_linear_keeps_rows_with_their_biases_and_columns() -> None:
    cut = cut_linear(numbered_linear(), torch.tensor([1]), torch.tensor([0, 2]))
    assert cut.weight.tolist() == [[10.0, 12.0]]
    assert cut.bias.tolist() == [8.0]
    assert (cut.in_features, cut.out_features) == (2, 1)


def test_none_keeps_all_and_a_missing_bias_stays_missing() -> None:
    layer = nn.Linear(3, 2, bias=False)
    cut = cut_linear(layer, None, None)
    assert torch.equal(cut.weight, layer.weight)
    assert cut.bias is None


def test_embeddings_and_layer_norms_keep_dimensions() -> None:
    embedding = nn.Embedding(2, 3, padding_idx=0)
    embedding.weight.data = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    cut = cut_embedding(embedding, torch.tensor([0, 2]))
    assert cut.weight.tolist() == [[0.0, 2.0], [3.0, 5.0]]
    assert (cut.embedding_dim, cut.padding_idx) == (2, 0)
    norm = nn.LayerNorm(3, eps=1e-3)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    small = cut_layer_norm(norm, torch.tensor([1, 2]))
    assert (small.weight.tolist(), small.bias.tolist(), small.eps) == ([2.0, 3.0], [5.0, 6.0], 1e-3)


def test_what_was_cut_from_is_left_alone() -> None:
    layer = numbered_linear()
    cut = cut_linear(layer, torch.tensor([0, 1]), torch.tensor([0, 1, 2]))
    cut.weight.data.zero_()
    assert layer.weight[1, 2].item() == 12.0
