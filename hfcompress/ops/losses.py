"""Distillation losses: tensors in, one scalar out.

Each is a mean over texts of what a text's tokens give, however the texts are divided among ranks;
the exception is `labelled_cross_entropy` where ranks hold unlike numbers of texts with a label.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of logits [batch, classes] at a temperature, times its square, mean over the batch.

    Source: Hinton, Vinyals and Dean 2015, section 2; the square keeps the gradient's scale independent of T.
    """
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
    return functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def mixed_logits(teacher: Tensor, other: Tensor, weight: float, temperature: float) -> Tensor:
    """Logits [batch, classes] that at the temperature are the mean of two teachers' soft labels.

    Args:
        teacher: logits of the first; other: probabilities of the second; weight: the second one's, from 0 to 1.
    """
    mixed = (1 - weight) * functional.softmax(teacher / temperature, dim=-1) + weight * other
    return temperature * mixed.clamp(min=1e-9).log()


def labelled_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits [batch, classes] over the examples that have a label; -100 means none.

    0 when no example has one.
    """
    total = functional.cross_entropy(
        logits, labels, ignore_index=-100, reduction="sum", label_smoothing=label_smoothing
    )
    return total / (labels != -100).sum().clamp(min=1)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits [batch, classes], each example's times its weight [batch], mean over the batch."""
    each = functional.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=label_smoothing)
    return (each * weights).mean()


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of hidden states [batch, tokens, size] over a text's tokens (mask [batch, tokens]).

    Source: Jiao et al. 2020 (TinyBERT), equation 8; the student's states come projected to the teacher's size.
    """
    squared = (student - teacher).square().mean(dim=-1)
    return ((squared * mask).sum(dim=1) / mask.sum(dim=1)).mean()


def states_mse(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over layers of E|student - teacher|^2 / E|teacher|^2: a network's states against its uncut original's.

    After hints (Romero et al. 2015, "FitNets", equation 3), without a regressor: a cut layer's states are its
    original's, and divided by their size, which differs by layer.

    Args:
        student, teacher: states of the same layers, of equal shapes.
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([(s - t).square().mean() / t.square().mean().clamp(min=1e-12) for s, t in pairs]).mean()


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of attention maps [batch, tokens, tokens] over pairs of a text's tokens.

    The maps are means over the heads, so that student and teacher may have different numbers of them.
    Source: Jiao et al. 2020 (TinyBERT), equation 7 (there head by head, and before the softmax).
    """
    pairs = mask[:, :, None] * mask[:, None, :]
    squared = (student - teacher).square() * pairs
    return (squared.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))).mean()


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """KL between the relations of vectors [batch, tokens, size] (queries, keys or values, all heads side by side).

    The vectors are cut anew into `heads` relation heads; a relation is the softmax over tokens of the scaled dot
    products of a token with all tokens. Mean over a text's tokens and heads. Student and teacher may differ in size.
    Source: Wang et al. 2021 (MiniLMv2), section 3.1.
    """
    log_student, log_teacher = (log_relations(vectors, mask, heads) for vectors in (student, teacher))
    each = (log_teacher.exp() * (log_teacher - log_student)).masked_fill(mask[:, None, None, :] == 0, 0.0).sum(dim=-1)
    return ((each * mask[:, None, :]).sum(dim=(1, 2)) / (mask.sum(dim=1) * heads)).mean()


def log_relations(vectors: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Log-softmax of scaled dot products [batch, heads, tokens, tokens]; padding tokens are never attended to."""
    batch, tokens, size = vectors.shape
    split = vectors.float().view(batch, tokens, heads, size // heads).transpose(1, 2)
    with torch.autocast(vectors.device.type, enabled=False):  # differences of logarithms drown in bf16's 8 bits
        scores = split @ split.transpose(-1, -2) / math.sqrt(size // heads)
    return functional.log_softmax(
        scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min), dim=-1
    )
