"""measure_clicks: all click models of a run side by side: AUC, clicks earned, calibration, latency, memory, size."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures.click_inputs import inputs_of
from hfcompress.errors import UserError, require, require_numbers, require_threads
from hfcompress.evaluation import latency
from hfcompress.evaluation.again import Again
from hfcompress.evaluation.latency import interleaved, percentiles
from hfcompress.evaluation.measure import model_row
from hfcompress.evaluation.metrics.auc import placements
from hfcompress.folders.record import write_json
from hfcompress.formats.runtimes.click_predictor import ClickPredictor
from hfcompress.stage import GRAPHS
from hfcompress.tasks.tabular_classification import GENERATED, Clicks

if TYPE_CHECKING:
    from hfcompress.architectures.click_spec import ClickShape
    from hfcompress.evaluation.clicks import Judged
    from hfcompress.tasks.click_log import ClickLog

BASELINE = "item-rates"


@dataclass(frozen=True)
class MeasureClicks:
    """How models are measured; the same for all of them."""

    threads: int = 1
    """Threads of the timed runtimes."""
    runs: int = 200
    """Timed requests a model; a request is a slate."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*GRAPHS, "scikit-learn", "scipy")

    def __post_init__(self) -> None:
        require_numbers(self)
        require_threads(self)
        require(self, 1, "runs")

    def __call__(
        self, out: Path, *, models: dict[str, Path], task: Clicks, reference: str, confidence: float
    ) -> dict[str, Any]:
        """Write measurements.json into `out`."""
        from hfcompress.evaluation import clicks
        from hfcompress.formats.memory import fresh_process

        log = task.data.logs["test"]
        if not 0 < int(log.click.sum()) < len(log):
            raise UserError("the test split has no click, or nothing but clicks: nothing can be measured on it")
        judged = {}
        for name, folder in models.items():
            print(f"  test split: {name}", file=sys.stderr, flush=True)
            judged[name] = judged_of(ClickPredictor(folder).judge(log), log)
        predictors = {name: ClickPredictor(folder, self.threads) for name, folder in models.items()}
        timed, probes = self._latency(predictors, log, task)
        del predictors
        baseline, judged[BASELINE] = baseline_of(task, log)
        rows = [
            model_row(name, folder, fresh_process(folder, len_of_slate(log), self.threads))
            | {"latency_ms": timed[name]}
            for name, folder in models.items()
        ]
        rows.append(baseline)
        for row in rows:
            row["accuracy"] = accuracy(clicks.summary(judged[row["name"]]), len(log))
        write_json(
            out / "measurements.json",
            {
                "task": task.name,
                "n": len(log),
                "requests": len(judged[reference].chosen),
                "groups": len(set(log.user.tolist())),
                "reference": reference,
                "models": rows,
                "differences": {
                    name: {m: asdict(d) for m, d in clicks.differences(judged[reference], one, confidence).items()}
                    for name, one in judged.items()
                    if name != reference
                },
                "truth": truth(task, log),
                "cold": cold(judged, log, task),
                "probe": probes,
            },
        )
        return {"probe": probes, "rows": len(log)}

    @staticmethod
    def again(model: Path, row: dict[str, Any], task: Clicks, *, runs: int, resamples: int) -> Again:
        """Measure one model once more, in its runtime; intervals need no draws. See `Measuring.again`."""
        from functools import partial

        from hfcompress.evaluation.clicks import summary

        log, claimed = task.data.logs["test"], row["latency_ms"]
        every = summary(judged_of(ClickPredictor(model).judge(log), log))
        slate = inputs_of(log.rows(slice(0, claimed["batch"])))
        timed = partial(ClickPredictor(model, claimed["threads"]).run, slate)
        found = percentiles(interleaved({"candidate": timed}, runs)["candidate"])["p50"]
        asked = f"p50 latency, {claimed['batch']} items"
        return Again(f"{len(log):,} rows", every, asked, claimed["p50"], found)

    def predict(self, **inputs: Any) -> "ClickShape":
        raise TypeError("MeasureClicks makes no model")

    def _latency(self, predictors: dict[str, Any], log: "ClickLog", task: Clicks) -> tuple[dict[str, Any], Any]:
        """Milliseconds a slate, models interleaved."""
        from functools import partial

        slate = inputs_of(log.rows(slice(0, len_of_slate(log))))
        times, probes = latency.side_by_side({n: partial(p.run, slate) for n, p in predictors.items()}, self.runs)
        return {
            name: latency.describe(
                times[name],
                batch=len(slate["dense"]),
                sequence_length=None,
                threads=self.threads,
                runtime=predictor.runtime,
            )
            for name, predictor in predictors.items()
        }, probes


def judged_of(logits: Any, log: "ClickLog") -> "Judged":
    from hfcompress.evaluation.clicks import Judged

    return Judged(logits[:, 0], logits[:, 1], log.click, log.conversion, log.request, log.user)


def len_of_slate(log: "ClickLog") -> int:
    """Rows of the first request."""
    return int((log.request == log.request[0]).sum())


def accuracy(summary: dict[str, Any], n: int) -> dict[str, Any]:
    """report.json's `accuracy` of a click model."""
    return {"metric": "auc", "value": summary["auc"], "ci95": summary["ci95"]["auc"], "n": n, "all": summary}


def truth(task: Clicks, log: "ClickLog") -> dict[str, float] | None:
    """What a model that knew the generated log's truth would reach; None of a log from elsewhere."""
    from hfcompress.evaluation import clicks

    if task.dataset != GENERATED:
        return None
    score = task.world.probability(log)
    judged = clicks.Judged(score, score, log.click, log.conversion, log.request, log.user)
    return {name: judged.value(name) for name in ("auc", "ctr")}


def cold(judged: "dict[str, Judged]", log: "ClickLog", task: Clicks) -> dict[str, Any]:
    """AUC of the rows whose item or user training never saw."""
    data = task.data
    unseen = (log.item >= data.rows["item"]) | (log.user >= data.rows["user"])
    if not 0 < int(log.click[unseen].sum()) < int(unseen.sum()):
        return {"rows": int(unseen.sum()), "auc": {}}
    return {
        "rows": int(unseen.sum()),
        "auc": {name: placements(one.score[unseen], log.click[unseen])[0] for name, one in judged.items()},
    }


def baseline_of(task: Clicks, log: "ClickLog") -> "tuple[dict[str, Any], Judged]":
    """One number an item: how often it was clicked."""
    import numpy as np

    from hfcompress.evaluation.item_rates import item_rates, rate_scores

    train, rows = task.data.logs["train"], task.data.rows["item"]
    clicked, bought = item_rates(train.item, train.click, rows), item_rates(train.item, train.conversion, rows)
    slate = log.item[: len_of_slate(log)]
    times = latency.interleaved({BASELINE: lambda: rate_scores(clicked, slate)}, 20)[BASELINE]
    size = clicked.nbytes + bought.nbytes
    row = {
        "name": BASELINE,
        "format": "baseline",
        "parameters": size // 4,
        "bytes": size,
        "bits_per_parameter": 32,
        "dtypes": {"float32": size},
        "peak_rss_mb": None,
        "bare_rss_mb": None,
        "load_ms": None,
        "latency_ms": latency.describe(times, batch=len(slate), sequence_length=None, threads=1, runtime="numpy"),
    }
    scores = np.stack([rate_scores(clicked, log.item), rate_scores(bought, log.item)], axis=1)
    return row, judged_of(scores, log)
