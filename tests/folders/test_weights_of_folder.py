"""Weights are what the files say: one answer to what transformers loads from a folder, whoever asks."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig

from hfcompress.architectures.checkpoint import Checkpoint, write_shard
from hfcompress.architectures.models import check_unquantized, load_classifier, load_tokenizer, save
from hfcompress.architectures.pooling import pooling_of, started_as, tell
from hfcompress.errors import UserError
from hfcompress.evaluation import language
from hfcompress.folders.permissions import as_umask_says, umask
from hfcompress.folders.weights import INDEX, SINGLE, weight_files
from hfcompress.formats.runtimes.torch_decoder import load as load_language
from hfcompress.formats.size import sizes
from hfcompress.planning.plan import Plan
from hfcompress.recipes import tiny
from hfcompress.training.adopt_language import AdoptLanguage
from tests.language_models import write_llama

LABELS = ["fruit", "metal", "water"]


def change(folder: Path, weights: Any = None, config: Any = None) -> Path:
    """Rewrite a folder's tensors (a function of the dict of them) and fields of its config.json (None: dropped)."""
    if weights is not None:
        tensors = weights(load_file(folder / SINGLE))
        save_file({n: t.clone().contiguous() for n, t in tensors.items()}, folder / SINGLE, metadata={"format": "pt"})
    if config is not None:
        found = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps({k: v for k, v in found.items() if v is not None}))
    return folder


def without(*parts: str) -> Any:
    return lambda tensors: {n: t for n, t in tensors.items() if not any(part in n for part in parts)}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "lm", tied=False)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return tiny.write_model(tmp_path / "bert", labels=LABELS)


