"""Fill chat templates in a process of its own, with limits on its memory and time: run as a script by chat.py.

Reads a JSON object a line ({"template", "messages", "options"}) and answers each with one ({"text"} or {"error"}). The
environment is transformers' own (utils/chat_template_utils.py): jinja's immutable sandbox, with its extensions,
filters and functions. A sandbox keeps a template from the machine, but not from loops without end or a gigabyte of
text; the limits are set here, where nothing else would be lost with them.
"""

import json
import resource
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 30  # bytes of address space
LONGEST = 1 << 20  # characters that a template may add to the messages


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: what is inside, as it is."""

    tags = {"generation"}  # noqa: RUF012  (jinja's own form)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


def environment() -> ImmutableSandboxedEnvironment:
    """Return what transformers fills chat templates in."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    return made


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def filled(template: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """Return a template's text for some messages.

    Raises:
        ValueError: it becomes too long.
    """
    room, parts = LONGEST + len(json.dumps(messages)), []
    for part in environment().from_string(template).generate(messages=messages, **options):
        room -= len(part)
        if room < 0:
            raise ValueError(f"it adds more than {LONGEST:,} characters")
        parts.append(part)
    return "".join(parts)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"text": filled(request["template"], request["messages"], request["options"])}
        except MemoryError:
            answer = {"error": "it takes more than a gigabyte of memory"}
        except RecursionError:
            answer = {"error": "it is nested too deeply"}
        except Exception as error:  # a template can raise whatever Python's operators and methods do
            answer = {"error": " ".join(str(error).split())[:200] or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
