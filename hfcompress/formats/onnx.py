"""onnx: fp32 export, and Optimum's dynamic and static int8: what a user would otherwise do."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.errors import CheckFailed, needs
from hfcompress.formats.bits_claimed import require_stored
from hfcompress.stage import GRAPHS
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.tasks.vocabulary import TOKENIZER_FILES

PARITY = 1e-4
PARITY_TEXTS = 16


@dataclass(frozen=True)
class ExportOnnx:
    """Write model.onnx in fp32; its logits must be the model's to 1e-4 on real texts."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = GRAPHS

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        from hfcompress.architectures.models import load_classifier, load_tokenizer
        from hfcompress.formats import onnx_export

        network, tokenizer = load_classifier(model), load_tokenizer(model)
        onnx_export.export(network, out)
        copy_companions(model, out)
        texts = task.data.texts("validation")[:PARITY_TEXTS]
        distance, largest = onnx_export.parity(
            network, out / "model.onnx", onnx_export.parity_batch(tokenizer, texts, task.max_length)
        )
        require_parity(distance, largest)
        return {"largest_logit_difference": distance}

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        return model.with_(format="onnx")


@dataclass(frozen=True)
class DynamicInt8:
    """Optimum's ORTQuantizer: int8 weights, activations quantized at run time. Takes an fp32 ONNX folder."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*GRAPHS, "optimum-onnx")

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        needs("optimum.onnxruntime")
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        quantize(model, out, AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True), None)
        return {"integer_kernels": count(out)}

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        needs("optimum.onnxruntime")
        return model.with_(format="onnx", weight_bits=8, embedding_bits=8)


@dataclass(frozen=True)
class StaticInt8:
    """Optimum's ORTQuantizer with ranges calibrated on training texts. Takes an fp32 ONNX folder."""

    calibration_texts: int = 128

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*GRAPHS, "optimum-onnx")

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        needs("optimum.onnxruntime")
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

        from hfcompress.architectures.models import load_tokenizer
        from hfcompress.architectures.text_inputs import complete
        from hfcompress.formats.runtimes.sessions import onnx_session

        config = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
        config.operators_to_quantize = ["MatMul", "Gemm", "Gather"]
        data = task.data.encode(load_tokenizer(model), task.max_length, "train")
        session = onnx_session(model / "model.onnx", threads=1)
        names = [entry.name for entry in session.get_inputs()]
        data = data.select(range(min(self.calibration_texts, len(data))))
        data = data.map(lambda row: complete(row, names), remove_columns=data.column_names)
        quantizer = ORTQuantizer.from_pretrained(model, file_name="model.onnx")
        ranges = quantizer.fit(
            data,
            AutoCalibrationConfig.minmax(data),
            onnx_augmented_model_name=str(out / "work" / "augmented_model.onnx"),
            operators_to_quantize=["MatMul", "Gemm"],
            batch_size=1,
        )
        quantize(model, out, config, ranges)
        return {"integer_kernels": count(out)}

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        needs("optimum.onnxruntime")
        return model.with_(format="onnx", weight_bits=8, embedding_bits=8)


def quantize(model: Path, out: Path, config: Any, ranges: Any) -> None:
    """Run Optimum's quantizer in a scratch folder and keep model.onnx with its companions."""
    needs("optimum.onnxruntime")
    from optimum.onnxruntime import ORTQuantizer

    from hfcompress.formats.saturation import require_exact
    from hfcompress.formats.unsigned_weights import store_file_unsigned

    scratch = out / "work" / "quantized"
    quantizer = ORTQuantizer.from_pretrained(model, file_name="model.onnx")
    quantizer.quantize(
        save_dir=scratch, quantization_config=config, calibration_tensors_range=ranges, file_suffix=None
    )
    for file in scratch.glob("model*.onnx*"):
        shutil.move(file, out / file.name.replace("_quantized", ""))
    store_file_unsigned(out / "model.onnx")
    require_exact(out / "model.onnx")
    require_stored(out, 8, "onnxruntime's quantizer knows no weight of it; give another --base")
    copy_companions(model, out)


def count(out: Path) -> int:
    from hfcompress.formats import onnx_export

    return onnx_export.integer_kernels(out / "model.onnx")


def require_parity(distance: float, largest: float) -> None:
    """Refuse a float32 graph whose logits are not the model's.

    Args:
        distance: the largest difference of logits; largest: the largest logit.

    Raises:
        CheckFailed: they differ by more than PARITY of the largest, or are nan.
    """
    if not distance <= PARITY * max(1.0, largest):
        raise CheckFailed(
            f"the exported graph's logits differ by {distance:.2g} from the model's (allowed {PARITY} of the "
            f"largest, {largest:.3g}); its weights are too large for float32 sums: give another model"
        )


def copy_companions(source: Path, out: Path) -> None:
    """config.json and the tokenizer's or image processor's files: what makes a folder with model.onnx loadable."""
    for name in ("config.json", "preprocessor_config.json", *TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
