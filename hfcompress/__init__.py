"""State a budget, run a recipe, get a small Hugging Face model and a report that proves or refuses the budget."""

from hfcompress.budget import Budget, Verdict
from hfcompress.errors import UserError
from hfcompress.record import Record
from hfcompress.run import Run
from hfcompress.stage import Artifact, Stage
from hfcompress.surgery import load

__all__ = ["Artifact", "Budget", "Record", "Run", "Stage", "UserError", "Verdict", "load"]
