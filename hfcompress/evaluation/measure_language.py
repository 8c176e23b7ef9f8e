"""measure_language: all causal LMs of a run side by side: perplexity, KL, agreement, latency, memory, size."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures.models import language_tokenizer, load_tokenizer
from hfcompress.errors import require, require_numbers, require_threads
from hfcompress.evaluation import latency
from hfcompress.evaluation.again import Again
from hfcompress.folders.files import whole_file
from hfcompress.folders.guard import read_config
from hfcompress.folders.record import Record, write_json
from hfcompress.formats import FORMATS, format_of
from hfcompress.formats.runtimes.decoder import open_decoder
from hfcompress.planning.decoders import expected
from hfcompress.stage import GRAPHS
from hfcompress.tasks.text_generation import CausalLM

if TYPE_CHECKING:
    import numpy as np

    from hfcompress.architectures.decoder_spec import LanguageShape


@dataclass(frozen=True)
class MeasureLanguage:
    """How models are measured; the same for all of them."""

    context: int = 2048
    """Tokens, prompt and answer together, that memory and time are measured at; no more than the model has."""
    new_tokens: int = 32
    """Tokens of an answer that is timed."""
    threads: int = 2
    runs: int = 5
    """Timed answers a model."""
    resamples: int = 4000
    """Draws of the bootstrap."""
    seed: int = 0

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*GRAPHS, "onnxruntime-genai", "llama-cpp-python", "scipy")

    def __post_init__(self) -> None:
        require_numbers(self)
        require_threads(self)
        require(self, 32, "context")
        require(self, 2, "new_tokens", "resamples")
        require(self, 1, "runs")

    def __call__(
        self, out: Path, *, models: dict[str, Path], task: CausalLM, reference: str, confidence: float
    ) -> dict[str, Any]:
        """Write measurements.json into `out`; what every model said of every test token lies in `out / work`."""
        from hfcompress.evaluation import language

        windows = task.test_windows(load_tokenizer(models[reference]))
        said = {
            name: Said(out / "work" / f"{name}.f32", windows, folder, self.threads) for name, folder in models.items()
        }
        for name, written in said.items():
            print(f"  test split: {name}", file=sys.stderr, flush=True)
            written.write()
        scored = {name: language.scores(said[name], windows, said[reference]) for name in models}
        drawn = {name: language.drawn(found, self.resamples, self.seed) for name, found in scored.items()}
        timed, probes = self._latency(models)
        rows = [
            self._row(name, folder, timed[name])
            | {"accuracy": accuracy(language.summary(drawn[name], has_reference=name != reference))}
            for name, folder in models.items()
        ]
        for row in rows:
            if row["name"] != reference:
                language.require_kinship(row["name"], reference, scored[row["name"]], row["dtypes"])
        simulations = {name: folder for name, folder in models.items() if (folder / "surgery.json").is_file()}
        write_json(
            out / "measurements.json",
            {
                "task": task.name,
                "n": int(scored[reference].tokens.sum()),
                "groups": len(scored[reference].tokens),
                "reference": reference,
                "models": rows,
                "differences": {
                    name: {"perplexity": asdict(language.increase(drawn[reference], found, confidence))}
                    for name, found in drawn.items()
                    if name != reference
                },
                "runtimes": {
                    name: language.disagreements(said[name], said[source], windows) | {"simulation": source}
                    for name, folder in models.items()
                    if (source := simulation_of(folder, simulations)) is not None
                },
                "probe": probes,
            },
        )
        return {"probe": probes, "tokens": int(scored[reference].tokens.sum())}

    @staticmethod
    def again(model: Path, row: dict[str, Any], task: CausalLM, *, runs: int, resamples: int) -> Again:
        """Measure the perplexity once more, in the model's own runtime, and the time of a token.

        KL and agreement are against the model that it was made from, which a repository does not hold. See
        `Measuring.again`.
        """
        import time

        from hfcompress.evaluation import language

        claimed = row["latency_ms"]
        windows = task.test_windows(language_tokenizer(model))
        decoder = open_decoder(model, claimed["threads"])
        scored = language.scores((language.log_probabilities(decoder, window) for window in windows), windows)
        every = language.summary(language.drawn(scored, resamples, 0), has_reference=False)
        decoder.rewind(0)
        logits = decoder.append([3] * min(claimed["sequence_length"] // 2, decoder.context // 2))
        begun = time.perf_counter()
        for _ in range(runs):
            logits = decoder.append([int(logits[-1].argmax())])
            decoder.rewind(decoder.length - 1)
        each = 1e3 * (time.perf_counter() - begun) / runs
        return Again(f"{every['tokens']:,} tokens", every, "a token", claimed["per_token"], each)

    def predict(self, **inputs: Any) -> "LanguageShape":
        raise TypeError("MeasureLanguage makes no model")

    def _latency(self, models: dict[str, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Time to the first token and ms a token at the full context, models interleaved."""
        import time

        decoders = {name: open_decoder(folder, self.threads) for name, folder in models.items()}
        before = latency.probe()
        first: dict[str, list[float]] = {name: [] for name in models}
        later: dict[str, list[float]] = {name: [] for name in models}
        for run in range(self.runs + 1):
            for name in list(models)[:: 1 if run % 2 else -1]:
                decoder = decoders[name]
                prompt = self._prompt(models[name], min(self.context, decoder.context) - self.new_tokens)
                decoder.rewind(0)
                begun = time.perf_counter()
                token = int(decoder.append(prompt)[-1].argmax())
                times = [time.perf_counter()]
                for _ in range(self.new_tokens - 1):
                    token = int(decoder.append([token])[-1].argmax())
                    times.append(time.perf_counter())
                if run:  # the first round allocates
                    first[name].append(1e3 * (times[0] - begun))
                    later[name] += [1e3 * (after - at) for at, after in pairwise(times)]
        after = latency.probe()
        found = {}
        for name, folder in models.items():
            told = latency.describe(
                later[name],
                batch=1,
                sequence_length=min(self.context, decoders[name].context),
                threads=self.threads,
                runtime=format_of(folder).runtime_of("language"),
            )
            found[name] = told | {
                "first_token": latency.percentiles(first[name])["p50"],
                "per_token": told["p50"],
                "runs": self.runs,
            }
        return found, {"before": before, "after": after, "noisy": latency.drifted(before, after)}

    def _prompt(self, folder: Path, tokens: int) -> list[int]:
        import numpy as np

        vocabulary = read_config(folder)["vocab_size"]
        return [int(i) for i in np.random.default_rng(self.seed).integers(3, vocabulary, tokens)]

    def _row(self, name: str, folder: Path, timed: dict[str, Any]) -> dict[str, Any]:
        """The part of a report's model that its files and a process of its own tell."""
        from hfcompress.formats.language_memory import fresh_process

        form = format_of(folder)
        found = form.size(folder)
        context = timed["sequence_length"]
        told = {"expected_bytes": expected(folder, context)} if form is FORMATS["onnx-genai"] else {}
        return {
            "name": name,
            "format": form.word,
            "parameters": found["parameters"],
            "bytes": found["bytes"],
            "bits_per_parameter": round(8 * sum(found["dtypes"].values()) / max(found["parameters"], 1), 3),
            "dtypes": found["dtypes"],
            "latency_ms": timed,
            **fresh_process(folder, self.context, self.threads),
            **told,
        }


