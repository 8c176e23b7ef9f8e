"""resnet_prune: one table of rankings, and a reference that was trained as long as they were."""

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest

from hfcompress.compress.prune.structured import StructuredPruneImages
from hfcompress.formats.saturation import saturating_layers
from hfcompress.recipes import resnet_prune
from hfcompress.runs.run import Run
from hfcompress.training.finetune_images import FinetuneImages


def test_the_unpruned_model_is_trained_on_as_long_with_the_same_options() -> None:
    prune = StructuredPruneImages(
        keep_flops=0.5, iterations=4, epochs_between=0.5, num_train_epochs=3, learning_rate=0.02, flip=True, shift=0.0
    )
    longer = resnet_prune.as_long(prune)
    assert longer.num_train_epochs == 3 * 0.5 + 3
    same = [field.name for field in fields(FinetuneImages) if field.name != "num_train_epochs"]
    assert [getattr(longer, name) for name in same] == [getattr(prune, name) for name in same]


def test_the_scales_change_only_what_the_recipe_has(tmp_path: Path) -> None:
    for scale in (*resnet_prune.SCALES, "smoke"):
        options = resnet_prune.arguments(scale, tmp_path / scale)
        prune = options["prune"]
        assert prune.plan().measure == "flops"
        assert set(options) <= set(inspect.signature(resnet_prune.recipe).parameters)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_smoke_ends_in_a_table_of_all_rankings(tmp_path: Path) -> None:
    run = Run(tmp_path, "resnet_prune", "smoke")
    report = resnet_prune.recipe(run, **resnet_prune.smoke(tmp_path))
    run.close()
    rows = {row["name"]: row for row in report["models"]}
    pruned = ["taylor", "random", "taylor-onnx", "taylor-int8"]
    assert list(rows) == ["unpruned", "unpruned-finetuned", "unpruned-onnx", *pruned]
    assert rows["taylor"]["format"] == "surgery"
    assert not saturating_layers(tmp_path / rows["taylor-int8"]["path"] / "model.onnx"), "the same on every processor"
    assert rows["taylor"]["parameters"] < rows["unpruned"]["parameters"]
    drop = next(verdict for verdict in report["verdicts"] if verdict["limit"] == "drop:accuracy")
    assert (drop["candidate"], drop["reference"]) == ("taylor-onnx", "unpruned-finetuned")
    records = {record["name"]: record for record in json.loads((tmp_path / "details.json").read_text())["records"]}
    steps = sum(entry["training"]["steps"] for entry in records["taylor"]["measured"]["iterations"])
    assert abs(records["unpruned-finetuned"]["measured"]["steps"] - steps) <= 2, "epochs are cut off at whole steps"
    assert (tmp_path / "report.html").is_file()
