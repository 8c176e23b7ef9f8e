"""An encoder's word embeddings in fewer bytes: word tables (compress/embeddings/word_table.py) against fewer pieces.

`python -m benchmarks.word_table` takes the shipped licence teacher (13,596 pieces of 384 numbers), whose word
table becomes each of --points (KIND-BITS-RATIO), distilled for --steps (0: as it starts). Beside them its vocabulary
is trimmed to the most frequent pieces that take no more than each of --plain megabytes in float32, distilled by the
same teacher on the same texts with the same options. Printed: bytes of the table as it is delivered, KL and equal
answers to the teacher, accuracy, and its paired difference to the teacher's with bounds (95% each, over licences).
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax

from hfcompress.architectures.models import load_classifier, load_tokenizer, save
from hfcompress.compress.embeddings.trim_vocabulary import TrimVocabulary
from hfcompress.compress.embeddings.word_table import WordTable
from hfcompress.evaluation.drawn import Drawn, paired_difference
from hfcompress.evaluation.metrics import METRICS
from hfcompress.folders.record import cpu_name
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.recipes import licence_teacher
from hfcompress.recipes.ctr_embeddings import point_of
from hfcompress.tasks import vocabulary
from hfcompress.training.adopt import Adopt
from hfcompress.training.losses import label_loss
from hfcompress.training.teacher_outputs import Wanted, teacher_outputs
from hfcompress.training.trainer import train

TASK = licence_teacher.TASK
POINTS = ("rows-8-3.9", "hashed-8-4", "quotient_remainder-8-4", "mixed-8-4", "rows-4-7", "factorized-8-7")
PLAIN_MB = (5.25, 3.08)  # as rows in 8 bits; and the least, as every character is kept
RESAMPLES = 4000
NO_RATE = 1e-12

Array = np.ndarray[Any, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", nargs="*", default=list(POINTS))
    parser.add_argument("--plain", nargs="*", type=float, default=list(PLAIN_MB), help="megabytes")
    parser.add_argument("--steps", type=int, default=60, help="of distillation, 16 texts each")
    parser.add_argument("--texts", type=int, default=438, help="test texts, evenly spaced")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{cpu_name()}, {arguments.threads} threads, {arguments.steps} steps, {arguments.texts} test texts")
    with TemporaryDirectory() as scratch:
        compare(arguments, Path(scratch))


def compare(arguments: argparse.Namespace, scratch: Path) -> None:
    """Make and measure every model, each in a folder of its own."""
    rate = 1e-4 if arguments.steps else NO_RATE
    options = WordTable(
        max_steps=max(1, arguments.steps), learning_rate=rate, per_device_train_batch_size=16, cache=False
    )
    teacher = scratch / "teacher"
    teacher.mkdir()
    Adopt()(teacher, model=licence_teacher.FOLDER, task=TASK)
    show = heading(teacher, arguments.texts)
    for point in arguments.points:
        out, begun = scratch / point, time.perf_counter()
        out.mkdir()
        measured = replace(options, **point_of(point))(out, model=teacher, task=TASK)
        show(point, measured["table_bytes"], out, time.perf_counter() - begun)
    for megabytes in arguments.plain:
        out, begun = scratch / f"plain-{megabytes:g}", time.perf_counter()
        pieces = fewer_pieces(teacher, out, math.floor(megabytes * 1e6 / (4 * 384)), options)
        show(f"{pieces:,} pieces", 4 * 384 * pieces, out, time.perf_counter() - begun)


def fewer_pieces(teacher: Path, out: Path, size: int, options: WordTable) -> int:
    """Trim the vocabulary to so many pieces and distil, as WordTable does; how many there are.

    The teacher reads the texts by its own pieces, so that its answers are computed before.
    """
    trimmed = out.with_name(f"{out.name}-trimmed")
    for folder in (trimmed, out):
        folder.mkdir()
    TrimVocabulary(vocabulary_size=size)(trimmed, model=teacher, task=TASK)
    read = TASK.data.encode(load_tokenizer(teacher), TASK.max_length, "train")
    outputs = teacher_outputs(teacher / "work", teacher, read, Wanted(), cache=True, bf16=options.bf16)
    tokenizer, network = load_tokenizer(trimmed), load_classifier(trimmed)
    torch.manual_seed(options.seed)
    loss = label_loss(
        outputs,
        temperature=options.temperature,
        logits_weight=options.logits_weight,
        hard_weight=options.hard_weight,
    )
    data = TASK.data.encode(tokenizer, TASK.max_length, "train")
    train(network, tokenizer, out / "work", options, data, loss=loss)
    save(network, tokenizer, out)
    return len(vocabulary.read_tokenizer(out)["model"]["vocab"])


def heading(teacher: Path, count: int) -> Callable[[str, int, Path, float], None]:
    """Print the head of the table and the teacher's row; what prints the row of a table of so many bytes."""
    data = TASK.data
    rows = np.linspace(0, len(data.texts("test")) - 1, count).round().astype(int)
    texts, groups = ([values[row] for row in rows] for values in (data.texts("test"), data.groups("test")))
    labels = np.array(data.label_ids("test"))[rows]
    whole = 4 * load_classifier(teacher).bert.embeddings.word_embeddings.weight.numel()
    theirs = answers(teacher, texts)
    before, said = Drawn(theirs, labels, groups, resamples=RESAMPLES, seed=0), log_softmax(theirs, axis=1)
    print("| table | MB | times fewer | KL | equal answers | accuracy | difference (95% bounds) | s |")
    print("|---|---|---|---|---|---|---|---|")
    right = float((theirs.argmax(1) == labels).mean())
    print(f"| teacher | {whole / 1e6:.2f} | 1.0 | – | – | {right:.3f} | – | – |", flush=True)

    def show(name: str, size: int, folder: Path, seconds: float) -> None:
        logits = answers(folder, texts)
        kl = float((np.exp(said) * (said - log_softmax(logits, axis=1))).sum(1).mean())
        after = Drawn(logits, labels, groups, resamples=RESAMPLES, seed=0)
        change = paired_difference(before, after, METRICS["accuracy"], 0.95)
        equal, right = (float((logits.argmax(1) == other).mean()) for other in (theirs.argmax(1), labels))
        bounds = f"{100 * change.lower_bound:+.2f} to {100 * change.upper_bound:+.2f}"
        print(
            f"| {name} | {size / 1e6:.2f} | {whole / size:.1f} | {kl:.3f} | {equal:.3f} | {right:.3f} | "
            f"{100 * change.difference:+.2f} points ({bounds}) | {seconds:.0f} |",
            flush=True,
        )

    return show


def answers(folder: Path, texts: list[str]) -> Array:
    """Logits [texts, classes]."""
    return Predictor(folder, torch.get_num_threads()).logits(texts, TASK.max_length)


if __name__ == "__main__":
    main()
