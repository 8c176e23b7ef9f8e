"""Scores of a classifier: which function its config asks for, as the pipelines of transformers apply it."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Function = Literal["softmax", "sigmoid", "none"]
LIKELY = 0.5  # the score above which a label of a multi-label classifier counts as given


def score_function(config: Mapping[str, Any], labels: int) -> Function:
    """Return what turns a classifier's logits into scores.

    Args:
        config: the fields of its config.json.
        labels: rows of its head.

    Returns: "none" for a regression, whose score is the number itself; "sigmoid" for several labels at once and for a
        single logit (a reranker); else "softmax".
    """
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or labels == 1 else "softmax"


def scores_of(logits: Array, function: Function) -> Array:
    """Return the scores [..., labels] of logits [..., labels], in float64."""
    from scipy.special import expit, softmax

    numbers = np.asarray(logits, dtype=np.float64)
    if function == "none":
        return numbers
    return np.asarray(expit(numbers) if function == "sigmoid" else softmax(numbers, axis=-1))


def answer_of(predictor: Any, logits: Array) -> dict[str, Any]:
    """Return the answer to one request: `label` and `score` of the best label.

    A classifier of several labels at once also names in `labels` all that score above `LIKELY`, the best first.

    Args:
        predictor: what was asked: has `labels` and `function`.
        logits: [labels] of the request.
    """
    scores = scores_of(logits, predictor.function)
    best = int(scores.argmax())
    answer = {"label": predictor.labels[best], "score": round(float(scores[best]), 6)}
    if predictor.function == "sigmoid" and len(scores) > 1:
        answer["labels"] = [predictor.labels[i] for i in np.argsort(-scores, kind="stable") if scores[i] > LIKELY]
    return answer
