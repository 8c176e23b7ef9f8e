"""click_onnx: a click model as onnxruntime runs it, its outputs compared with torch's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.architectures.click_inputs import write_config
from hfcompress.architectures.click_spec import ClickShape
from hfcompress.errors import CheckFailed
from hfcompress.formats.runtimes.click_predictor import ClickPredictor
from hfcompress.stage import GRAPHS
from hfcompress.tasks.tabular_classification import Clicks

COMPARED = 4_096  # rows
TOLERANCE = 1e-4  # of the largest logit
INT8_TOLERANCE = 0.02  # a sum on the edge of two codes may fall to either


@dataclass(frozen=True)
class ExportClicks:
    """model.onnx beside config.json: tables as they are stored, towers in float32 or int8."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = GRAPHS

    def __call__(self, out: Path, *, model: Path, task: Clicks) -> dict[str, Any]:
        """Write the graph.

        Raises:
            CheckFailed: the graph gives other logits than the network, or holds other bytes than the tables claim.
        """
        import numpy as np

        from hfcompress.architectures.click_model import load_click_model, logits_of
        from hfcompress.formats.click_weights import export_clicks
        from hfcompress.formats.onnx_export import integer_kernels
        from hfcompress.formats.saturation import require_exact

        network = load_click_model(model)
        write_config(network.config, out)
        export_clicks(network, out)
        require_exact(out / "model.onnx")
        log = task.data.logs["validation"].rows(slice(0, COMPARED))
        expected, found = logits_of(network, log), ClickPredictor(out, 1).judge(log)
        difference, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
        int8 = bool(network.config.get("int8_towers"))
        if not difference <= (INT8_TOLERANCE if int8 else TOLERANCE) * largest:
            raise CheckFailed(
                f"{difference:.3g} is how far the graph's logits are from the network's; "
                "another --compress.kind or --compress.bits is exported differently"
            )
        stored = table_bytes(out / "model.onnx")
        if stored != network.table_bytes():
            raise CheckFailed(
                f"the graph's tables take {stored:,} bytes, {network.table_bytes():,} were claimed; "
                "another --compress.kind or --compress.bits is stored differently"
            )
        return {
            "largest_difference": difference,
            "largest_logit": largest,
            "table_bytes": stored,
            "integer_kernels": integer_kernels(out / "model.onnx"),
        }

    def predict(self, model: ClickShape, *, task: Clicks) -> ClickShape:
        return model.with_(format="onnx")


def table_bytes(path: Path, prefix: str = "tables") -> int:
    """Bytes of the tables' tensors in a graph, int64 constants of the arithmetic left out."""
    import onnx
    from onnx import TensorProto, numpy_helper

    return sum(
        numpy_helper.to_array(tensor).nbytes
        for tensor in onnx.load(str(path)).graph.initializer
        if tensor.name.startswith(f"{prefix}.") and tensor.data_type != TensorProto.INT64 and tensor.dims
    )
