"""The linear baseline of every table, TF-IDF and a linear SVM: what does not beat it is not worth its bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from hfcompress.errors import OptionError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Array = np.ndarray[Any, Any]
FOLDS = 5


class Baseline(Protocol):
    """A fitted model without a transformer, beside which every run of a task is shown."""

    name: ClassVar[str]
    runtime: ClassVar[str]
    without: ClassVar[tuple[str, ...]]
    """Metrics that its answers do not have."""

    def outputs(self, inputs: Sequence[Any]) -> Array:
        """Return its answers, as a model's logits are: [examples, labels]."""
        ...

    def size(self) -> tuple[int, int]:
        """Return (parameters, bytes)."""
        ...


@dataclass(frozen=True)
class TfidfSvm:
    """`fit`, for a number of classes."""

    pipeline: "Pipeline"
    classes: int
    name: ClassVar[str] = "tfidf-svm"
    runtime: ClassVar[str] = "scikit-learn"
    without: ClassVar[tuple[str, ...]] = ("ece",)  # decision values are no probabilities

    def outputs(self, inputs: Sequence[Any]) -> Array:
        return scores(self.pipeline, list(inputs), self.classes)

    def size(self) -> tuple[int, int]:
        return size(self.pipeline)


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


def unseen_probabilities(texts: list[str], labels: list[int], groups: list[str], classes: int) -> Array:
    """What the linear model would say of each text [texts, classes] if its group had not been there to learn from.

    Cross-fitted over at most five folds of whole groups. Decision values become probabilities by one factor, fitted on
    these same held-out values (temperature scaling, Guo et al. 2017, section 4.2).

    Raises:
        OptionError: all texts are of one group, or too few groups have two classes.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax, softmax
    from sklearn.model_selection import GroupKFold

    folds = min(FOLDS, len(set(groups)))
    if folds < 2:
        raise OptionError("linear_weight", "needs training texts of at least two groups; leave it at 0")
    decision, truth = np.empty((len(texts), classes), dtype=np.float32), np.array(labels)
    for seen, unseen in GroupKFold(folds).split(texts, truth, groups):
        if len(set(truth[seen])) < 2:
            raise OptionError("linear_weight", "too few groups for a fold with two classes; leave it at 0")
        pipeline = fit([texts[i] for i in seen], truth[seen].tolist())
        decision[unseen] = scores(pipeline, [texts[i] for i in unseen], classes)

    def loss(factor: float) -> float:
        return -float(log_softmax(factor * decision, axis=1)[np.arange(len(truth)), truth].mean())

    return np.asarray(softmax(minimize_scalar(loss, bounds=(0.1, 20), method="bounded").x * decision, axis=1))


def size(pipeline: "Pipeline") -> tuple[int, int]:
    """(parameters, bytes) of the fitted pipeline: its coefficients in float32 and its vocabulary as text."""
    vocabulary = pipeline[0].vocabulary_
    parameters = pipeline[-1].coef_.size + pipeline[-1].intercept_.size + len(vocabulary)
    return parameters, 4 * parameters + sum(len(term.encode()) + 1 for term in vocabulary)
