"""The pages beside this file as jinja templates: whatever a report names is escaped."""

from pathlib import Path

import jinja2
from markupsafe import Markup

from hfcompress.folders.escaping import terminal
from hfcompress.report import console


def template(name: str) -> jinja2.Template:
    """A page beside this file; a name that it is not given is an error."""
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
    return environment.get_template(name)
