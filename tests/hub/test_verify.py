"""What a release holds, and what verify makes of it: identical files on identical data must give identical answers."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

from hfcompress.errors import UserError
from hfcompress.folders.record import read_json, write_json
from hfcompress.hub.release import PREDICTIONS, agreed_licence, release, smallest
from hfcompress.hub.verify import Claim, figure, processor_claims, verify
from hfcompress.recipes import tiny
from hfcompress.tasks.text_classification import TextClassification
from tests.formats.test_saturation import COLUMNS, graph
from tests.hub.test_push import copied  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def pushed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as a reader fetches it."""
    folder = tmp_path_factory.mktemp("pushed")
    found = release(finished, "org/small", "mit")
    for place, content in (found.models | found.rendered).items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


@pytest.fixture
def altered(pushed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pushed, tmp_path / "altered"))


def claims(folder: Path, task: TextClassification, data: str | None = None) -> dict[str, Claim]:
    return {claim.what: claim for claim in verify(folder, task, data or task.identity)}


def change_row(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Another figure in the report, of the model that the budget is about."""
    report = read_json(folder / "report.json")
    change(next(row for row in report["models"] if row["name"] == "int8"))
    write_json(folder / "report.json", report)


def failed(found: dict[str, Claim]) -> set[str]:
    return {what for what, claim in found.items() if claim.ok is False}


@pytest.mark.slow
def test_every_claim_holds_of_what_was_pushed(pushed: Path, tiny_task: TextClassification) -> None:
    found = claims(pushed, tiny_task)
    assert not failed(found)
    assert found["labels as the run gave them"].found == "90 of 90"
    measured = {what.partition(" on ")[0] for what in found if what.endswith(" texts")}
    assert measured == {"accuracy", "micro_f1", "macro_f1", "recall_at_90_precision", "ece"}


@pytest.mark.slow
def test_a_better_figure_within_the_interval_is_found_out(altered: Path, tiny_task: TextClassification) -> None:
    """The interval alone would let it pass: it is as wide as the test set is small."""

    def flatter(row: dict[str, Any]) -> None:
        high = row["accuracy"]["all"]["ci95"]["accuracy"][1]
        row["accuracy"]["all"]["accuracy"] = (row["accuracy"]["all"]["accuracy"] + high) / 2

    change_row(altered, flatter)
    assert failed(claims(altered, tiny_task)) == {"metrics of the run's answers"}


@pytest.mark.slow
def test_an_interval_that_the_answers_do_not_have_is_found_out(altered: Path, tiny_task: TextClassification) -> None:
    def narrow(row: dict[str, Any]) -> None:
        row["accuracy"]["all"]["ci95"]["accuracy"] = [0.01, 0.02]

    change_row(altered, narrow)
    assert failed(claims(altered, tiny_task)) == {"accuracy on 90 texts"}


@pytest.mark.slow
def test_answers_that_the_model_does_not_give_are_found_out(altered: Path, tiny_task: TextClassification) -> None:
    """Two texts of ninety with another label: an accuracy that the interval allows twenty times over."""
    logits = load_file(altered / PREDICTIONS)["logits"]
    logits[:2] = np.roll(logits[:2], 1, axis=1)
    save_file({"logits": logits}, altered / PREDICTIONS)
    assert "labels as the run gave them" in failed(claims(altered, tiny_task))


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"nothing", None])
def test_without_the_runs_answers_nothing_is_proved(
    altered: Path, tiny_task: TextClassification, content: bytes | None
) -> None:
    (altered / PREDICTIONS).unlink()
    if content:
        (altered / PREDICTIONS).write_bytes(content)
    assert failed(claims(altered, tiny_task)) == {"the run's answers in predictions.safetensors"}


@pytest.mark.slow
def test_on_another_sample_the_intervals_decide(altered: Path, tiny_task: TextClassification, tmp_path: Path) -> None:
    folder = tiny.write_dataset(tmp_path / "sample")
    lines = [json.dumps(row) for row in tiny.rows("test", seed=1)]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sample = dataclasses.replace(tiny_task, dataset=str(folder))
    found = claims(altered, sample, tiny_task.identity)
    assert found["data"].ok is None
    assert found["accuracy on 90 texts"].ok is True
    assert "labels as the run gave them" not in found

    def boast(row: dict[str, Any]) -> None:
        row["accuracy"]["all"]["ci95"]["accuracy"] = [0.1, 0.2]

    change_row(altered, boast)
    assert failed(claims(altered, sample, tiny_task.identity)) == {"accuracy on 90 texts"}


@pytest.mark.slow
def test_a_changed_file_is_not_run(altered: Path, tiny_task: TextClassification) -> None:
    (altered / "onnx" / "model_quantized.onnx").write_bytes(b"not the model")
    found = claims(altered, tiny_task)
    assert failed(found) == {"sha256 of onnx/model_quantized.onnx"}
    assert not any("texts" in what for what in found)


@pytest.mark.parametrize(
    ("found", "interval", "same", "holds"),
    [
        (0.7000, [0.69, 0.71], True, True),
        (0.7005, [0.69, 0.71], True, True),
        (0.7050, [0.69, 0.72], True, False),  # within the claimed interval, and not what the same files answer
        (0.7000, [0.10, 0.20], True, False),  # the value, and an interval that the answers do not have
        (0.7050, [0.69, 0.72], False, True),  # another sample
        (0.7500, [0.74, 0.76], False, False),
    ],
)
def test_on_the_same_data_a_figure_must_be_near_on_another_sample_intervals_overlap(
    found: float, interval: list[float], same: bool, holds: bool
) -> None:
    row = {"accuracy": {"all": {"auc": 0.7, "ci95": {"auc": [0.69, 0.71]}}}}
    assert figure("rows", "auc", row, {"auc": found, "ci95": {"auc": interval}}, same, 0.001).ok is holds


def test_the_smallest_transformers_model_lies_at_the_root_and_the_candidate_always_goes_up() -> None:
    def row(name: str, form: str, size: int, dtype: str) -> dict[str, Any]:
        return {"name": name, "format": form, "bytes": size, "dtypes": {dtype: size}}

    rows = [
        row("onnx", "onnx", 50, "float32"),
        row("teacher", "transformers", 100, "float32"),
        row("slim", "transformers", 40, "float32"),
        row("int8", "onnx", 12, "int8"),
        row("smaller", "onnx", 11, "int8"),
    ]
    assert smallest(rows, "int8") == ["slim", "onnx", "int8"]


@pytest.mark.slow
def test_a_licence_without_a_short_name_is_carried_over_with_name_and_link(copied: Path) -> None:  # noqa: F811
    details = read_json(copied / "details.json")
    details["base"] |= {"licence": "other", "licence_name": "house-licence", "licence_link": "https://example.org/l"}
    write_json(copied / "details.json", details)
    card = ModelCard(release(copied, "org/small").rendered["README.md"].decode()).data
    assert (card.license, card.license_name, card.license_link) == ("other", "house-licence", "https://example.org/l")
    with pytest.raises(UserError, match="is under house-licence, which holds"):
        release(copied, "org/small", "mit")


@pytest.mark.parametrize(
    ("licence", "name"), [("cc-by-nc-nd-4.0", None), ("other", "acme-no-derivatives"), ("cc-by-nd-4.0", None)]
)
def test_a_licence_that_forbids_derivatives_is_refused_by_its_name(licence: str, name: str | None) -> None:
    with pytest.raises(UserError, match="forbids derivatives"):
        agreed_licence({"name": "org/base", "licence": licence, "licence_name": name}, None)


def test_a_licence_that_the_base_calls_unknown_must_be_stated() -> None:
    base = {"name": "org/base", "licence": "unknown"}
    with pytest.raises(UserError, match="names no licence"):
        agreed_licence(base, None)
    assert agreed_licence(base, "mit") == "mit"


@pytest.mark.slow
def test_a_run_of_an_older_version_says_what_to_do(copied: Path) -> None:  # noqa: F811
    details = read_json(copied / "details.json")
    del details["measured"]
    write_json(copied / "details.json", details)
    with pytest.raises(UserError, match="older version; run the recipe again"):
        release(copied, "org/small", "mit")


def test_an_int8_graph_that_overflows_without_vnni_is_named(tmp_path: Path) -> None:
    weights = np.full((64, COLUMNS), 127, np.int8)
    onnx.save(graph("MatMulInteger", weights), str(tmp_path / "model.onnx"))
    (claim,) = processor_claims(tmp_path)
    assert claim.ok is None
    assert "1 can overflow, such as product (MatMulInteger): other answers there" in str(claim)
    onnx.save(graph("MatMulInteger", weights // 2), str(tmp_path / "model.onnx"))
    (claim,) = processor_claims(tmp_path)
    assert claim.ok is True
    (tmp_path / "model.onnx").unlink()
    assert processor_claims(tmp_path) == []
