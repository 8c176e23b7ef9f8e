"""What a config.json is of is asked in one place, and every row of the tables of architectures answers it."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from hfcompress.architectures import DECODERS, ENCODERS, IMAGE_MODELS
from hfcompress.architectures.kinds import (
    classifies_texts,
    is_causal_lm,
    is_click_model,
    is_decoder,
    is_image_folder,
    is_image_model,
    writes_text,
)

PACKAGE = Path(__file__).parents[2] / "hfcompress"
TESTS = (is_click_model, is_image_model, is_decoder, is_causal_lm)
CASES: list[tuple[dict[str, Any], set[Any]]] = [
    *(({"model_type": kind, "vocab_size": 9}, set()) for kind in ENCODERS),
    *(({"model_type": kind}, {is_image_model}) for kind in IMAGE_MODELS),
    *(({"model_type": kind, "vocab_size": 9}, {is_decoder}) for kind in DECODERS),
    *(({"model_type": k, "architectures": [d.class_name]}, {is_decoder, is_causal_lm}) for k, d in DECODERS.items()),
    ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, {is_decoder}),
    ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 9}, {is_decoder, is_causal_lm}),
    ({"model_type": "clicks", "architectures": ["ClickModel"]}, {is_click_model}),
    ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, {is_image_model}),
    # transformers gives a BEiT a vocabulary, of the tokens that it was trained to see behind masks.
    ({"model_type": "beit", "architectures": ["BeitForImageClassification"], "vocab_size": 8192}, {is_image_model}),
    ({"model_type": "perceiver", "architectures": ["PerceiverForSequenceClassification"], "vocab_size": 262}, set()),
    ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 9}, set()),
    ({"model_type": "not-known", "architectures": None}, set()),
    ({}, set()),
]


def case_name(value: object) -> str:
    """An id without a function's address, which is another in each process."""
    return str(value)[:60] if isinstance(value, dict) else ""


@pytest.mark.parametrize(("config", "kinds"), CASES, ids=case_name)
def test_a_config_is_of_these_kinds(config: dict[str, Any], kinds: set[Any]) -> None:
    assert {test for test in TESTS if test(config)} == kinds


def test_a_folder_is_asked_by_its_config(tmp_path: Path) -> None:
    assert not is_image_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mobilenet_v2"}))
    assert is_image_folder(tmp_path)


def test_the_head_says_what_a_model_is_asked() -> None:
    assert writes_text({"architectures": ["T5ForConditionalGeneration"]})
    assert writes_text({"architectures": ["GPTNeoXForCausalLM"]})
    assert not writes_text({"architectures": ["LlamaForSequenceClassification"]})
    assert classifies_texts({"architectures": ["LlamaForSequenceClassification"]})
    assert not classifies_texts({"architectures": ["BertForMaskedLM"]})


def own_tests(source: str) -> list[str]:
    """Comparisons of a model type, or of the ends of class names, with names that are written there."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            names = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
            asked = "model_type" in names or any(
                isinstance(n, ast.Attribute) and n.attr == "model_type" for n in ast.walk(node)
            )
            written = [side for side in (node.left, *node.comparators) if is_written(side)]
            found += [ast.unparse(node)] if asked and written else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "endswith":
            ends = [str(n.value) for n in ast.walk(node) if isinstance(n, ast.Constant)]
            found += (
                [ast.unparse(node)] if any(end.endswith(("LM", "ForSequenceClassification")) for end in ends) else []
            )
    return found


def is_written(side: ast.expr) -> bool:
    """Whether one side of a comparison is names in the code: a text, or a literal of some."""
    if isinstance(side, ast.Tuple | ast.List | ast.Set):
        return any(is_written(part) for part in side.elts)
    return isinstance(side, ast.Constant) and isinstance(side.value, str) and side.value != "model_type"


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_no_file_asks_for_an_architecture_by_its_name(file: Path) -> None:
    assert own_tests(file.read_text(encoding="utf-8")) == []


def test_a_question_beside_the_tables_is_seen() -> None:
    assert own_tests('x = config.get("model_type") == "bert"')
    assert own_tests('x = network.config.model_type in ("bert", "roberta")')
    assert own_tests('x = name.endswith(("ForCausalLM", "LMHeadModel"))')
    assert not own_tests('x = config.get("model_type") in DECODERS')
    assert not own_tests('x = key == "model_type" and value == 3')
