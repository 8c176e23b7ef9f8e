"""report, check, push, verify and env: what one does with a finished run."""

import json
import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from hfcompress import api
from hfcompress.cli.common import FAILED, quiet
from hfcompress.folders.escaping import one_line
from hfcompress.folders.inside import inside
from hfcompress.folders.record import read_json, write_json


def report(run: Positional[Path]) -> int:
    """Render report.json, report.html and the model card of a run again from its records, and print the table."""
    from hfcompress.report.console import table
    from hfcompress.report.pages import write_pages
    from hfcompress.runs.comparison import CLAIM, COMPARISON, Comparison, disagreement, proven
    from hfcompress.tasks import measured_task

    found = read_json(inside(run, "report.json"), "recipe", "scale", "models", "verdicts", "notes", "ok")
    details = read_json(inside(run, "details.json"), "records", "reference", "base", "deliver")
    if (run / COMPARISON).is_file():
        claimed, found = found, proven(run)
        if said := disagreement(run, claimed, found):
            print(one_line(f"{run}: {said}: written again"), file=sys.stderr)
        write_json(run / "report.json", found)
        details |= Comparison.read(run).measurements(run)
    else:
        print(f"{run}: no {COMPARISON}: what is rendered is {CLAIM}", file=sys.stderr)
    found.setdefault("task", measured_task(details).name)  # of an older version
    write_pages(run, found, details)
    print(table(found))
    print(f"report: {run / 'report.html'}", file=sys.stderr)
    return 0


def check(run: Positional[Path]) -> int:
    """Exit 0 only if every verdict of a run holds, and its files are those that were measured.

    The verdicts are computed again from what the stages recorded: a report.json that says otherwise is named, and the
    exit code is 1.
    """
    found = api.check(run)
    for line in found.lines:
        print(line)
    if said := found.disagreement:
        print(one_line(f"hfcompress: {run}: {said}; hfcompress report {run} writes it again"), file=sys.stderr)
    return 0 if found.ok else FAILED


def push(
    run: Positional[Path],
    hub_model_id: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    allow_failed: bool = False,
    license: str | None = None,
) -> int:
    """Upload a run's models to the Hub, with the evidence.

    Args:
        run: the folder of a run.
        hub_model_id: where to: org/name.
        private: make the repository private, if it is made now.
        revision: the branch to push to [main].
        create_pr: open a pull request instead of pushing.
        dry_run: print what would be uploaded, and the card; upload nothing.
        allow_failed: push although the budget does not hold; the card says so first.
        license: of the result, where the base model names none.
    """
    if dry_run:
        from hfcompress.hub.release import release

        found = release(run, hub_model_id, license, allow_failed=allow_failed)
        for place, size in found.sizes().items():
            print(f"{size:>12,}  {place}")
        print(f"{sum(found.sizes().values()):>12,}  in all\n\n{found.rendered['README.md'].decode()}")
        return 0
    place = api.push(
        run,
        hub_model_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        allow_failed=allow_failed,
        license=license,
    )
    print(place)
    return 0


def verify(
    model: Positional[str],
    data: str | None = None,
    recipe: str | None = None,
    format: Literal["text", "json"] = "text",
) -> int:
    """Fetch a pushed model and prove its evidence again: exit 1 when a file or a figure is not what is claimed.

    Args:
        model: org/name, org/name@revision, or a folder that holds such a repository.
        data: other data for the accuracy, as --task.dataset takes it [what the run was measured on].
        recipe: the .py file of the recipe, where it is none that is installed; it is executed.
        format: text (a line a claim) or json.
    """
    quiet()
    claims = api.verify(model, data=data, recipe=recipe)
    print(json.dumps([vars(c) for c in claims], indent=1) if format == "json" else "\n".join(map(str, claims)))
    return FAILED if any(claim.ok is False for claim in claims) else 0


def env() -> int:
    """Print versions, processor, threads and GPU: what to add to a bug report."""
    from hfcompress.folders.record import environment

    print(json.dumps(environment(), indent=1))
    return 0
