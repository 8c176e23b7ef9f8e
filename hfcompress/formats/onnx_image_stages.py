"""onnx_images: an image classifier as fp32 ONNX, and onnxruntime's static int8 of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.errors import CheckFailed, OptionError, Reason, require, require_numbers
from hfcompress.formats.bits_claimed import require_stored
from hfcompress.formats.onnx import copy_companions
from hfcompress.stage import GRAPHS
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.image_data import pixel_values

if TYPE_CHECKING:
    from onnx import ModelProto

    from hfcompress.formats.onnx_export import Array

PARITY_IMAGES = 16
CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class ExportImages:
    """Write model.onnx in fp32, batch norms folded; its logits must be the model's to 1e-4 on real images."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = GRAPHS

    def __call__(self, out: Path, *, model: Path, task: ImageClassification) -> dict[str, Any]:
        import onnx

        from hfcompress.architectures.models import load_classifier, load_image_processor
        from hfcompress.formats.onnx_images import export_images, require_parity

        network, processor = load_classifier(model), load_image_processor(model)
        pixels = pixel_values(processor, task.data.inputs("validation", PARITY_IMAGES))
        export_images(network, out, pixels.shape[2:])
        distance = require_parity(network, out / "model.onnx", pixels)
        copy_companions(model, out)
        if any(node.op_type == "BatchNormalization" for node in onnx.load(str(out / "model.onnx")).graph.node):
            raise CheckFailed(Reason("a batch norm was not folded into its convolution; give another {.base}"))
        return {"largest_logit_difference": distance}

    def predict(self, model: Any, *, task: ImageClassification) -> Any:
        return model.with_(format="onnx")


@dataclass(frozen=True)
class StaticInt8Images:
    """onnxruntime's static QDQ quantization, per channel, of an fp32 ONNX folder; it must run in integer kernels.

    Activations are uint8 whose ranges are taken from training images: docs/measurements/iot_camera.md has what
    the ways of doing so and symmetric int8 activations do.
    """

    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"
    """A tensor's range: its extremes, all but its outermost 0.001%, or what changes its histogram least."""
    calibration_images: int = 128
    """Training images that ranges are taken from; drawn evenly from the classes."""
    seed: int = 0

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = GRAPHS

    def __post_init__(self) -> None:
        require_numbers(self)
        require(self, 1, "calibration_images")

    def __call__(self, out: Path, *, model: Path, task: ImageClassification) -> dict[str, Any]:
        import onnx

        from hfcompress.architectures.models import load_image_processor
        from hfcompress.formats.onnx_images import require_integer_kernels
        from hfcompress.formats.saturation import require_exact
        from hfcompress.formats.tensorrt import static_qdq

        labels = task.data.label_ids("train")
        rows = calibration_rows(labels, self.calibration_images, self.seed)
        found = static_qdq(
            model / "model.onnx",
            batches(task, load_image_processor(model), rows),
            symmetric=False,
            calibration=self.calibration,
        )
        require_int8_weights(found)
        onnx.save(found, str(out / "model.onnx"))
        require_exact(out / "model.onnx")
        require_stored(out, 8, "onnxruntime's quantizer knows too few weights of it; give another {.base}")
        copy_companions(model, out)
        return {
            "kernels": require_integer_kernels(out / "model.onnx"),
            "calibration_images": len(rows),
            "calibration_classes": len({labels[row] for row in rows}),
        }

    def predict(self, model: Any, *, task: ImageClassification) -> Any:
        return model.with_(format="onnx", weight_bits=8)


def calibration_rows(labels: list[int], count: int, seed: int) -> list[int]:
    """So many rows, a class in turn, each class in random order: a rare class is seen as often as a common one.

    Raises:
        OptionError: they are of one class only, whose images do not show what the others' ranges are.
    """
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    turns: dict[int, int] = {}
    ranked = []
    for row in order:
        turns[labels[row]] = turns.get(labels[row], 0) + 1
        ranked.append((turns[labels[row]], row))
    rows = [row for _, row in sorted(ranked, key=lambda entry: entry[0])][:count]
    if len({labels[row] for row in rows}) < 2:
        reason = (
            "these images are of one class only, and the ranges of the others are not seen in them; give {classes} or "
            "more (the training images have {classes} classes)"
        )
        raise OptionError("calibration_images", reason, count, classes=len(turns))
    return rows


def batches(task: ImageClassification, processor: Any, rows: list[int]) -> "Iterator[Array]":
    """Training images as the model sees them, float32 [batch, 3, height, width]."""
    images = task.data.images("train")
    for start in range(0, len(rows), CALIBRATION_BATCH):
        yield pixel_values(processor, [images[row] for row in rows[start : start + CALIBRATION_BATCH]])


def require_int8_weights(model: "ModelProto") -> None:
    """Every weight of a convolution or matrix product is stored in 8 bits, and no matrix is stored in float beside it.

    Raises:
        CheckFailed: one is not.
    """
    from onnx import TensorProto

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            dequantize = producers.get(node.input[1])
            stored = tensors.get(dequantize.input[0]) if dequantize is not None else None
            if stored is None or stored.data_type not in (TensorProto.INT8, TensorProto.UINT8):
                reason = (
                    "the weight of {node} is not stored as int8; give another {static.calibration}, or another {.base}"
                )
                raise CheckFailed(Reason(reason, node=node.name))
    floats = [t.name for t in tensors.values() if t.data_type == TensorProto.FLOAT and len(t.dims) > 1]
    if floats:
        reason = "the file claims int8 and holds {count} weights in float, such as {first}; give another {.base}"
        raise CheckFailed(Reason(reason, count=len(floats), first=floats[0]))
