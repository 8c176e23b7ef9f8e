"""measure: all models of a run side by side, in one go: accuracy, differences, flips, latency, memory, size."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.errors import require, require_numbers, require_threads
from hfcompress.stage import GRAPHS

if TYPE_CHECKING:
    import numpy as np

    from hfcompress.formats.runtimes.predictor import Predictor
    from hfcompress.tasks.text_classification import TextClassification, TextData

BASELINE = "tfidf-svm"
EXCERPT = 160


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

    def __post_init__(self) -> None:
        require_numbers(self)
        require_threads(self)
        require(self, 1, "batch", "runs")
        require(self, 2, "resamples")

    def predict(self, **inputs: Any) -> Shape:
        raise TypeError(f"{type(self).__name__} makes no model")


@dataclass(frozen=True)
class Measure(Measuring):
    """How text classifiers are measured; the same for all of them."""

    sequence_length: int = 128
    """Tokens of the request that is timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, 1, "sequence_length")

    def __call__(
        self, out: Path, *, models: dict[str, Path], task: "TextClassification", reference: str, confidence: float
    ) -> dict[str, Any]:
        """Write measurements.json and predictions.npz (logits of every model on the test split) into `out`."""
        import numpy as np

        from hfcompress.evaluation import classification
        from hfcompress.folders.record import write_json
        from hfcompress.formats.memory import fresh_process
        from hfcompress.formats.runtimes.predictor import Predictor

        data = task.data
        predictors = {name: Predictor(folder, self.threads) for name, folder in models.items()}
        timed, probes = self._latency(predictors, data)
        del predictors
        logits = {name: self._logits(name, folder, task) for name, folder in models.items()}
        baseline_row, logits[BASELINE], timed[BASELINE] = self._baseline(data)
        names, groups, labels = data.labels, data.groups("test"), np.array(data.label_ids("test"))
        draws: dict[str, Any] = {"names": names, "resamples": self.resamples, "seed": self.seed}
        confusions = classification.confusions(logits, labels, groups, len(names))
        rows = [
            model_row(name, folder, fresh_process(folder, self.sequence_length, self.threads))
            for name, folder in models.items()
        ] + [baseline_row]
        for row in rows:
            name = row["name"]
            row["accuracy"] = classification.accuracy_of(
                logits[name], labels, metric=task.metric, groups=groups, **draws
            )
            row["latency_ms"] = timed[name]
        baseline_row["accuracy"]["all"]["ece"] = None  # a linear SVM's decision values are no probabilities
        arrays: dict[str, Any] = {"labels": labels, "groups": np.array(groups), **logits}
        np.savez_compressed(out / "predictions.npz", **arrays)
        excerpts = [text[:EXCERPT] for text in data.texts("test")]
        chosen = {name: logits[name] for name in models}  # without the baseline
        write_json(
            out / "measurements.json",
            {
                "labels": names,
                "n": len(labels),
                "groups": len(set(groups)),
                "reference": reference,
                "models": rows,
                "differences": classification.differences(confusions, reference, confidence=confidence, **draws),
                "flips": classification.all_flips(chosen, reference, labels, names, groups, excerpts),
                "probe": probes,
            },
        )
        return {"probe": probes, "texts": len(labels)}

    def _logits(self, name: str, folder: Path, task: "TextClassification") -> "np.ndarray[Any, Any]":
        """Logits on the test split, with all cores: nothing is timed here."""
        from hfcompress.formats.runtimes.predictor import Predictor

        print(f"  test split: {name}", file=sys.stderr, flush=True)
        return Predictor(folder).logits(task.data.texts("test"), task.max_length)

    def _latency(self, predictors: "dict[str, Predictor]", data: "TextData") -> tuple[dict[str, Any], dict[str, Any]]:
        from functools import partial

        from hfcompress.evaluation import latency

        threads = self.threads
        requests: dict[str, Any] = {
            n: partial(p.run, p.request(self.sequence_length, self.batch)) for n, p in predictors.items()
        }
        times, probes = latency.side_by_side(requests, self.runs)
        return {
            name: latency.describe(
                times[name],
                batch=self.batch,
                sequence_length=self.sequence_length,
                threads=threads,
                runtime=predictor.runtime,
            )
            for name, predictor in predictors.items()
        }, probes

    def _baseline(self, data: "TextData") -> "tuple[dict[str, Any], np.ndarray[Any, Any], dict[str, Any]]":
        """TF-IDF and a linear SVM on the same texts, whole ones."""
        from hfcompress.evaluation import baseline, latency

        pipeline = baseline.fit(data.texts("train"), data.label_ids("train"))
        parameters, size = baseline.size(pipeline)
        scores = baseline.scores(pipeline, data.texts("test"), len(data.labels))
        text = data.texts("test")[:1]
        times = latency.interleaved({BASELINE: lambda: pipeline.decision_function(text)}, self.runs)[BASELINE]
        row = {
            "name": BASELINE,
            "format": "baseline",
            "parameters": parameters,
            "bytes": size,
            "bits_per_parameter": round(8 * size / parameters, 2),
            "dtypes": {"float32": 4 * parameters},
            "peak_rss_mb": None,
            "bare_rss_mb": None,
            "load_ms": None,
        }
        return row, scores, latency.describe(times, batch=1, sequence_length=None, threads=1, runtime="scikit-learn")


def model_row(name: str, folder: Path, memory: dict[str, float]) -> dict[str, Any]:
    """The part of a report's model that its files and a process of its own (`memory.fresh_process`) tell."""
    from hfcompress.formats.size import embedding_bytes, sizes
    from hfcompress.stage import model_format

    found = sizes(folder)
    return {
        "name": name,
        "format": model_format(folder),
        "parameters": found["parameters"],
        "bytes": found["bytes"],
        "bits_per_parameter": round(8 * sum(found["dtypes"].values()) / found["parameters"], 2),
        "dtypes": found["dtypes"],
        "embedding_bytes": embedding_bytes(folder),
        **memory,
    }
