"""What a run has given, as Python sees it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError
from hfcompress.folders.inside import inside
from hfcompress.folders.record import read_json
from hfcompress.report.console import candidate_row, table, verdict_lines
from hfcompress.runs.comparison import disagreement, intact_models, proven


@dataclass(frozen=True)
class Result:
    """A finished run: whether its budget holds, and the model that was held against it. `print` gives the table."""

    folder: Path
    report: dict[str, Any]
    """report.json's object."""

    @property
    def ok(self) -> bool:
        """Whether every limit of the budget is shown to hold."""
        return bool(self.report["ok"])

    @property
    def table(self) -> str:
        """The models, a line each, and the verdicts: what the command line prints."""
        return table(self.report)

    @property
    def model(self) -> Path:
        """The folder of the model that the verdicts are about.

        Raises:
            UserError: the run has no verdict, or has kept no such model.
        """
        row = candidate_row(self.report)
        if row["path"] is None:
            raise UserError(f"{self.folder}: {row['name']} is not a model of its own that a run keeps")
        return inside(self.folder, row["path"], "report.json")

    @property
    def models(self) -> list[dict[str, Any]]:
        """The measured models, as in report.json."""
        return list(self.report["models"])

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """A row for every limit of the budget, as in report.json."""
        return list(self.report["verdicts"])

    def __str__(self) -> str:
        return self.table


@dataclass(frozen=True)
class Checked:
    """The verdicts of a run, computed again from what its stages recorded."""

    folder: Path
    report: dict[str, Any]
    disagreement: str | None
    """In what the run's report.json says otherwise; None where it does not."""

    @property
    def ok(self) -> bool:
        """Whether every limit holds and report.json says the same."""
        return self.disagreement is None and bool(self.report["ok"])

    @property
    def lines(self) -> list[str]:
        """A sentence for every limit."""
        return verdict_lines(self.report)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def checked(run: Path) -> Checked:
    """Compute the verdicts of a run again and compare its files with those that were measured.

    Raises:
        UserError: it is no finished run, or a file of a model is not the one that was measured.
    """
    claimed = read_json(inside(run, "report.json"), "models", "verdicts")
    found = proven(run)
    intact_models(run, found)
    return Checked(run, dict(found), disagreement(run, claimed, found))
