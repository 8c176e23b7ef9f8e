"""What finetune adds to the Trainer: where the base's knowledge is read, and which texts count how much."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from hfcompress.architectures.models import load_classifier
from hfcompress.errors import UserError
from hfcompress.folders.fetch import pull
from hfcompress.recipes import legal_bert, licence_teacher
from hfcompress.stage import Artifact
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune import Finetune


class Fixed(torch.nn.Module):
    """Answers with the same logits whatever it reads."""

    def forward(self, input_ids: torch.Tensor) -> "Fixed":
        self.logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])[: len(input_ids)]
        return self


@pytest.mark.parametrize(("balance", "weights"), [(1.0, [0.75, 0.75, 1.5]), (0.5, [0.879, 0.879, 1.243])])
def test_texts_of_a_large_group_count_less(balance: float, weights: list[float]) -> None:
    """Two texts of one licence and one of another, weights by hand: n^-balance, 1 on average."""
    batch = {"input_ids": torch.zeros(3, 4), "labels": torch.zeros(3, dtype=torch.long), "index": torch.arange(3)}
    found = Finetune(group_balance=balance).loss(["mit", "mit", "zlib"])(Fixed(), batch)
    each = torch.nn.functional.cross_entropy(Fixed()(batch["input_ids"]).logits, batch["labels"], reduction="none")
    assert found.item() == pytest.approx(float((each * torch.tensor(weights)).mean()), rel=1e-3)


def test_a_base_for_mean_pooling_has_a_head_that_passes_a_mean_on(
    tmp_path: Path, tiny_task: TextClassification
) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    from hfcompress.recipes import tiny

    folder = tiny.write_model(tmp_path / "model")
    config = DistilBertConfig(vocab_size=200, dim=32, hidden_dim=32, n_layers=1, n_heads=2)
    DistilBertModel(config).save_pretrained(folder)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"^pooling mean: the head of DistilBertForSequenceClassification"):
        Finetune(pooling="mean")(tmp_path / "out", model=folder, task=tiny_task)


def test_the_shipped_teacher_is_what_the_recipes_own_stage_made() -> None:
    """Other options in the recipe than those it was made with: then it is not this recipe's teacher."""
    folder = licence_teacher.FOLDER
    record = json.loads((folder / "record.json").read_text())
    assert record["stage"] == "Finetune"
    assert record["options"] == asdict(licence_teacher.FINETUNE)
    assert record["inputs"]["task"] == licence_teacher.TASK.identity, "other texts or another split: `make teacher`"
    assert Artifact(folder).damage() is None
    assert record["dtypes"].keys() == {"bfloat16"}
    assert (folder / "model.safetensors").stat().st_size < 35e6
    assert load_classifier(folder).config.num_labels == 9


@pytest.mark.parametrize("options", [{"mask_probability": 1.0}, {"mask_probability": -0.1}, {"group_balance": -1.0}])
def test_impossible_options_are_refused_before_anything_runs(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"mask_probability|group_balance"):
        Finetune(**options)  # type: ignore[arg-type]


def test_the_mean_is_taken_only_of_a_base_that_was_made_for_it(tmp_path: Path) -> None:
    assert legal_bert.as_pooled(Finetune(pooling="mean"), pull(licence_teacher.BASE)).pooling == "mean"
    assert legal_bert.as_pooled(Finetune(pooling="mean"), tmp_path).pooling == "cls"


def test_the_shipped_teacher_is_taken_only_for_what_it_was_made_with() -> None:
    small = legal_bert.small(Path())
    choices = (licence_teacher.BASE, TextClassification(), licence_teacher.TRIM, small["finetune"])
    assert legal_bert.made_with(*choices)
    assert not legal_bert.made_with("other/base", *choices[1:])
    assert not legal_bert.made_with(*choices[:3], Finetune())
    assert not legal_bert.made_with(choices[0], TextClassification(dataset="clauses"), *choices[2:])
