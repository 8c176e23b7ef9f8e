"""measure: all models of a run side by side, in one go: accuracy, differences, flips, latency, memory, size."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.errors import UserError
from hfcompress.shape import Shape

if TYPE_CHECKING:
    import numpy as np

    from hfcompress.evaluation.predictor import Predictor
    from hfcompress.tasks.text_classification import TextClassification, TextData

BASELINE = "tfidf-svm"
EXAMPLES_A_CLASS = 5
EXCERPT = 160


@dataclass(frozen=True)
class Measure:
    """How models are measured; the same for all of them."""

    batch: int = 1
    sequence_length: int = 128
    """Tokens of the request that is timed."""
    threads: int = 1
    """Threads of the timed runtimes. One is what a server gives a request, and what a shared machine times fairly."""
    runs: int = 60
    """Timed requests a model."""
    resamples: int = 4000
    """Draws of the bootstrap."""
    seed: int = 0

    training: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("sequence_length", 1), ("threads", 1), ("runs", 1), ("resamples", 2)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"--measure.{name.replace('_', '-')} {value}: must be at least {least}")

    def __call__(
        self, out: Path, *, models: dict[str, Path], task: "TextClassification", reference: str, confidence: float
    ) -> dict[str, Any]:
        """Write measurements.json and predictions.npz (logits of every model on the test split) into `out`."""
        import numpy as np

        from hfcompress.evaluation.predictor import Predictor
        from hfcompress.record import write_json

        data = task.data
        predictors = {name: Predictor(folder, self.threads) for name, folder in models.items()}
        timed, probes = self._latency(predictors, data)
        del predictors
        logits = {name: self._logits(name, folder, task) for name, folder in models.items()}
        baseline_row, logits[BASELINE], timed[BASELINE] = self._baseline(data)
        rows = [self._row(name, folder, timed[name]) for name, folder in models.items()] + [baseline_row]
        labels = np.array(data.label_ids("test"))
        confusions = self._confusions(logits, labels, data)
        for row in rows:
            row["accuracy"] = self._accuracy(logits[row["name"]], labels, confusions[row["name"]], task.metric, data)
            row["latency_ms"] = timed[row["name"]]
        baseline_row["accuracy"]["all"]["ece"] = None  # a linear SVM's decision values are no probabilities
        arrays: dict[str, Any] = {"labels": labels, "groups": np.array(data.groups("test")), **logits}
        np.savez_compressed(out / "predictions.npz", **arrays)
        write_json(
            out / "measurements.json",
            {
                "labels": data.labels,
                "n": len(labels),
                "groups": len(set(data.groups("test"))),
                "reference": reference,
                "models": rows,
                "differences": self._differences(confusions, reference, confidence, data.labels),
                "flips": {n: flips(logits[reference], logits[n], labels, data) for n in models if n != reference},
                "probe": probes,
            },
        )
        return {"probe": probes, "texts": len(labels)}

    def predict(self, **inputs: Any) -> Shape:
        raise TypeError("Measure makes no model")

    def _logits(self, name: str, folder: Path, task: "TextClassification") -> "np.ndarray[Any, Any]":
        """Logits on the test split, with all cores: nothing is timed here."""
        from hfcompress.evaluation.predictor import Predictor

        print(f"  test split: {name}", file=sys.stderr, flush=True)
        return Predictor(folder).logits(task.data.texts("test"), task.max_length)

    def _latency(self, predictors: "dict[str, Predictor]", data: "TextData") -> tuple[dict[str, Any], dict[str, Any]]:
        from functools import partial

        from hfcompress.evaluation import latency

        threads = self.threads
        before = latency.probe()
        requests: dict[str, Any] = {
            n: partial(p.run, p.request(self.sequence_length, self.batch)) for n, p in predictors.items()
        }
        times = latency.interleaved(requests, self.runs)
        after = latency.probe()
        probes = {"before": before, "after": after, "noisy": latency.drifted(before, after)}
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

    def _row(self, name: str, folder: Path, timed: dict[str, Any]) -> dict[str, Any]:
        """The part of a report's model that its files and a process of its own tell."""
        from hfcompress.evaluation.memory import fresh_process
        from hfcompress.evaluation.size import embedding_bytes, sizes
        from hfcompress.stage import model_format

        memory = fresh_process(folder, self.sequence_length, timed["threads"])
        found = sizes(folder)
        return {
            "name": name,
            "format": model_format(folder),
            "parameters": found["parameters"],
            "bytes": found["bytes"],
            "bits_per_parameter": round(8 * sum(found["dtypes"].values()) / found["parameters"], 2),
            "dtypes": found["dtypes"],
            "embedding_bytes": embedding_bytes(folder),
            "peak_rss_mb": memory["peak_rss_mb"],
            "bare_rss_mb": memory["bare_rss_mb"],
            "load_ms": memory["load_ms"],
        }

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

    def _confusions(self, logits: dict[str, Any], labels: "np.ndarray[Any, Any]", data: "TextData") -> dict[str, Any]:
        from hfcompress.evaluation.statistics import group_confusions

        groups, classes = data.groups("test"), len(data.labels)
        return {n: group_confusions(labels, values.argmax(axis=1), groups, classes) for n, values in logits.items()}

    def _accuracy(
        self,
        logits: "np.ndarray[Any, Any]",
        labels: "np.ndarray[Any, Any]",
        confusion: Any,
        metric: str,
        data: "TextData",
    ) -> dict[str, Any]:
        from scipy.special import softmax

        from hfcompress.evaluation.accuracy import evaluate_logits
        from hfcompress.evaluation.intervals import probability_intervals
        from hfcompress.evaluation.statistics import METRICS, interval

        every = evaluate_logits(logits, labels, data.labels)
        intervals = {
            name: list(interval(confusion, compute, self.resamples, self.seed)) for name, compute in METRICS.items()
        }
        probabilities = softmax(logits.astype("float64"), axis=1)
        every["ci95"] = intervals | probability_intervals(
            probabilities, labels, data.groups("test"), resamples=self.resamples, seed=self.seed
        )
        return {"metric": metric, "value": every[metric], "ci95": intervals[metric], "n": len(labels), "all": every}

    def _differences(
        self, confusions: dict[str, Any], reference: str, confidence: float, labels: list[str]
    ) -> dict[str, Any]:
        """Model -> metric -> paired difference to the reference; F1 of each class as f1:<class>."""
        from hfcompress.evaluation.statistics import METRICS, class_f1, difference_of_draws, resampled

        metrics = dict(METRICS) | {
            f"f1:{label}": (lambda confusion, i=i: class_f1(confusion)[..., i]) for i, label in enumerate(labels)
        }
        before = resampled(confusions[reference], self.resamples, self.seed)
        found: dict[str, Any] = {}
        for name, confusion in confusions.items():
            if name == reference:
                continue
            draws = (before, resampled(confusion, self.resamples, self.seed))
            found[name] = {
                metric: asdict(difference_of_draws(confusions[reference], confusion, draws, compute, confidence))
                for metric, compute in metrics.items()
            }
        return found


