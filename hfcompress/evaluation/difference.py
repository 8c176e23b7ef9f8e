"""How far a model's outputs moved from its parent's, on the same inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from hfcompress.formats.runtimes.predictor import open_predictor


def difference(parent: Path, child: Path, inputs: Sequence[Any], max_length: int) -> dict[str, Any]:
    """Compare the logits of two classifier folders on the same texts or images.

    Returns: examples, mean_abs_logit_difference, label_agreement (share of inputs with the same label), kl (mean
        KL(parent || child) in nats).
    """
    before, after = (open_predictor(folder).logits(inputs, max_length) for folder in (parent, child))
    p, q = log_softmax(before, axis=1), log_softmax(after, axis=1)
    return {
        "examples": len(inputs),
        "mean_abs_logit_difference": float(np.abs(before - after).mean()),
        "label_agreement": float((before.argmax(axis=1) == after.argmax(axis=1)).mean()),
        "kl": float((np.exp(p) * (p - q)).sum(axis=1).mean()),
    }
