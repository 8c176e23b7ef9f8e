"""The recipe on tiny models, from base to report: three roads from one student, each loaded as what it is."""

from pathlib import Path
from typing import Any

import pytest

from hfcompress.architectures.patches import read_edits
from hfcompress.cli import dispatch
from hfcompress.errors import UserError
from hfcompress.folders.record import read_json
from hfcompress.planning.plan import Plan
from hfcompress.recipes import legal_bert_structured
from tests.planning.test_plan import CountingMachine


def test_the_plan_of_the_full_scale_shows_a_smaller_model_by_every_road(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfcompress.planning.encoders.Machine", lambda threads: CountingMachine())
    plan: Any = Plan()
    legal_bert_structured.recipe(plan, **legal_bert_structured.arguments("full", tmp_path))
    models = plan.predictions
    student = models["student"]["parameters"]
    for name in ("movement", "low-rank", "structured", "structured-low-rank"):
        assert models[name]["parameters"] <= student
    assert models["structured-low-rank"]["parameters"] < models["structured"]["parameters"] < student
    assert models["structured-low-rank-int8"]["disk_mb"] < models["structured-low-rank-onnx"]["disk_mb"] / 3


def test_all_roads_learn_for_as_many_epochs(tmp_path: Path) -> None:
    found = legal_bert_structured.arguments("small", tmp_path)
    structured, epochs = found["structured"], found["prune"].num_train_epochs
    between = (structured.iterations - 1) * structured.epochs_between
    assert found["low_rank"].num_train_epochs == epochs
    assert between + structured.num_train_epochs + found["factorize"].num_train_epochs == pytest.approx(epochs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--structured.keep-bytes", "0.5"], r"^--structured\.keep-flops, .*: give exactly one of them"),
        (["--low-rank.energy", "0.9"], r"^--low-rank\.energy, .*: give exactly one of them \(2 are given"),
        (["--low-rank.tt-rank", "0"], r"^--low-rank\.tt-rank 0: "),
    ],
)
def test_a_refused_option_has_the_name_that_the_recipe_gives_it(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        dispatch(["plan", "legal_bert_structured", *arguments])


@pytest.mark.slow
def test_the_smoke_run_delivers_edited_models_as_onnx(tmp_path: Path) -> None:
    assert dispatch(["run", "legal_bert_structured", "--smoke", "--run-dir", str(tmp_path)]) in (0, 1)
    report = read_json(tmp_path / "report.json")
    models = {row["name"]: row for row in report["models"]}
    edits = {edit["edit"] for edit in read_edits(tmp_path / models["structured-low-rank"]["path"])}
    assert edits >= {"resize", "low_rank_linear"}
    assert models["structured-low-rank"]["format"] == models["low-rank"]["format"] == "surgery"
    delivered = models["structured-low-rank-int8"]
    assert (delivered["format"], report["verdicts"][0]["candidate"]) == ("onnx", delivered["name"])
    assert delivered["bytes"] < models["student"]["bytes"]
    whole = models["structured-low-rank"]["accuracy"]
    assert models["structured-low-rank-onnx"]["accuracy"]["value"] == whole["value"]
    assert abs(delivered["accuracy"]["value"] - whole["value"]) <= 0.15