def flips(
    before: "np.ndarray[Any, Any]", after: "np.ndarray[Any, Any]", labels: "np.ndarray[Any, Any]", data: "TextData"
) -> dict[str, Any]:
    """Which texts changed their label between two models: by true class, the class with the worst net loss first.

    Returns: total, lost (right before, wrong after), gained, and classes: label, n, lost, gained, examples
        (index, group, text, before, after, and the probability that the new model gives its label).
    """
    from scipy.special import softmax

    old, new = before.argmax(axis=1), after.argmax(axis=1)
    sure = softmax(after.astype("float64"), axis=1).max(axis=1)
    texts, groups = data.texts("test"), data.groups("test")
    classes: list[dict[str, Any]] = []
    for label, name in enumerate(data.labels):
        rows = [int(i) for i in ((labels == label) & (old != new)).nonzero()[0]]
        lost, gained = sum(int(old[i] == label) for i in rows), sum(int(new[i] == label) for i in rows)
        shown = sorted(rows, key=lambda i: (old[i] != labels[i], -sure[i]))[:EXAMPLES_A_CLASS]
        classes.append(
            {
                "label": name,
                "n": int((labels == label).sum()),
                "changed": len(rows),
                "lost": lost,
                "gained": gained,
                "examples": [
                    {
                        "index": i,
                        "group": groups[i],
                        "text": texts[i][:EXCERPT],
                        "before": data.labels[old[i]],
                        "after": data.labels[new[i]],
                        "score": round(float(sure[i]), 4),
                    }
                    for i in shown
                ],
            }
        )
    classes.sort(key=lambda entry: (entry["gained"] - entry["lost"], -entry["changed"]))
    return {
        "total": int((old != new).sum()),
        "lost": sum(c["lost"] for c in classes),
        "gained": sum(c["gained"] for c in classes),
        "classes": classes,
    }
