"""measure_images: all image classifiers of a run side by side: accuracy, differences, flips, latency, memory, size."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcompress.evaluation.measure import Measuring, model_row
from hfcompress.tasks.image_classification import ImageClassification


@dataclass(frozen=True)
class MeasureImages(Measuring):
    """How image classifiers are measured; the same for all of them."""

    def __call__(
        self, out: Path, *, models: dict[str, Path], task: ImageClassification, reference: str, confidence: float
    ) -> dict[str, Any]:
        """Write measurements.json and predictions.npz (logits of every model on the test split) into `out`."""
        import numpy as np

        from hfcompress.evaluation import classification
        from hfcompress.folders.record import write_json
        from hfcompress.formats.memory import fresh_process

        data = task.data
        names, groups, labels = data.labels, data.groups("test"), np.array(data.label_ids("test"))
        timed, probes = self._latency(models)
        logits = {name: self._logits(name, folder, task) for name, folder in models.items()}
        found = classification.confusions(logits, labels, groups, len(names))
        draws: dict[str, Any] = {"names": names, "resamples": self.resamples, "seed": self.seed}
        rows = [
            model_row(name, folder, fresh_process(folder, self.batch, self.threads))
            | {
                "latency_ms": timed[name],
                "accuracy": classification.accuracy_of(
                    logits[name], labels, metric=task.metric, groups=groups, **draws
                ),
            }
            for name, folder in models.items()
        ]
        excerpts = [f"test image {i}" for i in range(len(labels))]
        np.savez_compressed(out / "predictions.npz", labels=labels, groups=np.array(groups), **logits)
        write_json(
            out / "measurements.json",
            {
                "kind": "images",
                "labels": names,
                "n": len(labels),
                "groups": len(set(groups)),
                "skipped": data.skipped,
                "reference": reference,
                "models": rows,
                "differences": classification.differences(found, reference, confidence=confidence, **draws),
                "flips": classification.all_flips(logits, reference, labels, names, groups, excerpts),
                "probe": probes,
            },
        )
        return {"probe": probes, "images": len(labels)}

    def _logits(self, name: str, folder: Path, task: ImageClassification) -> Any:
        """Logits on the test split, with all cores: nothing is timed here."""
        from hfcompress.formats.runtimes.image_predictor import ImagePredictor

        print(f"  test split: {name}", file=sys.stderr, flush=True)
        return ImagePredictor(folder).logits(task.data.images("test"))

    def _latency(self, models: dict[str, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Milliseconds a request, models interleaved, each timed one behind another of the same model, as a camera's
        images come; and the machine before and after.
        """
        from functools import partial

        from hfcompress.evaluation import latency
        from hfcompress.formats.runtimes.image_predictor import ImagePredictor

        predictors = {name: ImagePredictor(folder, self.threads) for name, folder in models.items()}
        requests: dict[str, Any] = {n: partial(p.run, p.request(self.batch)) for n, p in predictors.items()}
        times, probes = latency.side_by_side(requests, self.runs, back_to_back=True)
        return {
            name: latency.describe(
                times[name], batch=self.batch, sequence_length=None, threads=self.threads, runtime=predictor.runtime
            )
            for name, predictor in predictors.items()
        }, probes
