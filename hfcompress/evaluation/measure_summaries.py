"""measure_summaries: what causal LMs make of the same documents, beside the documents' first sentences."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures.models import language_tokenizer
from hfcompress.errors import require, require_numbers, require_threads
from hfcompress.folders.end_tokens import end_tokens
from hfcompress.folders.files import write_whole
from hfcompress.folders.record import write_json
from hfcompress.formats.runtimes.decoder import open_decoder
from hfcompress.stage import GRAPHS
from hfcompress.tasks.summarization import Summarization

if TYPE_CHECKING:
    from hfcompress.tasks.summarization import Summaries

RESULT = "summaries.json"
LEAD = "lead"
SHOWN = 3  # documents whose summaries are shown


@dataclass(frozen=True)
class MeasureSummaries:
    """How summaries are made and judged; the same for all models."""

    max_new_tokens: int = 96
    """Tokens of a summary at most."""
    context: int = 2048
    """Tokens of prompt, part and summary together; no more than a model has."""
    lookup: int = 8
    """Tokens that are guessed ahead from the document (generation.py)."""
    lead_sentences: int = 3
    """Sentences of the document that stand for a summary: the baseline."""
    threads: int = 2
    resamples: int = 4000
    """Draws of the bootstrap."""
    confidence: float = 0.95
    seed: int = 0

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*GRAPHS, "onnxruntime-genai", "llama-cpp-python", "rouge-score")

    def __post_init__(self) -> None:
        require_numbers(self)
        require_threads(self)
        require(self, 32, "context")
        require(self, 2, "resamples")
        require(self, 1, "max_new_tokens", "lead_sentences")

    def __call__(self, out: Path, *, models: dict[str, Path], task: Summarization, reference: str) -> dict[str, Any]:
        """Write summaries.json; a summary that was made before a kill lies in `out / work` and is kept."""
        from hfcompress.evaluation import summaries

        rows = task.data.splits["test"]
        said = {name: self._said(out / "work" / f"{name}.jsonl", folder, rows) for name, folder in models.items()}
        said[LEAD] = [summaries.lead(document, self.lead_sentences) for document in rows.documents]
        scored = {
            name: [
                summaries.score(*of_document)
                for of_document in zip(rows.documents, texts, rows.references, strict=True)
            ]
            for name, texts in said.items()
        }
        draws = {"resamples": self.resamples, "seed": self.seed}
        found = {
            "data": task.identity.partition("@")[0],
            "reference": reference,
            "models": {name: summaries.summary(scores, rows.groups, **draws) for name, scores in scored.items()},
            "differences": {
                name: {
                    measure: asdict(
                        summaries.paired_difference(
                            scored[reference], scores, rows.groups, measure, confidence=self.confidence, **draws
                        )
                    )
                    for measure in summaries.ROUGE
                }
                for name, scores in scored.items()
                if name != reference
            },
            "examples": [
                {
                    "document": rows.documents[i],
                    "reference": rows.references[i][0],
                    "summaries": {name: texts[i] for name, texts in said.items()},
                    "unsupported": {name: scores[i]["unsupported_words"] for name, scores in scored.items()},
                }
                for i in range(min(SHOWN, len(rows.documents)))
            ],
        }
        write_json(out / RESULT, found)
        return {"documents": len(rows.documents)}

    def predict(self, *, task: Summarization, **inputs: Any) -> None:
        """No model is made, so that there is no shape; documents of this machine are read, and refused, already here.

        So is a chat template that cannot be filled: what is quantized has its base's.

        Raises:
            UserError: see `Summarization.data`, and `Frame.of`.
        """
        from hfcompress.evaluation.long_documents import Frame

        if not task.on_hub:
            _ = task.data
        planned = inputs.get("models") or {}
        for folder in {getattr(getattr(model, "shape", None), "folder", None) for model in planned.values()}:
            if folder is not None:
                Frame.of(language_tokenizer(folder))

    def _said(self, file: Path, folder: Path, rows: "Summaries") -> list[str]:
        """A model's summary of every document, a line each."""
        from hfcompress.evaluation.long_documents import summarize

        written = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
        done = [json.loads(line) for line in written if line.endswith("\n")]
        if len(done) == len(rows.documents):
            return done
        print(f"  summaries: {file.stem}", file=sys.stderr, flush=True)
        decoder, tokenizer = open_decoder(folder, self.threads), language_tokenizer(folder)
        write_whole(file, "".join(json.dumps(text) + "\n" for text in done))
        with file.open("a", encoding="utf-8") as stream:
            for document in rows.documents[len(done) :]:
                pieces = summarize(
                    decoder, tokenizer, document, max_new_tokens=self.max_new_tokens, lookup=self.lookup,
                    say=lambda line: None, context=self.context, ends=end_tokens(folder, tokenizer),
                )  # fmt: skip
                done.append("".join(pieces))
                stream.write(json.dumps(done[-1]) + "\n")
                stream.flush()
        return done