class Said:
    """Log-probabilities of a model for every scored token, on disk in float32: they can be larger than the memory."""

    def __init__(self, file: Path, windows: list[Any], folder: Path, threads: int) -> None:
        self.file, self.windows, self.folder, self.threads = file, windows, folder, threads

    def write(self) -> None:
        """Run the model over all windows, unless that was done before a kill."""
        from hfcompress.evaluation.language import log_probabilities

        if self.file.is_file():
            return
        decoder = open_decoder(self.folder, self.threads)
        with whole_file(self.file, "wb") as stream:
            for window in self.windows:
                stream.write(log_probabilities(decoder, window).astype("float32").data)

    def __iter__(self) -> "Iterator[np.ndarray[Any, Any]]":
        """A window after the other, [scored tokens, vocab]."""
        import numpy as np

        total = sum(len(window.ids) - window.first for window in self.windows)
        vocabulary = self.file.stat().st_size // (4 * total)
        with self.file.open("rb") as stream:
            for window in self.windows:
                rows = len(window.ids) - window.first
                yield np.fromfile(stream, dtype=np.float32, count=rows * vocabulary).reshape(rows, vocabulary)


def accuracy(summary: dict[str, Any]) -> dict[str, Any]:
    """report.json's `accuracy` of a language model."""
    return {
        "metric": "perplexity",
        "value": summary["perplexity"],
        "ci95": summary["ci95"]["perplexity"],
        "n": summary["tokens"],
        "all": summary,
    }


def simulation_of(folder: Path, simulations: dict[str, Path]) -> str | None:
    """The packed model of this run that a delivered one was written from, by its record; None where there is none."""
    if not (folder / "record.json").is_file() or (folder / "surgery.json").is_file():
        return None
    source = Record.read(folder).inputs.get("model")
    return next((name for name, packed in simulations.items() if packed.name == source), None)
