"""quantize_towers: the towers of a click model in int8, by quantization-aware training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.architectures.click_spec import ClickShape
from hfcompress.stage import GRAPHS
from hfcompress.tasks.tabular_classification import Clicks
from hfcompress.training.clicks import ClickTrain, fit

OBSERVED = 50_000  # rows whose extremes are where the ranges start


@dataclass(frozen=True)
class QuantizeTowers(ClickTrain):
    """Every Linear gets int8 weights (a scale an output) and uint8 inputs (a range that follows the data)."""

    num_train_epochs: float = 0.3
    learning_rate: float = 1e-3
    table_learning_rate: float = 2e-3
    soft_share: float = 1.0
    """Of the targets that are the probabilities of the teacher."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = GRAPHS

    def __call__(self, out: Path, *, model: Path, teacher: Path, task: Clicks) -> dict[str, Any]:
        """`teacher` says the soft targets: the model that all began with."""
        from hfcompress.architectures.click_model import load_click_model, logits_of, quantize_towers, save_click_model
        from hfcompress.ops.fake_quant import ActivationQuantizer

        network, log = load_click_model(model), task.data.logs["train"]
        quantize_towers(network.towers)
        network.config = network.config | {"int8_towers": True}
        quantizers = [m for m in network.modules() if isinstance(m, ActivationQuantizer)]
        for quantizer in quantizers:
            quantizer.observing = True
        logits_of(network, log.rows(slice(0, OBSERVED)))
        for quantizer in quantizers:
            quantizer.observing = False
        said = logits_of(load_click_model(teacher), log)
        measured = fit(network, log, self, out / "work", said, self.soft_share)
        save_click_model(network, out)
        return measured | {"layers": len(quantizers)}

    def predict(self, model: ClickShape, *, teacher: ClickShape, task: Clicks) -> ClickShape:
        return model.with_(config=model.config | {"int8_towers": True})
