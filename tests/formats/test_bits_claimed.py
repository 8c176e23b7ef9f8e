"""A stage that claims n bits refuses to finish when less than half of what it wrote is stored in n bits."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hfcompress.engines import optimum
from hfcompress.errors import CheckFailed, UserError
from hfcompress.formats.bits_claimed import require_stored
from hfcompress.formats.onnx import DynamicInt8, StaticInt8
from hfcompress.tasks.text_classification import TextClassification


def graph(folder: Path, integers: int, floats: int) -> Path:
    """model.onnx with so many 8-bit weights, their scale and zero point, and so many float32 ones."""
    tensors = [
        numpy_helper.from_array(np.zeros(integers, np.int8), "few"),
        numpy_helper.from_array(np.zeros(floats, np.float32), "many"),
        numpy_helper.from_array(np.zeros(1000, np.float32), "few_scale"),
        numpy_helper.from_array(np.zeros(1000, np.int64), "shape"),
    ]
    output = helper.make_tensor_value_info("few", TensorProto.INT8, [integers])
    onnx.save(helper.make_model(helper.make_graph([], "a", [], [output], tensors)), str(folder / "model.onnx"))
    return folder


def test_half_of_the_weights_is_enough_and_less_is_not(tmp_path: Path) -> None:
    assert require_stored(graph(tmp_path, 100, 100), 8, "advice") == 0.5
    with pytest.raises(CheckFailed, match=r"only 49\.8% .* in 8 bits \(many has 101 in 32\); .* no 8-bit .*: advice"):
        require_stored(graph(tmp_path, 100, 101), 8, "advice")
    with pytest.raises(CheckFailed, match=r"only 0\.0% .* in 4 bits"):
        require_stored(graph(tmp_path, 100, 100), 4, "advice")


def test_a_folder_without_weights_is_no_model_of_n_bits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no weights"):
        require_stored(tmp_path, 8, "advice")


@pytest.mark.parametrize("stage", [DynamicInt8(), StaticInt8(calibration_texts=4)])
def test_int8_by_optimum_that_quantizes_nothing_is_refused(
    stage: Any, exported: Path, tiny_task: TextClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if optimum.find() is None:
        pytest.skip("Optimum is neither in this environment nor in .venv-optimum: make optimum")

    def copies(self: Any, action: str, model: Path, out: Path, work: Path, **_: str) -> None:
        out.mkdir(parents=True)
        shutil.copy(model / "model.onnx", out / "model_quantized.onnx")

    monkeypatch.setattr(optimum.Optimum, "__call__", copies)
    (tmp_path / "work").mkdir()
    with pytest.raises(CheckFailed, match=r"only 0\.0% of the weights are stored in 8 bits .*; give another base"):
        stage(tmp_path, model=exported, task=tiny_task)
    monkeypatch.undo()
    shutil.rmtree(tmp_path)
    (tmp_path / "work").mkdir(parents=True)
    stage(tmp_path, model=exported, task=tiny_task)
    assert require_stored(tmp_path, 8, "advice") > 0.9
