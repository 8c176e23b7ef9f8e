"""AUC of the conversions."""

from typing import ClassVar

from hfcompress.evaluation.metrics.auc import Auc


class ConversionAuc(Auc):
    """Area under the ROC curve of the conversion's score."""

    name: ClassVar[str] = "conversion_auc"
    label: ClassVar[str] = "conversion AUC"
    hub: ClassVar[str] = ""
    column: ClassVar[int] = 1