def test_a_single_file_beside_an_old_index_is_what_both_readers_read(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network: Any = AutoModelForCausalLM.from_pretrained(llama)
    kept = (llama / SINGLE).read_bytes()
    alone = sizes(llama)
    with torch.no_grad():
        network.lm_head.weight.add_(1)
    (llama / SINGLE).unlink()
    network.save_pretrained(llama, max_shard_size="100KB")
    shards = len(list(llama.glob("model-*.safetensors")))
    (llama / SINGLE).write_bytes(kept)
    (llama / "pytorch_model.bin").write_bytes(b"0" * 1000)
    expected = load_file(llama / SINGLE)["lm_head.weight"]
    assert weight_files(llama) == [llama / SINGLE]
    assert torch.equal(Checkpoint(llama).read("lm_head.weight"), expected)
    assert torch.equal(load_language(llama).lm_head.weight, expected)
    assert sizes(llama) == alone, "the old shards, their index and the pickle are neither shipped nor counted"
    (made := tmp_path / "out").mkdir()
    AdoptLanguage()(made, model=llama)
    assert not list(made.glob("model-*"))
    assert not (made / INDEX).exists()
    assert (made / SINGLE).is_file()
    line = capsys.readouterr().err.strip()
    assert line.count("\n") == 0
    assert f"and {shards} more" in line


def test_a_head_that_the_config_ties_is_the_embedding_for_both_readers(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "lm", tied=True)
    change(folder, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    checkpoint = Checkpoint(folder)
    assert "lm_head.weight" not in checkpoint
    assert checkpoint.ignored == ["lm_head.weight"]
    assert torch.equal(load_language(folder).lm_head.weight, checkpoint.read("model.embed_tokens.weight"))


def test_a_head_of_other_values_that_the_config_ties_is_refused_by_both_readers(tmp_path: Path) -> None:
    """transformers 4 computes with the embedding, transformers 5 with the head."""
    folder = write_llama(tmp_path / "lm", tied=True)
    own = load_file(folder / SINGLE)["model.embed_tokens.weight"].clone()
    own[-1, -1] += 1
    change(folder, lambda tensors: tensors | {"lm_head.weight": own})
    for read in (Checkpoint, load_language):
        with pytest.raises(
            UserError, match=r"lm_head.weight is model.embed_tokens.weight .* in the files they differ"
        ):
            read(folder)
    change(folder, config={"tie_word_embeddings": False})
    assert torch.equal(Checkpoint(folder).read("lm_head.weight"), own)
    assert torch.equal(load_language(folder).lm_head.weight, own)


def test_a_base_models_file_is_read_under_the_causal_lms_names(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "lm", tied=True)
    names = set(Checkpoint(folder).places)
    change(folder, lambda tensors: {n.removeprefix("model."): t for n, t in tensors.items()})
    assert set(Checkpoint(folder).places) == names
    assert set(load_file(folder / SINGLE)) != names


@pytest.mark.parametrize(
    ("weights", "config", "match"),
    [
        (without("lm_head"), None, r"lm_head.weight is missing, and config.json says that it is not the embedding"),
        (without("layers.1.mlp.up"), None, r"does not contain model.layers.1.mlp.up_proj.weight,"),
        (None, {"vocab_size": 300}, r"has 320 rows in the file, and vocab_size in config.json is 300"),
        (None, {"vocab_size": 400}, r"has 320 rows in the file, and vocab_size in config.json is 400"),
        (None, {"intermediate_size": 64}, r"proj.weight is \[\d+, \d+\] in the file and \[\d+, \d+\] by config.json"),
        (None, {"num_hidden_layers": 1}, r"model.layers.1.\S+, \S+ and \d+ more .*number of layers"),
        (None, {"num_hidden_layers": 3}, r"does not contain model.layers.2"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_refused_by_both_readers(
    llama: Path, weights: Any, config: Any, match: str
) -> None:
    change(llama, weights, config)
    with pytest.raises(UserError, match=match):
        Checkpoint(llama)
    with pytest.raises(UserError, match=str(llama)):
        load_language(llama)


QUANTIZED: list[tuple[str, Any, Any, str]] = [
    (
        "bitsandbytes",
        None,
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "quantization_config",
    ),
    ("GPTQ", None, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
    ("AWQ", None, {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ("MLX", None, {"quantization": {"group_size": 64, "bits": 4}}, "quantization in config.json"),
    ("compressed-tensors", None, {"compression_config": {"format": "pack-quantized"}}, "compression_config"),
    ("made-up", None, {"quantization_config": {"quant_method": "made-up"}}, "quantization_config"),
    ("GPTQ or AWQ", lambda t: t | {"layer.qweight": torch.zeros(2, 2, dtype=torch.int32)}, None, "layer.qweight"),
    ("float8", lambda t: {n: w.to(torch.float8_e4m3fn) for n, w in t.items()}, None, ": "),
]


@pytest.mark.parametrize(("method", "weights", "config", "where"), QUANTIZED, ids=[row[0] for row in QUANTIZED])
def test_a_base_that_is_quantized_already_is_refused(
    llama: Path, classifier: Path, method: str, weights: Any, config: Any, where: str
) -> None:
    change(llama, weights, config)
    change(classifier, weights, config)
    for refused in (Checkpoint, check_unquantized):
        folder = llama if refused is Checkpoint else classifier
        with pytest.raises(UserError, match=rf"is already quantized \({method}.*{where}.*in 16 or 32 bits"):
            refused(folder)


def test_side_files_adapters_and_files_of_other_names_are_told(llama: Path) -> None:
    (llama / "quantize_config.json").write_text("{}")
    with pytest.raises(UserError, match="already quantized"):
        Checkpoint(llama)
    (llama / "quantize_config.json").unlink()
    (llama / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"an adapter .*merge_and_unload"):
        Checkpoint(llama)
    (llama / "adapter_config.json").unlink()
    (llama / SINGLE).rename(llama / "model.fp16.safetensors")
    with pytest.raises(UserError, match=r"transformers does not read model.fp16.safetensors: rename it"):
        Checkpoint(llama)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (without("classifier."), r"not a whole BertForSequenceClassification: .* classifier.bias, classifier.weight,"),
        (without("bert."), r"does not contain bert\.\S+, bert\.\S+ and \d+ more"),
        (without("layer.1.output.dense.bias"), r"does not contain bert.encoder.layer.1.output.dense.bias,"),
        (lambda t: {n.replace("bert.", "model.bert."): w for n, w in t.items()}, r"does not contain bert\."),
        (lambda t: t | {"classifier.bias": torch.full((3,), float("nan"))}, "classifier.bias holds NaN or Inf"),
        (lambda t: t | {"classifier.bias": torch.full((3,), float("inf"))}, "classifier.bias holds NaN or Inf"),
        (lambda t: t | {"classifier.weight": t["classifier.weight"][:2]}, "no model that transformers loads"),
    ],
    ids=["no head", "no encoder", "no bias", "another prefix", "nan", "inf", "two rows"],
)
def test_a_classifier_answers_with_no_weight_that_is_not_in_its_file(
    classifier: Path, weights: Any, match: str
) -> None:
    change(classifier, weights)
    with pytest.raises(UserError, match=match):
        load_classifier(classifier)


def test_an_encoder_gets_a_new_head_where_it_is_asked_for_and_nothing_else_new(classifier: Path) -> None:
    change(classifier, without("classifier.", "pooler."))
    with pytest.raises(UserError, match=r"does not contain bert.pooler.dense.bias"):
        load_classifier(classifier, LABELS)
    assert load_classifier(classifier, ["a", "b"], replace_head=True).config.id2label == {0: "a", 1: "b"}
    change(classifier, without("layer.0.attention.self.query.weight"))
    with pytest.raises(UserError, match=r"does not contain bert.encoder.layer.0.attention.self.query.weight"):
        load_classifier(classifier, ["a", "b"], replace_head=True)


@pytest.mark.parametrize("labels", [("a", "b", "c", "d"), tuple(LABELS)], ids=["other labels", "the same"])
@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_the_problem_type_goes_with_the_old_head(classifier: Path, problem: str, labels: tuple[str, ...]) -> None:
    change(classifier, config={"problem_type": problem})
    old = load_classifier(classifier)
    torch.manual_seed(1)
    new = load_classifier(classifier, list(labels), replace_head=True)
    assert new.config.problem_type is None
    assert list(new.config.id2label.values()) == list(labels)
    assert not torch.equal(new.classifier.weight[:3], old.classifier.weight)
    inputs = torch.tensor([[2, 5, 6, 3]])
    assert new(input_ids=inputs, labels=torch.tensor([1])).loss > 0, "cross-entropy takes whole numbers"
    with pytest.raises(UserError, match=rf"its head is for {problem.split('_')[0]}"):
        load_classifier(classifier, LABELS)


@pytest.mark.parametrize(
    ("names", "labels", "rows"),
    [
        (("water", "fruit", "metal"), LABELS, [1, 2, 0]),
        (("Water", "FRUIT", "metal"), LABELS, [1, 2, 0]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ["0", "1", "2"], [0, 1, 2]),
        (("2", "0", "1"), ["0", "1", "2"], [1, 2, 0]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ["2", "0", "1"], [2, 0, 1]),
    ],
)
def test_rows_of_a_head_are_put_in_the_order_of_the_tasks_labels(
    classifier: Path, tmp_path: Path, names: tuple[str, ...], labels: list[str], rows: list[int]
) -> None:
    named = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    change(classifier, lambda t: t | {"classifier.bias": torch.tensor([0.1, 0.2, 0.3])}, named)
    old, new = load_classifier(classifier), load_classifier(classifier, labels)
    inputs = torch.tensor([[2, 5, 6, 3]])
    assert torch.equal(new(inputs).logits, old(inputs).logits[:, rows])
    assert list(new.config.id2label.values()) == labels
    assert new.config.label2id[labels[0]] == 0
    new.save_pretrained(tmp_path / "saved")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(stock(inputs).logits, new(inputs).logits)


def test_labels_that_do_not_match_are_shown_side_by_side(classifier: Path) -> None:
    with pytest.raises(UserError, match=r"fruit, metal, water \(3\), the task has fruit, metal, wood \(3\) "
                       r"\(water \(1\) only in the model; wood \(1\) only in the task\)"):  # fmt: skip
        load_classifier(classifier, ["fruit", "metal", "wood"])
    change(classifier, config={"id2label": {i: f"LABEL_{i}" for i in range(3)}, "label2id": None})
    with pytest.raises(UserError, match=r"write the names of its labels into id2label in its config.json"):
        load_classifier(classifier, LABELS)


def test_the_last_layer_of_a_head_of_two_is_what_is_reordered(classifier: Path, tmp_path: Path) -> None:
    """RoBERTa's head has a dense layer before its outputs."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "b", 1: "a"}, label2id={"b": 0, "a": 1},
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "roberta")
    old, new = load_classifier(tmp_path / "roberta"), load_classifier(tmp_path / "roberta", ["a", "b"])
    inputs = torch.tensor([[0, 7, 8, 2]])
    assert torch.equal(new(inputs).logits, old(inputs).logits[:, [1, 0]])


def test_a_file_without_metadata_is_read_and_one_of_another_framework_is_not(classifier: Path) -> None:
    tensors = load_file(classifier / SINGLE)
    save_file(tensors, classifier / SINGLE)
    load_classifier(classifier)
    save_file(tensors, classifier / SINGLE, metadata={"format": "flax"})
    with pytest.raises(UserError, match="was written for flax, not torch"):
        load_classifier(classifier)


def test_layers_of_pretraining_are_left_out_and_those_of_a_longer_model_are_not(classifier: Path) -> None:
    longer = shutil.copytree(classifier, classifier.with_name("longer"))
    change(classifier, lambda t: t | {"cls.predictions.bias": torch.zeros(3)})
    load_classifier(classifier)
    change(longer, config={"num_hidden_layers": 1})
    with pytest.raises(UserError, match=r"bert.encoder.layer.1\S+, .* is in the file, and by config.json"):
        load_classifier(longer)


@pytest.mark.parametrize(
    ("said", "mode", "start"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls", "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean", "mean"),
        ({"pooling_mode_max_tokens": True}, "max", "cls"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls+mean", "cls"),
        ({"pooling_mode": "mean"}, "mean", "mean"),
        ({}, None, "cls"),
    ],
)
def test_what_1_pooling_says_is_read(
    tmp_path: Path, said: Any, mode: str | None, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    BertConfig().save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64} | said))
    assert pooling_of(tmp_path) == mode
    tell.cache_clear()
    assert started_as(tmp_path, "mean") == start
    assert (capsys.readouterr().err.count("\n") == 1) == (mode != "mean")
    tell.cache_clear()
    assert started_as(tmp_path, "cls") == "cls"
    assert bool(capsys.readouterr().err) == (mode not in ("cls", "mean", None))


def test_files_have_the_mode_that_the_umask_says(classifier: Path, tmp_path: Path) -> None:
    network, tokenizer = load_classifier(classifier), load_tokenizer(classifier)
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            save(network, tokenizer, out := tmp_path / oct(mask))
            write_shard(out / "shard.safetensors", {"a": torch.zeros(1)})
        finally:
            os.umask(before)
        assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {mode}
        assert (out / SINGLE).is_file()


def test_the_mode_of_a_file_that_another_folder_has_too_is_left(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "run"
    ours.mkdir()
    theirs.write_bytes(b"")
    theirs.chmod(0o600)
    os.link(theirs, ours / "linked")
    (ours / "own").write_bytes(b"")
    (ours / "own").chmod(0o600)
    as_umask_says(ours)
    assert theirs.stat().st_mode & 0o777 == 0o600
    assert (ours / "own").stat().st_mode & 0o777 == 0o666 & ~umask()


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_quantized_model_of_other_weights_is_refused_and_a_rounded_one_is_not(tmp_path: Path, bits: int) -> None:
    """The other one is a model of the same shape whose weights are new."""
    from hfcompress.ops.grid import Grid
    from hfcompress.ops.rtn import rtn

    source, other = (load_language(write_llama(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    rounded = load_language(tmp_path / "0")
    ids = torch.randint(3, 300, (16, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim == 2:
                parameter.copy_(rtn(parameter, Grid(bits, 64)).dequantize())
        wanted, *found = (model(ids).logits.argmax(-1) for model in (source, rounded, other))
    near, far = (
        language.Scores(*(np.array([n]) for n in (1.0, 0.0, float((said == wanted).sum()), float(ids.numel()))))
        for said in found
    )
    dtypes = {f"int{bits}": 1000, "float16": 10**6, "uint8": 10}
    language.require_kinship("packed", "lm", near, dtypes)
    with pytest.raises(UserError, match=rf"packed has the most likely token of lm in 0\.\d\d% .*{bits}\.0 bits"):
        language.require_kinship("packed", "lm", far, dtypes)


def test_bits_are_those_of_the_integers_alone() -> None:
    assert language.integer_bits({"float16": 100, "uint8": 8}) is None
    assert language.integer_bits({"int4": 4, "int8": 8, "float32": 400}) == 6
    assert language.integer_bits({"q8_0": 8, "f16": 3}) == 8


def test_a_plan_refuses_a_base_that_is_quantized_already(llama: Path) -> None:
    plan: Any = Plan()
    assert plan.base(str(llama)).shape.vocab == 320
    change(llama, config={"quantization_config": {"quant_method": "awq"}})
    with pytest.raises(UserError, match=r"already quantized \(AWQ"):
        plan.base(str(llama))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model.onnx", r"model\.onnx is an exported graph"),
        ("model.tflite", r"model\.tflite is an exported graph"),
        ("model.gguf", r"model\.gguf is GGUF"),
        ("pytorch_model.bin", r"pytorch_model\.bin is a pickle"),
    ],
)
def test_a_plan_refuses_a_base_whose_weights_a_run_could_not_read(llama: Path, file: str, said: str) -> None:
    plan: Any = Plan()
    (llama / file).write_bytes(b"1")
    assert plan.base(str(llama)).shape.vocab == 320, "beside the weights that are read"
    (llama / "model.safetensors").unlink()
    with pytest.raises(UserError, match=said):
        plan.base(str(llama))
    (llama / file).unlink()
    assert plan.base(str(llama)).shape.vocab == 320, "a config.json alone says the sizes"


def test_float64_is_no_float_of_four_or_six_bits_and_an_empty_quantization_is_none(
    classifier: Path, tmp_path: Path
) -> None:
    wanted = load_classifier(classifier).state_dict()
    folder = Path(shutil.copytree(classifier, tmp_path / "double"))
    tensors = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for empty in ("{}", "null"):
        changed = config | {"quantization_config": json.loads(empty)}
        (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        found = load_classifier(folder).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
