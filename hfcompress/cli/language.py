"""summarize: what one does with a language model."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from hfcompress.architectures.kinds import classifies_texts, is_click_model, is_image_model
from hfcompress.cli.common import INTERRUPTED, quiet
from hfcompress.errors import UserError, require_counts
from hfcompress.folders.guard import read_config
from hfcompress.hub.candidate import candidate_of

if TYPE_CHECKING:
    from hfcompress.evaluation.generation import Stats


def summarize(
    model: Positional[str],
    file: Positional[Path],
    max_new_tokens: int = 128,
    context: int = 4096,
    lookup: int = 8,
    threads: int | None = None,
    stats: bool = False,
    format: Literal["text", "json"] = "text",
) -> int:
    """Summarize a document of any length with a run's compressed language model.

    A document that the model cannot hold is summarized in parts, and the summaries of the parts again.

    Args:
        model: a run, a model's folder, or the name of a model that was pushed.
        file: a text file (UTF-8), or - for standard input.
        max_new_tokens: tokens of the summary at most.
        context: tokens of prompt, part and summary together; no more than the model holds. More is fewer parts, but
            more memory and time for each.
        lookup: tokens that are guessed ahead from what was read, and verified at once; 0 for none. The summary is the
            same, except where two tokens are so nearly alike that the runtime's rounding decides.
        threads: of the processor [all].
        stats: also tell time, tokens and peak memory, in a line on standard error.
        format: text (printed as it is written) or json (summary and stats in one object).
    """
    require_counts(max_new_tokens=max_new_tokens, context=context, threads=threads)
    require_counts(0, lookup=lookup)
    text = read_document(file)
    quiet()
    from hfcompress.architectures.models import language_tokenizer
    from hfcompress.evaluation import long_documents
    from hfcompress.evaluation.generation import Stats
    from hfcompress.evaluation.latency import default_threads
    from hfcompress.folders.end_tokens import end_tokens
    from hfcompress.formats.runtimes.decoder import open_decoder

    with candidate_of(model) as (folder, _):
        refuse_classifiers(folder, model)
        decoder, tokenizer = open_decoder(folder, threads or default_threads()), language_tokenizer(folder)
        cost, begun, first, written = Stats(), time.perf_counter(), None, list[str]()
        try:
            for piece in long_documents.summarize(
                decoder,
                tokenizer,
                text,
                max_new_tokens=max_new_tokens,
                lookup=lookup,
                say=lambda line: print(line, file=sys.stderr, flush=True),
                ends=end_tokens(folder, tokenizer),
                context=context,
                stats=cost,
            ):
                first = first or time.perf_counter() - begun
                written.append(piece)
                if format == "text":
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if format == "text" and written:
                print(flush=True)
            print("hfcompress: interrupted; the summary ends here", file=sys.stderr)
            return INTERRUPTED
    if not written:
        print("the model ended its answer at once: the summary is empty", file=sys.stderr)
    figures = figures_of(cost, first, time.perf_counter() - begun)
    if format == "json":
        print(json.dumps({"summary": "".join(written), "stats": figures}, ensure_ascii=False))
    else:
        print()
    if stats:
        print(", ".join(f"{name} {value}" for name, value in figures.items()), file=sys.stderr)
    return 0


def refuse_classifiers(folder: Path, model: str) -> None:
    """Stop before a model that cannot write.

    Args:
        folder: the model's; model: what was asked for.

    Raises:
        UserError: it labels images or texts.
    """
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    images = is_image_model(config)
    if is_click_model(config):
        raise UserError(f"{model} predicts clicks, and is no language model that could summarize")
    if images or classifies_texts(config):
        kind, use = ("images", "--image FILE") if images else ("texts", "FILE")
        raise UserError(
            f"{model} labels {kind}, and is no language model that could summarize; "
            f"label {kind} with it: hfcompress predict {model} {use}"
        )


def read_document(file: Path) -> str:
    """A file's text, or standard input's where the file is `-`.

    Raises:
        UserError: no such file, or see `document_text`.
    """
    from hfcompress.evaluation.long_documents import document_text

    if str(file) == "-":
        return document_text(sys.stdin.buffer.read(), "standard input")
    try:
        return document_text(file.read_bytes(), str(file))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{file}: {error.strerror}; give a text file, or - for standard input") from None


def figures_of(cost: "Stats", first_s: float | None, all_s: float) -> dict[str, float | None]:
    """What --stats tells: times from when the model was loaded, tokens of all parts together."""
    from hfcompress.formats.memory import rss_mb

    each = cost.ms_per_token
    return {
        "first_text_s": None if first_s is None else round(first_s, 3),
        "all_s": round(all_s, 3),
        "ms_per_token": None if each is None else round(each, 2),
        "answers": cost.answers,
        "prompt_tokens": cost.prompt_tokens,
        "new_tokens": cost.new_tokens,
        "passes": cost.passes,
        "guessed": cost.proposed,
        "guessed_right": cost.accepted,
        "peak_rss_mb": round(rss_mb(), 1),
    }
