"""Intel Neural Compressor's accuracy-driven tuning: its `autotune` over a list of configurations.

Its loop quantizes a model with each configuration in turn, evaluates it, stops at the first whose score is good
enough, and otherwise makes the best one again. Here it is handed an empty module in place of the model and an
algorithm that makes a folder, so that no whole model is copied for each trial: `quantize` is registered as one of its
algorithms while it runs. Its criterion is a score of at least the baseline's less a relative tolerance; the baseline
is 1, the tolerance 0, and a configuration that is good enough scores 1.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from hfcompress.errors import needs

ALGORITHM = "hfcompress"
BASELINE = 1.0
ALMOST = math.nextafter(BASELINE, 0.0)


def autotune(names: Sequence[str], quantize: Callable[[str], None], slack: Callable[[str], float]) -> str:
    """Return the configuration that Neural Compressor's `autotune` chooses.

    Args:
        names: the configurations, in the order in which they are tried; each once.
        quantize: makes the model of a configuration, and again that of the best one, where none is good enough.
        slack: how much better a configuration's model is than it must be: from 0 on it is good enough.

    Returns: the first that is good enough, else the one with the largest slack.
    """
    needs("neural_compressor")
    import torch
    from neural_compressor.common.base_config import BaseConfig
    from neural_compressor.torch.quantization import TuningConfig
    from neural_compressor.torch.quantization import autotune as tune
    from neural_compressor.torch.utils import algos_mapping

    from hfcompress.engines.isolation import isolated

    class Named(BaseConfig):
        """A configuration that it knows by name alone."""

        name = ALGORITHM

        def __init__(self, configuration: str) -> None:
            super().__init__(white_list=None)
            self.configuration = configuration

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Named) and other.configuration == self.configuration

        def to_dict(self) -> dict[str, str]:
            return {"configuration": self.configuration}

        def expand(self) -> list[Any]:
            return [self]

        @classmethod
        def register_supported_configs(cls) -> None: ...

        @classmethod
        def get_config_set_for_tuning(cls) -> list[Any]:
            return [cls(name) for name in names]

        @staticmethod
        def get_model_info(model: Any) -> None: ...

        def to_config_mapping(self, config_list: Any = None, model_info: Any = None) -> "OrderedDict[str, Any]":
            return OrderedDict({ALGORITHM: self})

    class Trial(torch.nn.Module):
        """What stands for the model; `made` is the configuration that it was quantized with."""

        made: str | None = None

    def algorithm(model: Trial, configurations: dict[str, Any], *_: Any, **__: Any) -> Trial:
        model.made = configurations[ALGORITHM].configuration
        quantize(model.made)
        return model

    def score(model: Trial) -> float:
        return BASELINE if model.made is None else score_of(slack(model.made))

    configurations = [Named(name) for name in names]
    wanted = TuningConfig(config_set=configurations, tolerable_loss=0.0, max_trials=len(configurations))
    algos_mapping[ALGORITHM] = algorithm
    try:
        with isolated():
            chosen: str = tune(Trial(), wanted, eval_fn=score).made
    finally:
        del algos_mapping[ALGORITHM]
    return chosen


def score_of(slack: float) -> float:
    """Return a score that is at least the baseline's exactly where the slack is not negative; nan is the worst."""
    if math.isnan(slack):
        return -math.inf
    return BASELINE if slack >= 0 else min(BASELINE + slack, ALMOST)
