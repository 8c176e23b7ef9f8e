"""Chat templates as models bring them: filled, or refused in one line; none takes this process's time or memory."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from hfcompress.architectures.models import load_tokenizer
from hfcompress.errors import UserError
from hfcompress.evaluation import chat
from hfcompress.evaluation.chat import around, render
from hfcompress.evaluation.long_documents import Frame
from tests.language_models import write_llama

MARK = "@@text@@"
EACH = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
PART = "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}"
FILLED: dict[str, tuple[Any, tuple[str, str]]] = {
    "text": (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ("<s><|user|>say ", "<|assistant|>"),
    ),
    "parts": ("{% for m in messages %}<" + PART + ">{% endfor %}", ("<say ", ">")),
    "a system message": (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}" + EACH,
        (f"{chat.SYSTEM}say ", ""),
    ),
    "parts and a system message": (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}"
        "{% for m in messages %}" + PART + "{% endfor %}",
        (f"{chat.SYSTEM}say ", ""),
    ),
    "no system message": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + EACH, ("say ", "")
    ),
    "generation": ("{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}",
                   ("say ", "")),
    "the default of several": ({"default": EACH, "tool_use": "x"}, ("say ", "")),
    "the only one": ({"chat": EACH}, ("say ", "")),
    "loop controls": ("{% for m in messages %}{{ m['content'] }}{% break %}{% endfor %}", ("say ", "")),
}  # fmt: skip
REFUSED: dict[str, tuple[Any, str]] = {
    "several without a default": ({"rag": "x", "tool_use": "x"}, "named rag, tool_use and none named default"),
    "broken": ("{% for m in messages %}{{ m['content'] ", "cannot be filled (unexpected end of template"),
    "always raises": ("{{ raise_exception('tools only') }}", "cannot be filled (tools only)"),
    "leaves it out": ("hello", "leaves out what the user says"),
    "shouts": ("{{ messages[-1]['content'] | upper }}", "leaves out what the user says, or changes it"),
    "twice": (EACH + EACH, "leaves out what the user says, or changes it"),
    "endless": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + EACH, "2 seconds"),
    "a power": ("{{ 10 ** (10 ** 10) }}" + EACH, "2 seconds"),
    "gigabytes": ("{{ 'a' * 10 ** 10 }}" + EACH, "more than a gigabyte of memory"),
    "a wide field": ("{{ '%10000000000d' % 1 }}" + EACH, "more than a gigabyte of memory"),
    "long": ("{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaa{% endfor %}" + EACH, "adds more than 1,048,576"),
    "classes": ("{{ messages.__class__.__mro__[1].__subclasses__() }}" + EACH, "is unsafe"),
    "globals": ("{{ cycler.__init__.__globals__.os.system('true') }}" + EACH, "is unsafe"),
    "nested": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
}


def with_template(template: Any) -> Any:
    return SimpleNamespace(chat_template=template, special_tokens_map={"bos_token": "<s>"})


@pytest.mark.parametrize("name", FILLED)
def test_a_template_is_filled(name: str) -> None:
    template, wanted = FILLED[name]
    assert around(with_template(template), f"say {MARK}", MARK, add_generation_prompt=True) == wanted


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_is_refused_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template, words = REFUSED[name]
    monkeypatch.setattr(chat, "SECONDS", 2.0)
    with pytest.raises(UserError) as refusal:
        around(with_template(template), f"say {MARK}", MARK)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_after_an_endless_template_another_one_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "SECONDS", 1.0)
    with pytest.raises(UserError, match="1 seconds"):
        render(with_template("{{ 10 ** (10 ** 10) }}"), [])
    monkeypatch.undo()
    assert render(with_template("{{ messages | tojson }}"), [{"role": "é"}]) == '[{"role": "é"}]'


@pytest.mark.parametrize("name", ["text", "generation", "loop controls"])
def test_it_is_what_transformers_writes(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_llama(tmp_path / "model"))
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.chat_template = FILLED[name][0] + "\n{%- if tools is none %}\n   {{ 'none' }}\n{%- endif %}\n"
    said = [{"role": "user", "content": "one\ntwo"}]
    for prompt in (True, False):
        wanted = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=prompt)
        assert render(tokenizer, said, add_generation_prompt=prompt) == wanted


def test_a_frame_needs_a_template_that_can_be_filled(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_llama(tmp_path / "model"))
    tokenizer.chat_template = FILLED["parts"][0]
    assert tokenizer.decode(Frame.of(tokenizer).tail) == ">"
    tokenizer.chat_template = REFUSED["broken"][0]
    with pytest.raises(UserError, match="cannot be filled"):
        Frame.of(tokenizer)
