"""measure_images: all image classifiers of a run side by side: accuracy, differences, flips, latency, memory, size."""

from dataclasses import dataclass
from typing import ClassVar

from hfcompress.evaluation.measure import Measuring


@dataclass(frozen=True)
class MeasureImages(Measuring):
    """How image classifiers are measured; the same for all of them.

    Each is timed one request behind another of the same model, as a camera's images come.
    """

    back_to_back: ClassVar[bool] = True
