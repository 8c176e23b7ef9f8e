"""measure: all models of a run side by side, in one go: accuracy, differences, flips, latency, memory, size."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.errors import UserError, require, require_numbers, require_threads
from hfcompress.evaluation import latency
from hfcompress.evaluation.again import Again
from hfcompress.evaluation.latency import interleaved, percentiles
from hfcompress.folders.record import write_json
from hfcompress.formats import format_of
from hfcompress.formats.runtimes.predictor import open_predictor
from hfcompress.formats.size import embedding_bytes
from hfcompress.stage import GRAPHS

if TYPE_CHECKING:
    import numpy as np

    from hfcompress.tasks.linear import Baseline
    from hfcompress.tasks.task import Labelled

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Measuring:
    """How classifiers are measured; the same for all of a run."""

    batch: int = 1
    """Examples of the request that is timed."""
    threads: int = 1
    """Threads of the timed runtimes. One is what a server gives a request, and what a shared machine times fairly."""
    runs: int = 60
    """Timed requests a model."""
    resamples: int = 4000
    """Draws of the bootstrap."""
    seed: int = 0

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*GRAPHS, "scikit-learn", "scipy")
    back_to_back: ClassVar[bool] = False
    """See `latency.interleaved`."""

    def __post_init__(self) -> None:
        require_numbers(self)
        require_threads(self)
        require(self, 1, "batch", "runs")
        require(self, 2, "resamples")

    @property
    def tokens(self) -> int | None:
        """Tokens of the request that is timed; None where a request has none."""
        return None

    def __call__(
        self, out: Path, *, models: dict[str, Path], task: "Labelled", reference: str, confidence: float
    ) -> dict[str, Any]:
        """Write measurements.json and predictions.npz (logits of every model on the test split) into `out`."""
        import numpy as np

        from hfcompress.evaluation import classification
        from hfcompress.formats.memory import fresh_process

        data = task.data
        timed, probes = self._latency(models)
        logits = {name: self._logits(name, folder, task) for name, folder in models.items()}
        names, groups, labels = data.labels, data.groups("test"), task.truth("test")
        rows = [
            model_row(name, folder, fresh_process(folder, self.tokens or self.batch, self.threads))
            for name, folder in models.items()
        ]
        linear = task.baseline()
        if linear is not None:
            row, logits[linear.name], timed[linear.name] = self._beside(linear, data.inputs("test"))
            rows.append(row)
        classes = names if task.classes else []
        draws: dict[str, Any] = {"names": classes, "resamples": self.resamples, "seed": self.seed}
        for row in rows:
            name = row["name"]
            row["latency_ms"] = timed[name]
            row["accuracy"] = classification.accuracy_of(
                logits[name], labels, metric=task.metric, metrics=task.metrics, groups=groups, **draws
            )
        if linear is not None:
            rows[-1]["accuracy"]["all"] |= dict.fromkeys(linear.without)
        arrays: dict[str, Any] = {"labels": labels, "groups": np.array(groups), **logits}
        np.savez_compressed(out / "predictions.npz", **arrays)
        chosen = {name: logits[name] for name in models}  # without the baseline
        found = {
            "task": task.name,
            "labels": names,
            "n": len(labels),
            "groups": len(set(groups)),
            "skipped": getattr(data, "skipped", {}),
            "reference": reference,
            "models": rows,
            "differences": classification.differences(
                logits, labels, groups, reference, drops=task.drops, confidence=confidence, **draws
            ),
            "flips": classification.all_flips(chosen, reference, labels, names, groups, task.excerpts("test"))
            if task.classes
            else {},
            "probe": probes,
        }
        write_json(out / "measurements.json", found)
        return {"probe": probes, task.unit: len(labels)}

    def predict(self, **inputs: Any) -> Shape:
        raise TypeError(f"{type(self).__name__} makes no model")

    def _latency(self, models: dict[str, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Milliseconds a request, models interleaved; and the machine before and after."""
        from functools import partial

        predictors = {name: open_predictor(folder, self.threads) for name, folder in models.items()}
        requests: dict[str, Any] = {
            n: partial(p.run, p.request(self.tokens, self.batch)) for n, p in predictors.items()
        }
        times, probes = latency.side_by_side(requests, self.runs, back_to_back=self.back_to_back)
        return {
            name: latency.describe(
                times[name],
                batch=self.batch,
                sequence_length=self.tokens,
                threads=self.threads,
                runtime=predictor.runtime,
            )
            for name, predictor in predictors.items()
        }, probes

    def _logits(self, name: str, folder: Path, task: "Labelled") -> "Array":
        """Logits on the test split, with all cores: nothing is timed here."""
        print(f"  test split: {name}", file=sys.stderr, flush=True)
        logits: Array = open_predictor(folder).logits(task.data.inputs("test"), task.max_length)
        return logits

    def _beside(self, linear: "Baseline", inputs: Any) -> "tuple[dict[str, Any], Array, dict[str, Any]]":
        """The baseline's row, answers and time, on the same examples, whole ones."""
        parameters, size = linear.size()
        times = latency.interleaved({linear.name: lambda: linear.outputs(inputs[:1])}, self.runs)[linear.name]
        row = {
            "name": linear.name,
            "format": "baseline",
            "parameters": parameters,
            "bytes": size,
            "bits_per_parameter": round(8 * size / parameters, 2),
            "dtypes": {"float32": 4 * parameters},
            "peak_rss_mb": None,
            "bare_rss_mb": None,
            "load_ms": None,
        }
        timed = latency.describe(times, batch=1, sequence_length=None, threads=1, runtime=linear.runtime)
        return row, linear.outputs(inputs), timed

    @staticmethod
    def again(model: Path, row: dict[str, Any], task: "Labelled", *, runs: int, resamples: int) -> Again:
        """Measure one model once more.

        Args:
            row: what report.json says of it.

        Raises:
            UserError: the data has other labels than the model.
        """
        from functools import partial

        from hfcompress.evaluation.intervals import scored

        predictor, data, claimed = open_predictor(model), task.data, row["latency_ms"]
        if list(predictor.labels) != data.labels:
            raise UserError(f"the model answers {', '.join(predictor.labels)}; the data has {', '.join(data.labels)}")
        logits, truth = predictor.logits(data.inputs("test"), task.max_length), task.truth("test")
        groups, names = data.groups("test"), data.labels if task.classes else []
        every = scored(logits, truth, names, groups, resamples=resamples, seed=0, metrics=task.metrics)
        timed, batch, tokens = open_predictor(model, claimed["threads"]), claimed["batch"], claimed["sequence_length"]
        times = interleaved({"candidate": partial(timed.run, timed.request(tokens, batch))}, runs)["candidate"]
        asked = f"{batch} {task.unit}" if tokens is None else f"{tokens} tokens"
        return Again(
            f"{len(logits):,} {task.unit}",
            every,
            f"p50 latency, {asked}",
            claimed["p50"],
            percentiles(times)["p50"],
            outputs=logits,
        )


@dataclass(frozen=True)
class Measure(Measuring):
    """How text classifiers are measured; the same for all of them."""

    sequence_length: int = 128
    """Tokens of the request that is timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, 1, "sequence_length")

    @property
    def tokens(self) -> int:
        return self.sequence_length


def model_row(name: str, folder: Path, memory: dict[str, float]) -> dict[str, Any]:
    """The part of a report's model that its files and a process of its own (`memory.fresh_process`) tell."""
    form = format_of(folder)
    found = form.size(folder)
    return {
        "name": name,
        "format": form.word,
        "parameters": found["parameters"],
        "bytes": found["bytes"],
        "bits_per_parameter": round(8 * sum(found["dtypes"].values()) / found["parameters"], 2),
        "dtypes": found["dtypes"],
        "embedding_bytes": embedding_bytes(folder),
        **memory,
    }
