"""Pages of the documentation that mkdocs makes: the README, CONTRIBUTING, and the reference of Python and of the CLI.

A hook of mkdocs.yml. What is generated comes from the package itself, so that it cannot be older than it.
"""

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import TypeAdapter

from hfcompress import MODULES
from hfcompress.cli import dispatch
from hfcompress.report.schema import Report

ROOT = Path(__file__).parents[1]
ABOVE = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages above docs/, and where they stand on the site."""
REPORT_TYPES = ("Report", "ModelRow", "Accuracy", "Latency", "Prediction", "VerdictRow", "Environment")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {place: from_root(ROOT / name) for name, place in ABOVE.items()}
    pages |= {"reference/python.md": python_reference(), "reference/command_line.md": command_line_reference()}
    pages["reference/report.md"] = report_reference()
    for place, content in pages.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page of docs/ whose links to pages above docs/ lead to these on the site."""
    return re.sub(r"(\]\((?:\.\./)*)\.\./([A-Z]+\.md)", lambda m: m[1] + ABOVE[m[2]], markdown)


def from_root(page: Path) -> str:
    """Return a page that lies above docs/, with a title for the menu and the links that it has as a page in docs/."""
    markdown = re.sub(r"\]\(docs/", "](", page.read_text(encoding="utf-8"))
    markdown = re.sub(r"\]\(([A-Z]+\.md)", lambda m: f"]({ABOVE.get(m[1], m[1])}", markdown)
    return f"---\ntitle: {Path(ABOVE[page.name]).stem.capitalize()}\n---\n{markdown}"


def python_reference() -> str:
    """Return a page with every public name of `hfcompress` and its docstring."""
    parts = ["# Python", "`import hfcompress` loads a name when it is first used."]
    parts += [f"::: {module}.{name}" for module, names in MODULES.items() for name in names]
    return "\n\n".join(parts)


def command_line_reference() -> str:
    """Return a page with the help of every verb."""
    everything = help_of()
    listed = re.search(r"\{([\w,\n -]+)\}", everything)
    if listed is None:
        raise ValueError("hfcompress --help lists no verbs")
    parts = ["# Command line", fenced(everything)]
    for verb in re.findall(r"\w+", listed[1]):
        parts += [f"## {verb}", fenced(help_of(verb))]
    return "\n\n".join(parts)


def report_reference() -> str:
    """Return a page with the types of report.json and their JSON Schema."""
    schema = json.dumps(TypeAdapter(Report).json_schema(), indent=2)
    types = [f"::: hfcompress.report.schema.{name}" for name in REPORT_TYPES]
    return "\n\n".join(["# report.json", *types, "## JSON Schema", f"```json\n{schema}\n```"])


def help_of(*words: str) -> str:
    """Return what `hfcompress ... --help` prints."""
    os.environ["COLUMNS"] = "110"  # not as wide as the terminal that builds the pages
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        dispatch([*words, "--help"])
    return printed.getvalue()


def fenced(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"
