"""Cutting rows and columns out of linear layers, embeddings and LayerNorms."""

import torch
from torch import Tensor, nn


def head_rows(heads: Tensor, head_size: int) -> Tensor:
    """The rows of a projection that belong to these heads: [heads] -> [heads * head_size]."""
    return (heads[:, None] * head_size + torch.arange(head_size, device=heads.device)).flatten()


def cut_linear(layer: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """A new Linear with these outputs (rows) and inputs (columns) of `layer`; None keeps all."""
    weight = layer.weight.detach()
    bias = layer.bias.detach() if layer.bias is not None else None
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    new.weight = nn.Parameter(weight.clone())
    if bias is not None:
        new.bias = nn.Parameter(bias.clone())
    return new


def cut_embedding(layer: nn.Embedding, columns: Tensor) -> nn.Embedding:
    """A new Embedding with these dimensions."""
    new = nn.Embedding(layer.num_embeddings, len(columns), padding_idx=layer.padding_idx)
    new.weight = nn.Parameter(layer.weight.detach()[:, columns].clone())
    return new


def cut_layer_norm(layer: nn.LayerNorm, kept: Tensor) -> nn.LayerNorm:
    """A new LayerNorm over these dimensions."""
    new = nn.LayerNorm(len(kept), eps=layer.eps)
    new.weight = nn.Parameter(layer.weight.detach()[kept].clone())
    new.bias = nn.Parameter(layer.bias.detach()[kept].clone())
    return new
