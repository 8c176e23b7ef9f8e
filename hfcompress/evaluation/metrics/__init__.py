"""Each metric once: what an example contributes, how contributions combine, and how its values are written.

A new metric is a file here and a row below; a task names it in its `metrics`.
"""

from hfcompress.evaluation.metrics.accuracy import Accuracy
from hfcompress.evaluation.metrics.agreement import Agreement
from hfcompress.evaluation.metrics.auc import Auc
from hfcompress.evaluation.metrics.click_ece import ClickCalibrationError
from hfcompress.evaluation.metrics.confusion import ClassF1
from hfcompress.evaluation.metrics.conversion_auc import ConversionAuc
from hfcompress.evaluation.metrics.ctr import Ctr
from hfcompress.evaluation.metrics.ece import CalibrationError
from hfcompress.evaluation.metrics.kl import Kl
from hfcompress.evaluation.metrics.log_loss import LogLoss
from hfcompress.evaluation.metrics.macro_f1 import MacroF1
from hfcompress.evaluation.metrics.metric import Metric
from hfcompress.evaluation.metrics.micro_f1 import MicroF1
from hfcompress.evaluation.metrics.perplexity import Perplexity
from hfcompress.evaluation.metrics.recall_at_90_precision import RecallAtPrecision

METRICS: dict[str, Metric] = {
    "accuracy": Accuracy(),
    "agreement": Agreement(),
    "auc": Auc(),
    "click_ece": ClickCalibrationError(),
    "conversion_auc": ConversionAuc(),
    "ctr": Ctr(),
    "ece": CalibrationError(),
    "kl": Kl(),
    "log_loss": LogLoss(),
    "macro_f1": MacroF1(),
    "micro_f1": MicroF1(),
    "perplexity": Perplexity(),
    "recall_at_90_precision": RecallAtPrecision(),
}


def metric_named(said: str) -> Metric:
    """Return the metric that report.json calls so; of a name that no row has, one that is written as F1 is."""
    return METRICS.get(said, ClassF1(0))


def metrics_of(names: tuple[str, ...]) -> dict[str, Metric]:
    """Return the metrics that a task names, by what report.json calls them."""
    return {METRICS[name].said: METRICS[name] for name in names}
