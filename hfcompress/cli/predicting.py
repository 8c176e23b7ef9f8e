"""predict: a label for every line of a file, or for images, in order, while they are read."""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from hfcompress.cli.common import candidate_of
from hfcompress.errors import UserError
from hfcompress.folders.lines import as_column, json_line, read_lines

if TYPE_CHECKING:
    from PIL.Image import Image

OPTION = "--image"
TEXTS, CHARACTERS, IMAGES = 1024, 4_000_000, 32  # asked together: what is held of a file of any length


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
        from hfcompress.planning.image_spec import is_image_model

        images = is_image_model(folder / "config.json")
        if text is not None and images:
            raise UserError(f"--text: {run} labels images; give --image FILE")
        if image and not images:
            raise UserError(f"--image: {run} does not label images; give --text, or texts one a line")
        if images:
            require_files(image)
        predictor = open_predictor(folder)
        place = OPTION if image else str(file or "standard input")
        answered = labeled_images(predictor, lines, place) if images else labeled_texts(predictor, lines, max_length)
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


def labeled_texts(predictor: Any, lines: Iterator[str], max_length: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line and its answer, in order; so many are asked together."""
    from hfcompress.formats.runtimes.scores import answer_of
    from hfcompress.rollout.traffic import whole

    while chunk := together(lines):
        chunk = [whole(line) for line in chunk]
        logits = predictor.logits(chunk, max_length=max_length)
        yield from ((line, answer_of(predictor, row)) for line, row in zip(chunk, logits, strict=True))
        sys.stdout.flush()


def together(lines: Iterator[str]) -> list[str]:
    """The next lines that are asked at once: TEXTS of them, fewer where they are long, one at least."""
    chunk, characters = list[str](), 0
    while len(chunk) < TEXTS and characters < CHARACTERS and (line := next(lines, None)) is not None:
        chunk.append(line)
        characters += len(line)
    return chunk


def labeled_images(predictor: Any, lines: Iterator[str], given: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each path and its image's answer, in order; of so many that are asked together one is held decoded.

    Args:
        given: where the paths are from: the option, or the name of a file.

    Raises:
        UserError: a file is not there, or holds no whole image; those before it have been answered.
    """
    from hfcompress.formats.runtimes.scores import answer_of
    from hfcompress.rollout.traffic import whole

    numbered = enumerate(lines, start=1)
    while chunk := list(islice(numbered, IMAGES)):
        wrong: list[UserError] = []
        images = readable(chunk, given, wrong)
        first = next(images, None)
        logits = [] if first is None else predictor.logits(chain([first], images))
        for (_, path), row in zip(chunk, logits, strict=False):
            yield whole(path), answer_of(predictor, row)
        sys.stdout.flush()
        if wrong:
            raise wrong[0]


def readable(chunk: list[tuple[int, str]], given: str, wrong: list[UserError]) -> "Iterator[Image]":
    """Yield the images of numbered paths up to the first that cannot be read, whose error is put into `wrong`."""
    for number, path in chunk:
        try:
            yield read_image(path, f"{OPTION} {path}" if given == OPTION else f"{given}, line {number}: {path}")
        except UserError as error:
            wrong.append(error)
            return


def read_image(path: str, named: str) -> "Image":
    """The image of a file, upright and in RGB.

    Args:
        named: what an error calls it.

    Raises:
        UserError: the file is not there, or holds no whole image.
    """
    from hfcompress.tasks.image_input import decode

    place = Path(path)
    if not path.strip():
        raise UserError(f"{named.strip(': ')} is blank; give one image's path on every line")
    if not place.is_file():
        what = "a folder" if place.is_dir() else "a link to nothing" if place.is_symlink() else "no such file"
        raise UserError(f"{named}: {what}; give image files, or their paths one a line")
    try:
        return decode({"bytes": None, "path": path})
    except ValueError as error:
        raise UserError(f"{named}: is no whole image ({error}); leave it out or mend it") from None


def require_files(paths: Sequence[Path]) -> None:
    """Refuse image files that are not there before the model is loaded.

    Raises:
        UserError: with the first of them.
    """
    for path in paths:
        if not path.is_file():
            read_image(str(path), f"{OPTION} {path}")
