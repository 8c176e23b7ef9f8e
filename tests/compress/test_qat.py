"""QAT and export: integer kernels that are counted, weights that are folded, outputs that are compared."""

import json
import shutil
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from hfcompress.architectures.models import load_classifier, load_tokenizer
from hfcompress.compress.quantize.qat import QAT
from hfcompress.errors import UserError
from hfcompress.formats import onnx_export
from hfcompress.formats.onnx import DynamicInt8, ExportOnnx, StaticInt8
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.formats.size import integer_bytes, sizes
from hfcompress.tasks.text_classification import TextClassification
from tests.optimum_python import run_optimum

CLASSIFY = """
import sys
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline
network = ORTModelForSequenceClassification.from_pretrained(sys.argv[1])
classify = pipeline("text-classification", network, tokenizer=AutoTokenizer.from_pretrained(sys.argv[1]))
print(classify("the river and the ocean")[0]["label"])
"""
QUICK: dict[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": 3e-4,
    "per_device_train_batch_size": 16,
    "bf16": "no",
    "cache": False,
}


def made(stage: Any, out: Path, **inputs: Any) -> tuple[Path, dict[str, Any]]:
    (out / "work").mkdir(parents=True)
    return out, stage(out, **inputs)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_task: TextClassification) -> Path:
    return made(ExportOnnx(), tmp_path_factory.mktemp("onnx") / "fp32", model=tiny_teacher, task=tiny_task)[0]


@pytest.fixture(scope="module")
def int8(
    tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_task: TextClassification
) -> tuple[Path, dict[str, Any]]:
    return made(
        QAT(**QUICK), tmp_path_factory.mktemp("qat") / "int8", model=tiny_teacher, teacher=tiny_teacher, task=tiny_task
    )


def accuracy(folder: Path, task: TextClassification) -> float:
    logits = Predictor(folder, 1).logits(task.data.texts("test"), task.max_length)
    return float((logits.argmax(axis=1) == np.array(task.data.label_ids("test"))).mean())


