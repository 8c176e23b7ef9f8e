"""A tiny data set of each task, and a folder of a model for it: what tests/contracts/test_tasks.py runs on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfcompress.recipes import tiny
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.tabular_classification import Clicks
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.tasks.text_generation import CausalLM
from tests.image_models import write_mobilenet


def texts(folder: Path, seed: int) -> Path:
    """Three classes in groups of three; another seed has another test split."""
    tiny.write_dataset(folder)
    lines = [json.dumps(row) for row in tiny.rows("test", seed)]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def text_classification(folder: Path, seed: int = 0) -> TextClassification:
    return TextClassification(dataset=str(texts(folder, seed)), group_column="group", max_length=32)


def image_classification(folder: Path, seed: int = 0) -> ImageClassification:
    return ImageClassification(max_train_examples=60 + seed)


def clicks(folder: Path, seed: int = 0) -> Clicks:
    return Clicks(users=200, items=300, categories=10, requests=400, seed=seed)


def text_generation(folder: Path, seed: int = 0) -> CausalLM:
    return CausalLM(dataset=str(texts(folder, seed)), window=32, calibration_windows=4, test_tokens=256)


WRITERS: dict[str, Callable[..., Any]] = {
    "image-classification": image_classification,
    "tabular-classification": clicks,
    "text-classification": text_classification,
    "text-generation": text_generation,
}
"""Task -> what makes it, of the data that is written into a folder: (folder, seed); another seed, other data."""


def image_model(folder: Path, labels: list[str]) -> None:
    write_mobilenet(folder, labels, side=16)


def text_model(folder: Path, labels: list[str]) -> None:
    tiny.write_model(folder)


MODELS: dict[str, Callable[[Path, list[str]], None]] = {
    "image-classification": image_model,
    "text-classification": text_model,
}
"""Task with labels -> what writes a model that its examples are encoded for: (folder, labels)."""
