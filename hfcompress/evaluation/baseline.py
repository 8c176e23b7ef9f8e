"""The linear baseline of every table, TF-IDF and a linear SVM: what does not beat it is not worth its bytes."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Array = np.ndarray[Any, Any]


def fit(texts: list[str], labels: list[int]) -> "Pipeline":
    """TF-IDF over words and word pairs of the whole texts, then LinearSVC as scikit-learn sets it (C = 1)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    return make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC(C=1.0, random_state=0)).fit(
        texts, labels
    )


def scores(pipeline: "Pipeline", texts: list[str], classes: int) -> Array:
    """Decision values [texts, classes]; classes that the training labels lack score lowest."""
    decision = pipeline.decision_function(texts)
    if decision.ndim == 1:  # two classes: one column, positive for the second
        decision = np.stack([-decision, decision], axis=1)
    result = np.full((len(texts), classes), decision.min() - 1.0, dtype=np.float32)
    result[:, pipeline[-1].classes_] = decision
    return result


def size(pipeline: "Pipeline") -> tuple[int, int]:
    """(parameters, bytes) of the fitted pipeline: its coefficients in float32 and its vocabulary as text."""
    vocabulary = pipeline[0].vocabulary_
    parameters = pipeline[-1].coef_.size + pipeline[-1].intercept_.size + len(vocabulary)
    return parameters, 4 * parameters + sum(len(term.encode()) + 1 for term in vocabulary)