def test_the_export_computes_what_the_model_does(
    exported: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    texts = tiny_task.data.texts("test")
    one, other = (Predictor(folder, 1).logits(texts, 32) for folder in (tiny_teacher, exported))
    assert np.abs(one - other).max() < 1e-4
    graph = onnx.load(exported / "model.onnx").graph
    assert "IsNaN" not in {node.op_type for node in graph.node}, "the mask is added once, not chosen by in every layer"


def test_swapped_inputs_fail_the_parity_check(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, other = onnx_export.trace, {"attention_mask": "token_type_ids", "token_type_ids": "attention_mask"}

    def swapped(network: Any) -> Any:
        model = right(network)
        for node in model.graph.node:
            node.input[:] = [other.get(name, name) for name in node.input]
        return model

    monkeypatch.setattr(onnx_export, "trace", swapped)
    with pytest.raises(RuntimeError, match=r"logits differ"):
        made(ExportOnnx(), tmp_path / "swapped", model=tiny_teacher, task=tiny_task)


def test_no_weight_is_transposed_at_run_time(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    names = {tensor.name for tensor in model.graph.initializer}
    assert not [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in names]


def test_weights_of_a_large_model_lie_beside_the_graph(
    tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "INLINE_LIMIT", 1000)
    network = load_classifier(tiny_teacher)
    onnx_export.export(network, tmp_path)
    assert (tmp_path / "model.onnx_data").stat().st_size > 500_000
    batch = onnx_export.parity_batch(load_tokenizer(tiny_teacher), ["the river", "of iron and steel"], 32)
    assert onnx_export.parity(network, tmp_path / "model.onnx", batch)[0] < 1e-4


def test_qat_runs_every_encoder_linear_in_integer_kernels(int8: tuple[Path, dict[str, Any]]) -> None:
    folder, measured = int8
    assert measured["integer_linears"] == measured["linears"] == 6 * 4
    assert measured["largest_logit_difference"] < 1e-2  # 0.0012 where one value lies on the edge of two levels
    assert onnx_export.integer_kernels(folder / "model.onnx") == 24


def test_qat_holds_no_fp32_copy_of_a_weight(int8: tuple[Path, dict[str, Any]], tiny_teacher: Path) -> None:
    weights = sizes(tiny_teacher)["parameters"]
    found = sizes(int8[0])
    assert found["parameters"] == pytest.approx(weights, rel=1e-3)
    assert integer_bytes(found["dtypes"]) > 0.97 * weights
    assert found["dtypes"]["float32"] < 0.15 * 4 * weights


def test_qat_keeps_the_accuracy_and_stock_tools_load_it(
    int8: tuple[Path, dict[str, Any]], tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    folder = int8[0]
    assert accuracy(folder, tiny_task) >= accuracy(tiny_teacher, tiny_task) - 0.05
    assert run_optimum(CLASSIFY, folder) == "water"


def test_symmetric_activations_for_tensorrt_run_in_integer_kernels_too(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    stage = QAT(**QUICK, target="tensorrt", ranges="moving_average")
    folder, measured = made(stage, tmp_path / "trt", model=tiny_teacher, teacher=tiny_teacher, task=tiny_task)
    assert measured["integer_linears"] == 24
    model = onnx.load(folder / "model.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    constants = {
        node.output[0]: node.attribute[0].t.data_type for node in model.graph.node if node.op_type == "Constant"
    }
    zero_points = [node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {(kinds | constants)[name] for name in zero_points} == {onnx.TensorProto.INT8}


def test_a_graph_left_in_float_fails_the_stage(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "fold_integers", lambda *arguments: None)
    with pytest.raises(RuntimeError, match=r"integer kernels|claims int8"):
        made(QAT(**QUICK), tmp_path / "float", model=tiny_teacher, teacher=tiny_teacher, task=tiny_task)


def test_weights_of_another_layer_fail_the_stage(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = onnx_export.fold_integers

    def shifted(model: Any, integers: dict[str, Any], scales: dict[str, Any]) -> None:
        right(model, {name: np.roll(rows, 1, axis=1) for name, rows in integers.items()}, scales)

    monkeypatch.setattr(onnx_export, "fold_integers", shifted)
    with pytest.raises(RuntimeError, match=r"logits differ"):
        made(QAT(**QUICK), tmp_path / "shifted", model=tiny_teacher, teacher=tiny_teacher, task=tiny_task)


def test_tables_of_relative_positions_are_integers_too(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    config = AutoConfig.from_pretrained(tiny_teacher)
    if "position_embedding_type" not in signature(type(config).__init__).parameters:
        pytest.skip("transformers 5 has no tables of relative positions")
    config.position_embedding_type = "relative_key_query"
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    folder = tmp_path / "relative"
    network.save_pretrained(folder)
    load_tokenizer(tiny_teacher).save_pretrained(folder)
    stage = QAT(max_steps=1, **{name: value for name, value in QUICK.items() if name != "num_train_epochs"})
    out, _ = made(stage, tmp_path / "int8", model=folder, teacher=folder, task=tiny_task)
    shape = (2 * config.max_position_embeddings - 1, config.hidden_size // config.num_attention_heads)
    tables = [t.data_type for t in onnx.load(out / "model.onnx").graph.initializer if tuple(t.dims) == shape]
    assert tables == [onnx.TensorProto.INT8] * config.num_hidden_layers


def test_other_bits_are_refused(tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification) -> None:
    with pytest.raises(UserError, match=r"bits 4"):
        made(QAT(**QUICK, bits=4), tmp_path / "four", model=tiny_teacher, teacher=tiny_teacher, task=tiny_task)


@pytest.mark.parametrize("stage", [DynamicInt8(), StaticInt8(calibration_texts=16)])
def test_optimums_int8_is_smaller_and_still_right(
    tmp_path: Path, exported: Path, tiny_task: TextClassification, stage: Any
) -> None:
    folder, measured = made(stage, tmp_path / "int8", model=exported, task=tiny_task)
    assert (folder / "model.onnx").stat().st_size < 0.6 * (exported / "model.onnx").stat().st_size
    assert measured["integer_kernels"] >= 24
    assert accuracy(folder, tiny_task) >= accuracy(exported, tiny_task) - 0.05
    assert json.loads((folder / "config.json").read_text())["id2label"]["0"] == "apple"


def test_a_graph_with_token_types_is_calibrated_though_the_tokenizer_makes_none(
    tmp_path: Path, exported: Path, tiny_task: TextClassification
) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(exported, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    stage = StaticInt8(calibration_texts=16)
    out, _ = made(stage, tmp_path / "int8", model=folder, task=tiny_task)
    assert "token_type_ids" not in load_tokenizer(out)("the river")
    usual, _ = made(stage, tmp_path / "usual", model=exported, task=tiny_task)
    assert (out / "model.onnx").read_bytes() == (usual / "model.onnx").read_bytes()  # they are 0 in single texts
