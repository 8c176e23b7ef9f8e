"""The options that every training stage shares do what their names say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from hfcompress.architectures.models import load_classifier, load_tokenizer
from hfcompress.errors import UserError
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune import Finetune
from hfcompress.training.trainer import leaves_one, masks_tokens, refuse_sharding, train


def seen_by(network: torch.nn.Module) -> list[torch.Tensor]:
    """The ids that reach the embeddings, one entry a forward pass."""
    seen: list[torch.Tensor] = []
    network.bert.embeddings.word_embeddings.register_forward_hook(lambda module, ids, out: seen.append(ids[0]))
    return seen


def test_masking_replaces_that_share_of_the_words_only_in_training(tiny_model: Path) -> None:
    network, tokenizer = load_classifier(tiny_model), load_tokenizer(tiny_model)
    seen = seen_by(network)
    ids = tokenizer(["river " * 28] * 40, return_tensors="pt")["input_ids"]
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    with masks_tokens(network, tokenizer, 0.25):
        for mode in (True, True, False):
            network.train(mode)
            network(input_ids=ids)
    network.train()
    network(input_ids=ids)
    first, again, in_eval, afterwards = seen
    assert torch.equal(first[special], ids[special])
    masked = first != ids
    assert (first[masked] == tokenizer.mask_token_id).all()
    assert 0.2 < masked[~special].float().mean() < 0.3
    assert not torch.equal(first, again)
    assert torch.equal(in_eval, ids)
    assert torch.equal(afterwards, ids)


def test_a_tokenizer_without_a_mask_is_refused(tiny_model: Path) -> None:
    network, tokenizer = load_classifier(tiny_model), load_tokenizer(tiny_model)
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="no tokenizer with a mask token"), masks_tokens(network, tokenizer, 0.1):
        pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_train_epochs": -1.0}, "num_train_epochs -1: must be at least 0"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs nan: must be a finite number"),
        ({"learning_rate": float("inf")}, "learning_rate inf: must be a finite number"),
        ({"group_balance": -0.5}, "group_balance -0.5: must be at least 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size 0: must be at least 1"),
        ({"seed": -1234567}, "seed -1234567: must be at least 0"),
        ({"per_device_train_batch_size": -(10**400)}, "batch_size -10+: must be at least 0"),
        ({"saves_per_epoch": 0}, "saves_per_epoch 0: must be at least 1"),
        ({"max_steps": 0}, "max_steps 0: at least 1, or -1"),
        ({"warmup_ratio": 1.0}, "warmup_ratio 1: from 0 to below 1"),
        ({"seed": 2**32}, "seed 4294967296: below 4294967296"),
    ],
)
def test_numbers_out_of_range_are_refused_before_any_training(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Finetune(**options)


def test_a_training_shorter_than_a_step_of_the_log_that_comes_to_no_number_is_refused(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match="lower learning_rate"):
        Finetune(max_steps=3, learning_rate=1e30)(tmp_path, model=tiny_model, task=tiny_task)


def test_a_last_step_that_no_log_shows_and_that_comes_to_no_number_is_refused(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    """The log has every tenth step: the eleventh is in the mean alone."""
    network, tokenizer = load_classifier(tiny_model), load_tokenizer(tiny_model)
    data, seen = tiny_task.data.encode(tokenizer, tiny_task.max_length, "train"), list[int]()

    def loss(model: Any, batch: Any) -> torch.Tensor:
        seen.append(len(seen) + 1)
        found: torch.Tensor = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
        return found * (float("nan") if len(seen) == 11 else 1.0)

    options = Finetune(max_steps=11, per_device_train_batch_size=2, bf16="no")
    with pytest.raises(UserError, match="the loss is nan at step 11; lower learning_rate"):
        train(network, tokenizer, tmp_path, options, data, loss=loss)


def test_one_example_alone_is_left_out_where_one_process_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Finetune(per_device_train_batch_size=4)
    assert [examples for examples in range(4, 11) if leaves_one(examples, options)] == [5, 9]
    assert not leaves_one(9, Finetune(per_device_train_batch_size=1)), "that is how it was asked for"
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    assert not leaves_one(9, options)


def test_sharded_weights_are_refused_and_whole_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_sharding()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"several_gpus\.yaml"):
        refuse_sharding()


def test_a_stage_in_bf16_leaves_nothing_to_the_next(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TrainingArguments keeps its precision in the environment, and reads it there when it is not told of bf16."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    trained = {}
    for name, bf16 in (("before", "no"), ("bf16", "yes"), ("after", "no")):
        (tmp_path / name).mkdir()
        stage = Finetune(max_steps=2, per_device_train_batch_size=8, bf16=bf16, saves_per_epoch=1)
        stage(tmp_path / name, model=tiny_model, task=tiny_task)
        trained[name] = load_file(tmp_path / name / "model.safetensors")
    for name, tensor in trained["before"].items():
        assert torch.equal(tensor, trained["after"][name]), name
    assert any(not torch.equal(tensor, trained["bf16"][name]) for name, tensor in trained["before"].items())
