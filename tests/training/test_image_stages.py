"""Image classifiers: trained, resumed, predicted with and measured; a broken one is seen."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from hfcompress.errors import UserError
from hfcompress.evaluation.difference import difference
from hfcompress.evaluation.measure_images import MeasureImages
from hfcompress.evaluation.statistics import Difference, verdict
from hfcompress.formats.memory import image_size
from hfcompress.formats.runtimes.image_predictor import ImagePredictor
from hfcompress.formats.runtimes.predictor import open_predictor
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.training.finetune_images import FinetuneImages


def test_a_small_mobilenet_learns_digits(image_classifier: tuple[Path, dict[str, Any]]) -> None:
    _, progress = image_classifier
    assert progress["best_metric"] > 0.4, "chance is 0.1"
    assert progress["samples"] == progress["steps"] * 32


def test_the_predictor_answers_in_the_order_given(
    image_classifier: tuple[Path, dict[str, Any]], image_task: ImageClassification
) -> None:
    folder, _ = image_classifier
    predictor = open_predictor(folder, threads=1)
    assert isinstance(predictor, ImagePredictor)
    images = image_task.data.images("test")[:40]
    logits = predictor.logits(images)
    assert logits.shape == (40, 10)
    assert np.allclose(logits[7], predictor.logits([images[7]])[0], atol=1e-4)
    assert predictor.request(batch=2).shape == (2, 3, *image_size(folder)) == (2, 3, 16, 16)
    with pytest.raises(UserError, match="no image"):
        predictor.logits([])


def test_the_difference_to_the_parent_is_of_the_same_images(
    image_base: Path, image_classifier: tuple[Path, dict[str, Any]], image_task: ImageClassification
) -> None:
    folder, images = image_classifier[0], image_task.data.inputs("validation", 20)
    assert difference(folder, folder, images, 0)["kl"] == 0
    assert difference(image_base, folder, images, 0)["kl"] > 0.1


@pytest.mark.slow
def test_a_broken_model_is_seen_in_every_part_of_the_measurement(
    tmp_path: Path, image_classifier: tuple[Path, dict[str, Any]], image_task: ImageClassification
) -> None:
    good, broken = image_classifier[0], tmp_path / "broken"
    shutil.copytree(good, broken)
    tensors = load_file(broken / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name].roll(1, 0).contiguous()
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    measure = MeasureImages(runs=3, resamples=200)
    measure(tmp_path, models={"good": good, "broken": broken}, task=image_task, reference="good", confidence=0.95)
    found = json.loads((tmp_path / "measurements.json").read_text())
    rows = {row["name"]: row for row in found["models"]}
    assert found["task"] == "image-classification"
    assert rows["good"]["format"] == "transformers"
    assert rows["good"]["peak_rss_mb"] > rows["good"]["bare_rss_mb"] > 0
    assert rows["good"]["latency_ms"]["runs"] == 3
    low, high = rows["good"]["accuracy"]["ci95"]
    assert low < rows["good"]["accuracy"]["value"] < high
    assert verdict(Difference(**found["differences"]["broken"]["accuracy"]), 0.02) == "exceeded"
    assert found["flips"]["broken"]["lost"] > 30
    with np.load(tmp_path / "predictions.npz") as kept:
        assert set(kept) == {"labels", "groups", "good", "broken"}


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"runs 0"):
        MeasureImages(runs=0)
    with pytest.raises(UserError, match="shift"):
        FinetuneImages(shift=-0.1)
