"""predict: a label for every line of a file, or for images, in order, while they are read."""

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from hfcompress.architectures.kinds import is_image_folder
from hfcompress.errors import UserError
from hfcompress.folders.lines import as_column, json_line, read_lines
from hfcompress.hub.candidate import candidate_of
from hfcompress.runs.labeling import labeled_images, labeled_texts, require_files

OPTION = "--image"


def predict(
    run: Positional[str],
    file: Positional[Path | None] = None,
    text: str | None = None,
    image: tuple[Path, ...] = (),
    format: Literal["text", "json"] = "text",
) -> int:
    """Label texts or images with the run's compressed model: an answer for every line, in order.

    The score is that of transformers' pipeline: softmax over the labels; sigmoid of each label where several may hold
    at once, and of a single output (a reranker); the number itself of a regression. A blank line is answered, too.

    Args:
        run: the folder of a run, or the name of a model that was pushed: org/name or org/name@revision.
        file: a file with one text a line, or one image's path; standard input when nothing else is given.
        text: one text.
        image: image files.
        format: text (label, score, text or path with tabs between; tabs and line breaks of the text itself become
            spaces) or json (one object a line, the text as it is; where several labels may hold at once, labels has
            all that score above 0.5).
    """
    if sum(given is not None for given in (text, file, image or None)) > 1:
        raise UserError("give one of --text, --image and a file")
    given = [str(path) for path in image] or ([text] if text is not None else None)
    lines = iter(given) if given is not None else lines_of(file)
    with candidate_of(run) as (folder, max_length):
        from hfcompress.formats.runtimes.predictor import open_predictor

        images = is_image_folder(folder)
        if text is not None and images:
            raise UserError(f"--text: {run} labels images; give --image FILE")
        if image and not images:
            raise UserError(f"--image: {run} does not label images; give --text, or texts one a line")
        if images:
            require_files(image, OPTION)
        predictor = open_predictor(folder)
        place = OPTION if image else str(file or "standard input")
        if images:
            answered = labeled_images(predictor, lines, place, named=bool(image))
        else:
            answered = labeled_texts(predictor, lines, max_length)
        for line, answer in answered:
            if format == "json":
                print(json_line(answer | {"image" if images else "text": line}))
            else:
                print(as_column(answer["label"]), f"{answer['score']:.4f}", as_column(line), sep="\t")
    return 0


def lines_of(file: Path | None) -> Iterator[str]:
    """Yield the lines of a file or of standard input; a file is read through once before the first is handed on.

    Raises:
        UserError: no such file, not UTF-8, or no line at all.
    """
    name = "standard input" if file is None else str(file)
    if file is None:
        lines = read_lines(sys.stdin.buffer, name)
    else:
        if file.is_dir() or not file.exists():
            raise UserError(f'{file}: no such file; give one text a line, or --text "..."')
        if file.is_file():  # and no pipe, which can be read only once
            require_text(file)
        lines = read_lines(file)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{name} holds no text")
    return chain([first], lines)


def require_text(file: Path) -> None:
    """Refuse a file that is not UTF-8 before its first lines are labeled.

    Raises:
        UserError: with the number of the line.
    """
    try:
        for _ in read_lines(file):
            pass
    except UserError as error:
        raise UserError(f"{error} (an image is given with --image)") from None
