import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

import hfcompress
from hfcompress.architectures.models import check_folder
from hfcompress.architectures.patches import SURGERY, resizes, size_of
from hfcompress.errors import UserError
from hfcompress.formats.size import sizes

CONFIG = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
INNER = "resnet.encoder.stages.0.layers.0.layer"


@pytest.fixture
def cut() -> ResNetForImageClassification:
    """A ResNet whose first block has five channels inside instead of eight."""
    torch.manual_seed(0)
    model = ResNetForImageClassification(CONFIG).eval()
    keep = torch.tensor([0, 1, 3, 4, 6])
    first, second = model.get_submodule(f"{INNER}.0"), model.get_submodule(f"{INNER}.1")
    first.convolution.weight.data = first.convolution.weight.data[keep]
    first.convolution.out_channels = 5
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(first.normalization, name).data = getattr(first.normalization, name).data[keep]
    first.normalization.num_features = 5
    second.convolution.weight.data = second.convolution.weight.data[:, keep]
    second.convolution.in_channels = 5
    return model


def saved(model: ResNetForImageClassification, folder: Path) -> Path:
    model.edits = resizes(ResNetForImageClassification(CONFIG), model)
    model.save_pretrained(folder)
    (folder / SURGERY).write_text(json.dumps({"edits": model.edits}))
    return folder


def test_a_cut_model_comes_back_with_its_weights(cut: ResNetForImageClassification, tmp_path: Path) -> None:
    folder = saved(cut, tmp_path)
    back = hfcompress.load(folder)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(back(pixels).logits, cut(pixels).logits)
    assert size_of(back.get_submodule(f"{INNER}.0.convolution"))["out_channels"] == 5
    assert back.edits == cut.edits
    assert {edit["module"].removeprefix(f"{INNER}.") for edit in cut.edits} == {
        "0.convolution", "0.normalization", "1.convolution",
    }  # fmt: skip
    weights = sum(p.numel() for p in cut.parameters())
    assert sizes(folder)["parameters"] == weights, "buffers of the normalizations are no parameters"


def test_heads_of_a_layer_are_numbers_that_its_forward_reads(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8, num_labels=2
    )
    model = BertForSequenceClassification(config).eval()
    attention = model.bert.encoder.layer[0].attention
    for name in ("query", "key", "value"):
        layer = getattr(attention.self, name)
        layer.weight.data, layer.bias.data, layer.out_features = layer.weight.data[:12], layer.bias.data[:12], 12
    attention.self.num_attention_heads, attention.self.all_head_size = 3, 12
    attention.output.dense.weight.data = attention.output.dense.weight.data[:, :12]
    attention.output.dense.in_features = 12
    model.edits = resizes(BertForSequenceClassification(config), model)
    model.save_pretrained(tmp_path)
    (tmp_path / SURGERY).write_text(json.dumps({"edits": model.edits}))
    ids = torch.randint(0, 40, (2, 7))
    assert torch.equal(hfcompress.load(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([{"edit": "resize", "module": "nowhere", "to": {}}], "does not fit the model"),
        ([{"edit": "paint", "module": "classifier.1"}], "no edit 'paint'"),
        ([{"edit": "resize", "module": "classifier.1", "to": {"out_features": 7}}], "the weights do not fit"),
        ([{"edit": "resize", "module": "resnet.pooler", "to": {}}], "does not fit the model"),
        ([{"edit": "resize", "module": "classifier.1", "to": {"out_features": -3}}], "does not fit the model"),
        ([{"edit": "attributes", "module": "classifier.1", "to": {"forward": 1}}], "does not fit the model"),
        ([], "damaged"),
    ],
)
def test_edits_that_do_not_fit_are_refused(
    cut: ResNetForImageClassification, tmp_path: Path, edits: list[dict[str, object]], message: str
) -> None:
    folder = saved(cut, tmp_path)
    (folder / SURGERY).write_text(json.dumps({"edits": cut.edits + edits}) if edits else "{")
    with pytest.raises(UserError, match=message):
        hfcompress.load(folder)


@pytest.mark.parametrize("after", [[], [{"edit": "resize", "module": "classifier.1", "to": {"in_features": 8}}]])
def test_sizes_of_edits_beyond_the_folders_weights_are_refused_before_memory_is_taken(
    cut: ResNetForImageClassification, tmp_path: Path, after: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that a later edit makes small again."""
    folder = saved(cut, tmp_path)
    huge = {"edit": "resize", "module": "classifier.1", "to": {"in_features": 2**23, "out_features": 2**23}}
    (folder / SURGERY).write_text(json.dumps({"edits": [*cut.edits, huge, *after]}))
    monkeypatch.setattr("hfcompress.architectures.patches.rebuild", lambda *_: pytest.fail("it was built"))
    with pytest.raises(UserError, match=r"surgery\.json describes a model of 70,368,\d+ million weights"):
        hfcompress.load(folder)


def test_a_mask_instead_of_a_cut_is_no_surgery(cut: ResNetForImageClassification, tmp_path: Path) -> None:
    """Weights of the whole size beside edits that claim a smaller one."""
    folder = saved(cut, tmp_path)
    ResNetForImageClassification(CONFIG).save_pretrained(folder)
    check_folder(folder)
    with pytest.raises(UserError, match="do not fit"):
        hfcompress.load(folder)
