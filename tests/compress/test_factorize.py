"""factorize: fewer bytes, the same task, weighted by what layers read; edited models go through the other stages."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import hfcompress
from hfcompress.architectures import encoders
from hfcompress.architectures.encoder_spec import Shape, parameters
from hfcompress.architectures.factors import CPConv, LowRankConv, LowRankLinear, TTEmbedding, Tucker2Conv
from hfcompress.architectures.models import load_classifier, load_tokenizer, save
from hfcompress.architectures.patches import SURGERY, apply, read_edits
from hfcompress.compress.factorize.factorize import Factorize, FactorizeImages, evenly
from hfcompress.compress.factorize.ranks import by_budget, find_layers, layer_options, put, watch
from hfcompress.compress.prune.movement import MovementPrune
from hfcompress.compress.quantize.qat import QAT
from hfcompress.errors import UserError
from hfcompress.formats.onnx import DynamicInt8, ExportOnnx
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.formats.size import integer_bytes, sizes
from hfcompress.planning.encoders import disk_bytes
from hfcompress.planning.plan import read_shape
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune import Finetune
from tests.image_models import write_mobilenet

QUICK: dict[str, Any] = {"per_device_train_batch_size": 16, "learning_rate": 3e-4, "bf16": "no"}
UNTRAINED: dict[str, Any] = {"num_train_epochs": 0, "calibration_examples": 32}


def made(stage: Any, out: Path, **inputs: Any) -> dict[str, Any]:
    (out / "work").mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = stage(out, **inputs)
    return found


def logits(folder: Path, task: TextClassification) -> Any:
    return Predictor(folder, 1).logits(task.data.texts("test"), task.max_length)


def accuracy(folder: Path, task: TextClassification) -> float:
    return float((logits(folder, task).argmax(axis=1) == np.array(task.data.label_ids("test"))).mean())


@pytest.fixture(scope="module")
def halved(
    tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_task: TextClassification
) -> tuple[Path, dict[str, Any]]:
    """The teacher with half of its linear layers' bytes, trained on its soft labels."""
    out = tmp_path_factory.mktemp("factorize") / "halved"
    stage = Factorize(keep_bytes=0.5, num_train_epochs=1, **QUICK)
    return out, made(stage, out, model=tiny_teacher, teacher=tiny_teacher, task=tiny_task)


