"""What rounding a weight does to the model's predictions, before anything is rounded for good.

To second order, KL(model || rounded model) = 1/2 d' F d with F the Fisher information and d the change of a layer's
output. With F's diagonal over outputs (as in K-FAC, Martens and Grosse 2015, section 3) and rounding errors that are
uncorrelated between the columns of a matrix, this is 1/2 sum_rc rows[r] * columns[c] * D[r, c]^2: for a linear layer
rows = E[gradient^2] of each output and columns = E[input^2]; for an embedding rows = frequency of a token, columns =
E[gradient^2] of each dimension.
"""

import torch
from torch import Tensor


def predicted_kl(error: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Nats a token that an error D [rows, columns] costs; rows [rows] and columns [columns] as above."""
    return 0.5 * (rows @ (error.square() @ columns))


def sampled_loss(logits: Tensor, seed: int) -> Tensor:
    """Summed -log p of tokens drawn from the model itself, logits [tokens, vocab]: its gradient's square is F's."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(1)
    return torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
