"""Expected calibration error: how far confidence and accuracy lie apart."""

from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2): examples in
equal-width bins by the probability of their label, mean |accuracy - confidence| over the bins, weighted by size.
"""


class CalibrationError(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: probabilities [n, classes]; references: class ids; bins: 15 unless told",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any, bins: int = 15) -> dict[str, Any]:
        probabilities = np.asarray(predictions)
        confidence = probabilities.max(axis=1)
        correct = probabilities.argmax(axis=1) == np.asarray(references)
        bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
        gaps = [
            abs(correct[bin_of == b].mean() - confidence[bin_of == b].mean()) * (bin_of == b).mean()
            for b in np.unique(bin_of)
        ]
        return {"ece": float(np.sum(gaps))}
