"""A model's chat template, filled: in a process that cannot take this one's time or memory (chat_render.py)."""

import json
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 10.0  # that a template may take; real ones take milliseconds
SYSTEM = "You are a helpful assistant."  # said only where a template wants a system message

Message = dict[str, Any]


class Endless(UserError):
    """A template that takes too much time or memory, whatever it is filled with."""


_process: subprocess.Popen[str] | None = None


def template_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the tokenizer's chat template; of several the one named default, or the only one.

    Raises:
        UserError: there are several, and none is the default.
    """
    found: Any = tokenizer.chat_template
    if not isinstance(found, dict):
        return None if not found else str(found)
    chosen = found.get("default", next(iter(found.values())) if len(found) == 1 else None)
    if chosen is None and found:
        raise UserError(
            f"the model has chat templates named {', '.join(sorted(found))} and none named default; save the one that "
            "is meant as its chat_template.jinja"
        )
    return None if chosen is None else str(chosen)


def render(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], **options: Any) -> str:
    """Return messages in the tokenizer's chat template, as `apply_chat_template(tokenize=False)` would.

    Args:
        options: variables of the template, such as add_generation_prompt.

    Raises:
        UserError: there is no template, or it cannot be filled with these messages.
    """
    template = template_of(tokenizer)
    if template is None:
        raise UserError("the model has no chat template")
    settings = {"tools": None, "documents": None, "add_generation_prompt": False}
    settings |= dict(tokenizer.special_tokens_map) | options
    answer = _ask({"template": template, "messages": messages, "options": settings})
    if "error" in answer:
        raise (Endless if answer.get("endless") else UserError)(
            f"the model's chat template cannot be filled ({answer['error']}); mend chat_template in its "
            "tokenizer_config.json or chat_template.jinja, or remove it"
        )
    return str(answer["text"])


def around(tokenizer: "PreTrainedTokenizerBase", text: str, mark: str, **options: Any) -> tuple[str, str]:
    """Return what a chat template puts before and behind `mark` in a user's `text`.

    Tried are the text alone, the text as a list of parts, and both behind a system message, as templates want them.

    Raises:
        UserError: the template can be filled in none of these ways, or leaves out what the user says.
    """
    refused: UserError | None = None
    for system in (False, True):
        for content in (text, [{"type": "text", "text": text}]):
            said: list[Message] = [{"role": "user", "content": content}]
            if system:
                first = SYSTEM if isinstance(content, str) else [{"type": "text", "text": SYSTEM}]
                said = [{"role": "system", "content": first}, *said]
            try:
                filled = render(tokenizer, said, **options)
            except Endless:
                raise
            except UserError as error:
                refused = refused or error
                continue
            if filled.count(mark) == 1 and "'type':" not in filled:
                head, _, tail = filled.partition(mark)
                return head, tail
    raise refused or UserError(
        "the model's chat template leaves out what the user says, or changes it; mend chat_template in its "
        "tokenizer_config.json, or remove it"
    )


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of the process that fills templates; it is started anew after one that did not come."""
    global _process
    if _process is None or _process.poll() is not None:
        script = Path(__file__).with_name("chat_render.py")
        _process = subprocess.Popen(
            [sys.executable, "-I", str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
        )  # fmt: skip
    assert _process.stdin is not None
    assert _process.stdout is not None
    try:
        _process.stdin.write(json.dumps(request) + "\n")
        _process.stdin.flush()
        ready, _, _ = select.select([_process.stdout], [], [], SECONDS)
        line = _process.stdout.readline() if ready else ""
    except OSError:
        line = ""
    if line:
        answer: dict[str, Any] = json.loads(line)
        return answer
    ended = _process.poll() is not None
    _process.kill()
    _process.wait()
    _process = None
    reason = "it takes too much memory" if ended else f"it takes more than {SECONDS:.0f} seconds"
    return {"error": reason, "endless": True}
