"""What a text classifier is given is what it takes, and an answer does not depend on what else is asked."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfcompress.architectures.text_inputs import (
    LONGEST,
    complete,
    full_request,
    require_positions,
    text_limit,
    usable_positions,
)
from hfcompress.errors import UserError
from hfcompress.formats.runtimes.predictor import Predictor, batches
from hfcompress.formats.runtimes.sessions import has_ranges_of_a_batch
from hfcompress.recipes import tiny

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "initializer_range": 0.3,
}  # fmt: skip
LABELS: dict[str, Any] = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
TEXTS = ["zinc", *(row["text"] for row in tiny.rows("test")[:12]), "", "the river " * 60]


def config_of(kind: str, vocabulary: int, pad: int | None) -> Any:
    """A tiny config of random weights that are large enough to see what a text is."""
    import transformers as t

    common = {"vocab_size": vocabulary, "pad_token_id": pad, **LABELS}
    return {
        "bert": lambda: t.BertConfig(**common, **SIZES, max_position_embeddings=64),
        "roberta": lambda: t.RobertaConfig(**common, **SIZES, max_position_embeddings=66, type_vocab_size=1),
        "mpnet": lambda: t.MPNetConfig(**common, **SIZES, max_position_embeddings=66),
        "distilbert": lambda: t.DistilBertConfig(
            **common, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64, initializer_range=0.3
        ),
        "deberta-v2": lambda: t.DebertaV2Config(
            **common, **SIZES, max_position_embeddings=64, relative_attention=True, pos_att_type=["p2c", "c2p"],
            position_biased_input=False, type_vocab_size=0,
        ),
        "convbert": lambda: t.ConvBertConfig(**common, **SIZES, embedding_size=32, max_position_embeddings=64),
        "gpt2": lambda: t.GPT2Config(
            **common, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3, bos_token_id=2,
            eos_token_id=3,
        ),
        "llama": lambda: t.LlamaConfig(**common, **SIZES, max_position_embeddings=64, num_key_value_heads=2),
        "xlnet": lambda: t.XLNetConfig(
            **common, d_model=32, n_layer=2, n_head=2, d_inner=64, initializer_range=0.3, bos_token_id=2,
            eos_token_id=3,
        ),
        "electra": lambda: t.ElectraConfig(**common, **SIZES, embedding_size=32, max_position_embeddings=64),
    }[kind]()  # fmt: skip


def classifier(folder: Path, kind: str, *, pad: bool = True, side: str = "right", limit: int | None = 64) -> Path:
    """A tiny classifier of random weights with the tiny WordPiece tokenizer, as a stranger might save it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tiny.write_model(folder, layers=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = config_of(kind, len(tokenizer), tokenizer.pad_token_id if pad else None)
    AutoModelForSequenceClassification.from_config(config).eval().save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text()) | {"padding_side": side, "model_max_length": limit or int(1e30)}
    said.pop("tokenizer_class", None)
    file.write_text(json.dumps(said | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


@pytest.mark.parametrize(
    ("kind", "pad", "side"),
    [
        ("bert", True, "right"), ("bert", True, "left"), ("roberta", True, "left"), ("mpnet", True, "right"),
        ("distilbert", True, "left"), ("deberta-v2", True, "left"), ("convbert", True, "right"),
        ("electra", True, "left"), ("gpt2", False, "right"), ("gpt2", True, "left"), ("llama", False, "left"),
        ("xlnet", True, "left"),
    ],
)  # fmt: skip
def test_an_answer_is_the_pipelines_and_the_same_together_and_alone(
    kind: str, pad: bool, side: str, tmp_path: Path
) -> None:
    from transformers import pipeline

    folder = classifier(tmp_path / kind, kind, pad=pad, side=side)
    predictor = Predictor(folder, 1)
    limit = text_limit(folder)
    together = predictor.logits(TEXTS, limit)
    alone = np.concatenate([predictor.logits([text], limit) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    asked = pipeline("text-classification", str(folder), device="cpu", truncation=True, max_length=limit)
    asked.tokenizer.model_input_names = list(predictor.inputs)  # it would hand over token types unasked
    expected = [asked(text, function_to_apply="none", top_k=None) for text in TEXTS]
    logits = [{entry["label"]: entry["score"] for entry in row} for row in expected]
    assert np.abs(together - [[row[name] for name in predictor.labels] for row in logits]).max() < 1e-5
    assert np.ptp(together[:, 0]) > 1e-3, "the texts are told apart"


def test_what_a_config_wants_returned_beside_the_logits_changes_no_answer(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "bert", "bert")
    wanted = Predictor(folder, 1).logits(TEXTS, 64)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for asked in ({"return_dict": False}, {"torchscript": True}, {"output_attentions": True}):
        (folder / "config.json").write_text(json.dumps(config | asked), encoding="utf-8")
        assert np.array_equal(Predictor(folder, 1).logits(TEXTS, 64), wanted), asked


def test_padding_on_the_left_would_change_a_bert(tmp_path: Path) -> None:
    """What the test above would miss, were the weights too small."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = classifier(tmp_path / "bert", "bert", side="left")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS[:4], padding=True, return_tensors="pt")
    with torch.inference_mode():
        assert np.abs(model(**batch).logits.numpy() - Predictor(folder, 1).logits(TEXTS[:4], 64)).max() > 1e-3


POSITIONS = [
    ({"model_type": "bert", "max_position_embeddings": 512}, 512),
    ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
    ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
    ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 0}, 513),
    ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
    ({"model_type": "camembert", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
    ({"model_type": "longformer", "max_position_embeddings": 4098, "pad_token_id": 1}, 4096),
    ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 0}, 512),
    ({"model_type": "distilbert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
    ({"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": False}, None),
    ({"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": True}, 512),
    ({"model_type": "esm", "max_position_embeddings": 1026, "position_embedding_type": "rotary"}, None),
    ({"model_type": "xlnet"}, None),
    ({"model_type": "t5", "n_positions": 512}, None),
    ({"model_type": "gpt2", "n_positions": 1024}, 1024),
    ({"model_type": "mpt", "max_seq_len": 2048}, 2048),
    ({"model_type": "nystromformer", "max_position_embeddings": 510}, 510),
    ({"model_type": "opt", "max_position_embeddings": 2048}, 2048),
]


@pytest.mark.parametrize(("config", "positions"), POSITIONS)
def test_positions_that_can_be_used(config: dict[str, Any], positions: int | None) -> None:
    assert usable_positions(config) == positions


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "distilbert", "convbert", "gpt2", "electra"])
def test_a_model_reads_all_its_positions_and_no_more(kind: str, tmp_path: Path) -> None:
    """The function above, asked of transformers itself."""
    from transformers import AutoModelForSequenceClassification

    config = config_of(kind, 50, 1)
    positions = usable_positions(config.to_dict())
    assert positions == 64
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.inference_mode():
        model(input_ids=torch.full((1, positions), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, positions + 1), 7))


def test_a_long_text_is_cut_to_what_tokenizer_and_positions_allow(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "roberta", "roberta", limit=None)
    assert text_limit(folder) == 65, "66 rows, the padding token is 0"
    long = Predictor(folder, 1).logits(["the river " * 200], 10_000)
    assert np.array_equal(long, Predictor(folder, 1).logits(["the river " * 200], 65))
    assert text_limit(classifier(tmp_path / "short", "roberta", limit=20)) == 20
    assert text_limit(classifier(tmp_path / "deberta", "deberta-v2", limit=None)) == LONGEST
    assert text_limit(classifier(tmp_path / "limited", "deberta-v2", limit=100)) == 100


@pytest.mark.parametrize(("kind", "taken"), [("distilbert", 2), ("bert", 3), ("mpnet", 2), ("gpt2", 3)])
def test_a_timed_request_has_the_inputs_that_the_model_takes(kind: str, taken: int, tmp_path: Path) -> None:
    predictor = Predictor(classifier(tmp_path / kind, kind), 1)
    request = predictor.request(64, batch=2)
    assert len(request) == taken
    assert {array.shape for array in request.values()} == {(2, 64)}
    assert predictor.run(request).shape == (2, 2)
    with pytest.raises(UserError, match=r"--measure\.sequence-length 65: .* has 64 positions"):
        predictor.request(65)


def test_a_request_has_special_tokens_where_the_tokenizer_puts_them(tmp_path: Path) -> None:
    tokenizer = Predictor(classifier(tmp_path / "bert", "bert"), 1).tokenizer
    ids = full_request(tokenizer, 16, 3)["input_ids"]
    assert set(ids[:, 0]) == {tokenizer.cls_token_id}
    assert set(ids[:, -1]) == {tokenizer.sep_token_id}
    assert not set(ids[:, 1:-1].flatten()) & set(tokenizer.all_special_ids)
    assert ids.max() < len(tokenizer)
    assert full_request(tokenizer, 16, 1, rows=20)["input_ids"].max() < 20


def test_inputs_are_completed_by_the_models_names() -> None:
    encoded = {"input_ids": [[5, 6]], "attention_mask": [[1, 1]], "token_type_ids": [[0, 1]], "offsets": [[0, 1]]}
    assert {n: a.tolist() for n, a in complete(encoded, ["input_ids", "token_type_ids"]).items()} == {
        "input_ids": [[5, 6]],
        "token_type_ids": [[0, 1]],
    }
    made = complete({"input_ids": [[5, 6]]}, ["attention_mask", "token_type_ids", "position_ids"])
    assert [made[n].tolist() for n in made] == [[[1, 1]], [[0, 0]], [[0, 1]]]
    with pytest.raises(UserError, match="asks for the input bbox"):
        complete(encoded, ["input_ids", "bbox"])


def test_texts_of_one_length_share_a_batch() -> None:
    assert list(batches([3, 1, 3, 3, 1], 2)) == [[1, 4], [0, 2], [3]]
    assert list(batches([3, 1, 3], 1)) == [[1], [0], [2]]


def test_a_dynamic_int8_graph_answers_a_text_as_it_does_alone(tmp_path: Path, exported: Path) -> None:
    """Its activations' ranges are those of the whole batch: asked together, a text would get another answer."""
    from onnxruntime.quantization import quantize_dynamic

    assert not has_ranges_of_a_batch(exported / "model.onnx")
    folder = Path(shutil.copytree(exported, tmp_path / "dynamic"))
    quantize_dynamic(exported / "model.onnx", folder / "model.onnx")
    predictor = Predictor(folder, 1)
    assert predictor.alone
    texts = ["zinc nickel iron steel", "the river ocean lake", "apple of pear melon"]
    together = predictor.logits(texts, 32)
    assert np.array_equal(together, np.concatenate([predictor.logits([text], 32) for text in texts]))
    predictor.alone = False
    assert not np.array_equal(predictor.logits(texts, 32), together), "batches do make a difference"


def test_a_length_beyond_the_positions_is_one_line_with_both_numbers() -> None:
    require_positions({"model_type": "bert", "max_position_embeddings": 512}, "--task.max-length", 512, "base")
    with pytest.raises(UserError, match=r"^--task\.max-length 513: base has 512 positions"):
        require_positions(POSITIONS[1][0], "--task.max-length", 513, "base")


def test_a_token_beyond_the_embeddings_is_one_line(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = classifier(tmp_path / "bert", "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["unseen-word"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="cannot label a text"):
        Predictor(folder, 1).logits(["an unseen-word"], 32)


@pytest.mark.parametrize("option", ["--base", "--teacher"])
def test_plan_refuses_texts_longer_than_the_positions(option: str, tmp_path: Path) -> None:
    from hfcompress.cli import dispatch

    folder = str(classifier(tmp_path / "roberta", "roberta"))
    for verb in (["plan", "legal_bert"], ["run", "legal_bert", "--run-dir", str(tmp_path / "run")]):
        with pytest.raises(UserError, match=r"^--task\.max-length 66: .*roberta has 65 positions"):
            dispatch([*verb, option, folder, "--task.max-length", "66"])
    sizes = ["--distill.num-hidden-layers", "1", "--prune.num-attention-heads", "1", "--prune.intermediate-size", "8"]
    typed = ["--task.max-length", "65", "--measure.sequence-length", "66", *sizes]
    with pytest.raises(UserError, match=r"^--measure\.sequence-length 66: .* has 65 positions"):
        dispatch(["plan", "legal_bert", option, folder, *typed])


def test_a_default_length_is_what_the_model_has_positions_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfcompress.evaluation.measure import Measure
    from hfcompress.runs.positions import within_positions
    from hfcompress.tasks.text_classification import TextClassification

    options = {"base": str(classifier(tmp_path / "roberta", "roberta")), "task": TextClassification(),
               "measure": Measure(), "budget": None}  # fmt: skip
    found = within_positions(options, ["measure.sequence-length"])
    assert (found["task"].max_length, found["measure"]) == (64, options["measure"])
    assert capsys.readouterr().err == "hfcompress: --task.max-length: 64, all that roberta has positions for\n"
    assert within_positions(options | {"base": "org/name"}, []) == options | {"base": "org/name"}


def test_a_tokenizer_pads_where_the_models_positions_allow_it(tmp_path: Path) -> None:
    from hfcompress.architectures.models import load_tokenizer

    sides = {kind: load_tokenizer(classifier(tmp_path / kind, kind, side="left")).padding_side
             for kind in ("bert", "roberta", "gpt2", "xlnet", "deberta-v2")}  # fmt: skip
    assert sides == {"bert": "right", "roberta": "right", "gpt2": "right", "xlnet": "left", "deberta-v2": "left"}
    writer = tmp_path / "bert"
    config = json.loads((writer / "config.json").read_text()) | {"architectures": ["BertLMHeadModel"]}
    (writer / "config.json").write_text(json.dumps(config))
    assert load_tokenizer(writer).padding_side == "left", "it writes on at the right end"


def test_a_batch_is_not_padded_beyond_the_positions() -> None:
    from types import SimpleNamespace

    from hfcompress.training.trainer import padding_unit

    def unit(**fields: int) -> int | None:
        network: Any = SimpleNamespace(config=SimpleNamespace(**fields))
        return padding_unit(network)

    assert unit(max_position_embeddings=512) == 8
    assert unit(max_position_embeddings=60) is None, "60 tokens would be 64"
    assert unit() == 8


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "gpt2", "xlnet"])
def test_profile_times_a_request_that_the_model_takes(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfcompress.cli import dispatch

    folder = str(classifier(tmp_path / kind, kind))
    assert dispatch(["profile", folder, "--runs", "1"]) == 0
    tokens = {"xlnet": 128, "roberta": 65}.get(kind, 64)
    assert f"batch 1, length {tokens}, 1 thread" in capsys.readouterr().out
    if kind != "xlnet":
        with pytest.raises(UserError, match=r"^--sequence-length 66: .* positions"):
            dispatch(["profile", folder, "--sequence-length", "66"])


@pytest.mark.parametrize("kind", ["distilbert", "mpnet"])
def test_the_fresh_process_gives_a_model_what_it_takes(kind: str, tmp_path: Path) -> None:
    from hfcompress.formats.memory import serve_transformers

    assert serve_transformers(classifier(tmp_path / kind, kind), 16, 1)["load_ms"] > 0
