"""What is asked of Optimum, in this process or by a Python of its own: `python -P optimum_call.py JOB.json`.

It imports nothing of hfcompress, which that Python need not have. A job is an object with `action` (export, dynamic or
static), `model` and `out`, two folders, and what the function of that name takes beside them.
"""

import json
import sys
from pathlib import Path
from typing import Any

OPERATORS = ["MatMul", "Gemm"]


def export(model: Path, out: Path, task: str) -> None:
    """Write a transformers model as out/model.onnx in fp32, by Optimum's exporter.

    Args:
        task: the Hub's pipeline tag.
    """
    from optimum.exporters.onnx import main_export

    main_export(str(model), output=str(out), task=task, local_files_only=True, do_validation=False)


def dynamic(model: Path, out: Path) -> None:
    """Write out/model_quantized.onnx: int8 weights, activations quantized at run time."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    quantizer = ORTQuantizer.from_pretrained(model, file_name="model.onnx")
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    quantizer.quantize(save_dir=out, quantization_config=config, file_suffix="quantized")


def static(model: Path, out: Path, rows: str) -> None:
    """Write out/model_quantized.onnx, with ranges of activations from calibration rows.

    Args:
        rows: a JSON file with a list of objects, input name -> integers of one text.
    """
    from datasets import Dataset
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

    config = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    config.operators_to_quantize = [*OPERATORS, "Gather"]
    data = Dataset.from_list(json.loads(Path(rows).read_text(encoding="utf-8")))
    quantizer = ORTQuantizer.from_pretrained(model, file_name="model.onnx")
    ranges = quantizer.fit(
        data,
        AutoCalibrationConfig.minmax(data),
        onnx_augmented_model_name=str(out.parent / "augmented_model.onnx"),
        operators_to_quantize=OPERATORS,
        batch_size=1,
    )
    quantizer.quantize(
        save_dir=out, quantization_config=config, calibration_tensors_range=ranges, file_suffix="quantized"
    )


ACTIONS: dict[str, Any] = {"export": export, "dynamic": dynamic, "static": static}


def main(file: str) -> None:
    """Do a job."""
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    ACTIONS[job.pop("action")](Path(job.pop("model")), Path(job.pop("out")), **job)


if __name__ == "__main__":
    main(sys.argv[1])
