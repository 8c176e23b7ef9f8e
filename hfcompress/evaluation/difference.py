"""How far a model's outputs moved from its parent's, on the same inputs."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from hfcompress.evaluation.predictor import Predictor


def difference(parent: Path, child: Path, texts: list[str], max_length: int) -> dict[str, Any]:
    """Compare the logits of two classifier folders.

    Returns: examples, mean_abs_logit_difference, label_agreement (share of texts with the same label), kl (mean
        KL(parent || child) in nats).
    """
    before, after = (Predictor(folder).logits(texts, max_length) for folder in (parent, child))
    p, q = log_softmax(before, axis=1), log_softmax(after, axis=1)
    return {
        "examples": len(texts),
        "mean_abs_logit_difference": float(np.abs(before - after).mean()),
        "label_agreement": float((before.argmax(axis=1) == after.argmax(axis=1)).mean()),
        "kl": float((np.exp(p) * (p - q)).sum(axis=1).mean()),
    }