def test_half_of_the_bytes_are_gone_and_the_model_is_loaded_from_its_edits(
    halved: tuple[Path, dict[str, Any]], tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    folder, measured = halved
    network, stock = hfcompress.load(folder), load_classifier(tiny_teacher)
    before, after = (sum(p.numel() for p in model.parameters()) for model in (stock, network))
    linear = sum(row["weights_before"] for row in measured["layers"])
    assert linear == sum(stock.get_submodule(name).weight.numel() for name in encoders.linear_names(stock))
    assert before - after == linear - sum(row["weights"] for row in measured["layers"])
    assert 0.45 <= measured["kept"]["bytes"] <= 0.5
    assert sizes(folder)["bytes"] < sizes(tiny_teacher)["bytes"] - 4 * 0.49 * linear
    assert sum(isinstance(module, LowRankLinear) for module in network.modules()) == len(read_edits(folder))
    assert {edit["edit"] for edit in read_edits(folder)} == {"low_rank_linear"}
    assert accuracy(folder, tiny_task) >= accuracy(tiny_teacher, tiny_task) - 0.05
    predicted = Factorize(keep_bytes=0.5).predict(Shape.from_config(stock.config.to_dict(), 3))
    assert parameters(predicted) == pytest.approx(after, rel=0.02)


@pytest.fixture(scope="module")
def onnx(
    tmp_path_factory: pytest.TempPathFactory, halved: tuple[Path, dict[str, Any]], tiny_task: TextClassification
) -> Path:
    out = tmp_path_factory.mktemp("factorize") / "onnx"
    made(ExportOnnx(), out, model=halved[0], task=tiny_task)
    return out


def test_its_onnx_and_its_int8_forms_say_what_it_says(
    tmp_path: Path, onnx: Path, halved: tuple[Path, dict[str, Any]], tiny_task: TextClassification
) -> None:
    folder, _ = halved
    wanted = logits(folder, tiny_task)
    assert np.abs(logits(onnx, tiny_task) - wanted).max() < 1e-4
    made(DynamicInt8(), tmp_path / "dynamic", model=onnx, task=tiny_task)
    qat = QAT(num_train_epochs=1, cache=False, **QUICK)
    measured = made(qat, tmp_path / "int8", model=folder, teacher=folder, task=tiny_task)
    edits = read_edits(folder)
    in_pooler = sum("pooler" in edit["module"] for edit in edits)
    assert measured["linears"] == 24 + len(edits) - in_pooler  # each factor is an integer kernel of its own
    assert measured["integer_linears"] >= measured["linears"]
    for name in ("dynamic", "int8"):
        assert (logits(tmp_path / name, tiny_task).argmax(1) == wanted.argmax(1)).mean() >= 0.95
        assert integer_bytes(sizes(tmp_path / name)["dtypes"]) > 0


def test_the_plan_knows_what_factors_take_in_onnx(
    onnx: Path, exported: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    stock = Shape.from_config(load_classifier(tiny_teacher).config.to_dict(), 3)
    shapes = [
        ExportOnnx().predict(shape, task=tiny_task) for shape in (stock, Factorize(keep_bytes=0.5).predict(stock))
    ]
    predicted = disk_bytes(shapes[0]) - disk_bytes(shapes[1])
    measured = sizes(exported)["bytes"] - sizes(onnx)["bytes"]
    assert predicted == pytest.approx(measured, rel=0.05)


def test_finetuning_goes_on_from_factors(
    tmp_path: Path, halved: tuple[Path, dict[str, Any]], tiny_task: TextClassification
) -> None:
    made(Finetune(max_steps=2, **QUICK), tmp_path / "out", model=halved[0], task=tiny_task)
    assert read_edits(tmp_path / "out") == read_edits(halved[0])
    assert hfcompress.load(tmp_path / "out")


def test_what_needs_a_stock_bert_says_so(
    tmp_path: Path, halved: tuple[Path, dict[str, Any]], tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    prune = MovementPrune(num_attention_heads=2, intermediate_size=64, **QUICK)
    with pytest.raises(UserError, match=r"cut or factored before .* needs a class of transformers"):
        made(prune, tmp_path / "a", model=halved[0], teacher=tiny_teacher, task=tiny_task)
    with pytest.raises(UserError, match="consists of factors already"):
        made(Factorize(energy=0.9), tmp_path / "b", model=halved[0], task=tiny_task)


class KilledError(Exception):
    pass


def test_a_killed_training_ends_in_the_same_model(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    stage = Factorize(keep_bytes=0.4, max_steps=6, saves_per_epoch=5, calibration_examples=32, **QUICK)
    inputs: dict[str, Any] = {"model": tiny_teacher, "teacher": tiny_teacher, "task": tiny_task}
    made(stage, tmp_path / "whole", **inputs)
    step = Trainer.training_step
    steps: list[int] = []

    def dies(self: Any, *arguments: Any, **more: Any) -> Any:
        steps.append(self.state.global_step)
        if len(steps) == 5:
            raise KilledError
        return step(self, *arguments, **more)

    monkeypatch.setattr(Trainer, "training_step", dies)
    with pytest.raises(KilledError):
        made(stage, tmp_path / "cut", **inputs)
    assert made(stage, tmp_path / "cut", **inputs)["resumed_at_step"] == 3
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_factors_weighted_by_activations_stay_closer_to_the_model(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    """At the same bytes, without any training: KL to the whole model."""
    wanted = torch.from_numpy(logits(tiny_teacher, tiny_task)).log_softmax(1)
    lost = {}
    for weighted in (True, False):
        out = tmp_path / str(weighted)
        made(Factorize(keep_bytes=0.3, weighted=weighted, **UNTRAINED), out, model=tiny_teacher, task=tiny_task)
        found = torch.from_numpy(logits(out, tiny_task)).log_softmax(1)
        lost[weighted] = float(nn.functional.kl_div(found, wanted, log_target=True, reduction="batchmean"))
    assert lost[True] < lost[False] / 2


def test_word_embeddings_as_a_tensor_train(tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification) -> None:
    stage = Factorize(energy=0.999, tt_rank=8, num_train_epochs=1, **(QUICK | {"learning_rate": 1e-3}))
    made(stage, tmp_path / "tt", model=tiny_teacher, teacher=tiny_teacher, task=tiny_task)
    network = hfcompress.load(tmp_path / "tt")
    table: Any = network.bert.embeddings.word_embeddings
    assert isinstance(table, TTEmbedding)
    assert sum(p.numel() for p in table.parameters()) < 0.5 * table.num_embeddings * table.embedding_dim
    assert accuracy(tmp_path / "tt", tiny_task) >= 0.8
    qat = QAT(max_steps=2, cache=False, **QUICK)
    made(qat, tmp_path / "int8", model=tmp_path / "tt", teacher=tmp_path / "tt", task=tiny_task)
    wanted = logits(tmp_path / "tt", tiny_task)
    assert (logits(tmp_path / "int8", tiny_task).argmax(1) == wanted.argmax(1)).mean() >= 0.9
    with pytest.raises(UserError, match=r"tt_rank 24: .*the table"):
        made(Factorize(energy=0.9, tt_rank=24, **UNTRAINED), tmp_path / "no", model=tiny_teacher, task=tiny_task)


class Net(nn.Module):
    """Convolutions of several kinds and a linear layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(16, 24, 3, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.point = nn.Conv2d(24, 32, 1)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.head = nn.Linear(32, 4)

    def forward(self, pixel_values: Tensor) -> Tensor:
        found = self.wide(torch.relu(self.stem(pixel_values)))
        found = self.point(self.depthwise(torch.relu(found))).mean((2, 3))
        logits: Tensor = self.head(self.second(torch.relu(self.first(found))))
        return logits


@pytest.mark.parametrize(("kind", "made_of"), [("svd", LowRankConv), ("tucker2", Tucker2Conv), ("cp", CPConv)])
def test_convolutions_become_factors_within_their_budget_of_flops(kind: Any, made_of: type) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network, pixels = Net().eval(), torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    names, left_alone = find_layers(network)
    assert left_alone == {
        "depthwise": "depthwise", "first": "shared with second", "second": "shared with first"
    }  # fmt: skip
    seen = watch(network, names, [{"pixel_values": pixels[:4]}, {"pixel_values": pixels[4:]}], kind, weighted=True)
    layers = [layer_options(network, name, kind, seen[name]) for name in names]

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            network(pixels[:1])
        return int(counter.get_total_flops())

    alone = 2 * (24 * 9 * 64 + 2 * 32 * 32)
    assert sum(layer.options[0].flops for layer in layers) == flops() - alone
    chosen = by_budget(layers, "flops", 0.5)
    assert chosen is not None
    wanted = network(pixels)
    for layer, option in zip(layers, chosen, strict=True):
        if option.ranks is not None:
            put(network, layer, option.ranks)
    assert isinstance(network.wide, made_of)
    spent = sum(option.flops for option in chosen)
    assert flops() - alone == pytest.approx(spent, rel=1e-6)
    assert spent <= 0.5 * sum(layer.options[0].flops for layer in layers)
    assert float((network(pixels) - wanted).square().sum() / wanted.square().sum()) < 0.5


@pytest.mark.parametrize("kind", ["svd", "tucker2", "cp"])
@pytest.mark.parametrize("stride", [(2, 1), (1, 2), (2, 3)])
def test_flops_of_factors_with_a_stride_are_those_that_torch_counts(kind: Any, stride: tuple[int, int]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    pixels = torch.randn(1, 8, 13, 10, generator=torch.Generator().manual_seed(0))
    whole = nn.Sequential(nn.Conv2d(8, 12, (5, 3), stride=stride, padding=(0, 2), dilation=(1, 2)))
    seen = watch(whole, ["0"], [{"input": pixels}], kind, weighted=False)
    layer = layer_options(whole, "0", kind, seen["0"])
    for option in (layer.options[1], layer.options[-1]):
        assert option.ranks is not None
        network = copy.deepcopy(whole)
        put(network, layer, option.ranks)
        with FlopCounterMode(display=False) as counter:
            network(pixels)
        assert counter.get_total_flops() == option.flops


def test_allotted_ranks_lose_less_than_the_same_share_of_every_layer() -> None:
    network = Net().eval()
    pixels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    names, _ = find_layers(network)
    seen = watch(network, names, [{"pixel_values": pixels}], "svd", weighted=True)
    layers = [layer_options(network, name, "svd", seen[name]) for name in names]
    chosen = by_budget(layers, "bytes", 0.4)
    assert chosen is not None
    uniform = [max((o for o in lay.options if o.weights <= 0.4 * lay.options[0].weights), key=lambda o: o.weights)
               for lay in layers]  # fmt: skip
    assert sum(o.weights for o in chosen) <= 0.4 * sum(lay.options[0].weights for lay in layers)
    assert sum(o.error for o in chosen) < sum(o.error for o in uniform)
    assert by_budget(layers, "bytes", 1e-4) is None
    assert [o.ranks for o in by_budget(layers, "bytes", 1.0) or []] == [None] * len(layers)


@pytest.fixture(scope="module")
def squares() -> ImageClassification:
    return ImageClassification(max_train_examples=200)


def test_an_image_classifier_is_factored_trained_and_loaded(tmp_path: Path, squares: ImageClassification) -> None:
    model = write_mobilenet(tmp_path / "model", squares.data.labels, side=32, width=0.35)
    stage = FactorizeImages(keep_flops=0.6, kind="tucker2", max_steps=2, calibration_examples=20, **QUICK)
    measured = made(stage, tmp_path / "out", model=model, teacher=model, task=squares)
    assert {"low_rank_linear"} <= {edit["edit"] for edit in read_edits(tmp_path / "out")}
    assert measured["kept"]["flops"] <= 0.6
    assert sum(reason == "depthwise" for reason in measured["left_alone"].values()) == 17
    network = hfcompress.load(tmp_path / "out")
    assert network(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 10)
    before, after = (sum(p.numel() for p in hfcompress.load(tmp_path / n).parameters()) for n in ("model", "out"))
    assert after < before


def test_calibration_is_drawn_evenly_over_the_classes() -> None:
    """A file sorted by class would otherwise show one class alone."""
    assert evenly([0, 0, 0, 0, 1, 1, 2], 4) == [0, 4, 6, 1]
    assert len(evenly([0, 1], 99)) == 2


def test_a_layer_shared_by_two_modules_stays_as_it_is(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    network = load_classifier(tiny_teacher)
    first, second = (layer.attention.self for layer in encoders.layers(network)[:2])
    second.query.weight = first.query.weight
    found, left_alone = find_layers(network, encoders.linear_names(network))
    assert len(found) == 23
    assert set(left_alone.values()) == {
        f"shared with bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["exactly one", "0 are given"]),
        ({"energy": 0.9, "keep_bytes": 0.5}, ["exactly one", "2 are given"]),
        ({"energy": 0.0}, ["energy 0", "rank of 0"]),
        ({"keep_flops": 1.5}, ["keep_flops 1.5"]),
        ({"keep_bytes": 0.001}, ["keep_bytes 0.001", "lowest ranks leave 0.0"]),
        ({"keep_bytes": 1.0}, ["no layer becomes smaller"]),
        ({"keep_bytes": 0.5, "calibration_examples": 2}, ["calibration_examples 2", "3 classes"]),
        ({"energy": 0.9, "tt_rank": 0}, ["tt_rank 0"]),
        ({"energy": 0.9, "temperature": 0.0}, ["temperature 0"]),
        ({"energy": 0.9, "logits_weight": 0.0}, ["logits_weight"]),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        made(Factorize(**(UNTRAINED | options)), tmp_path / "out", model=tiny_teacher, task=tiny_task)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_rank_that_no_train_has_is_refused_by_the_plan(tiny_teacher: Path) -> None:
    shape = read_shape(tiny_teacher / "config.json")
    with pytest.raises(UserError, match=r"^tt_rank 1000000: a rank of 1000000: from 1 to"):
        Factorize(keep_bytes=0.5, tt_rank=10**6).predict(shape)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"edit": "low_rank_linear", "module": "bert.pooler.dense", "rank": 0}, "a rank of 0"),
        ({"edit": "low_rank_linear", "module": "bert.pooler", "rank": 3}, "does not fit the model"),
        ({"edit": "tucker2_conv", "module": "bert.pooler.dense", "ranks": [1, 1]}, "no factors of this kind"),
        ({"edit": "tt_embedding", "module": "bert.embeddings.word_embeddings"}, "does not fit the model"),
    ],
)
def test_edits_of_factors_that_cannot_be_are_refused(tiny_teacher: Path, edit: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply(load_classifier(tiny_teacher), [edit])


def test_factors_under_a_claim_of_another_rank_are_refused(
    tmp_path: Path, halved: tuple[Path, dict[str, Any]]
) -> None:
    network = hfcompress.load(halved[0])
    save(network, load_tokenizer(halved[0]), tmp_path)
    text = (tmp_path / SURGERY).read_text()
    rank = read_edits(tmp_path)[0]["rank"]
    (tmp_path / SURGERY).write_text(text.replace(f'"rank": {rank}', f'"rank": {rank - 1}', 1))
    with pytest.raises(UserError, match="do not fit"):
        hfcompress.load(tmp_path)


def test_memory_and_profile_are_of_the_factored_model(
    halved: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stock class would load such a folder too, with new weights where the factors are."""
    from hfcompress.architectures import models
    from hfcompress.formats.memory import serve_transformers
    from hfcompress.planning.profile import torch_request

    loaded = []

    def watched(folder: Path) -> Any:
        loaded.append(folder)
        return load_classifier(folder)

    monkeypatch.setattr(models, "load_classifier", watched)
    assert serve_transformers(halved[0], 16, 1)["load_ms"] > 0
    assert loaded == [halved[0]]
    network, _ = torch_request(halved[0], 1, 8)
    assert any(isinstance(module, LowRankLinear) for module in network.modules())
