"""The pages beside this file as jinja templates: whatever a report names is escaped."""

from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from hfcompress.folders.escaping import terminal
from hfcompress.report import console


def template(name: str) -> jinja2.Template:
    """Return a page beside this file; a name that it is not given is an error."""
    return pages().get_template(name)


@cache
def pages() -> jinja2.Environment:
    """Return what compiles the pages, each once: it takes longer than to fill one."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else terminal(value),
    )
    environment.filters["number"] = console.number
    environment.globals |= {"sentence": console.sentence, "outcome": console.outcome}
    return environment
