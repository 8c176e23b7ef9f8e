"""Labels for texts and images of any number, in order, so many at a time."""

import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.architectures.kinds import is_image_folder
from hfcompress.errors import OptionError, UserError
from hfcompress.formats.runtimes.scores import answer_of
from hfcompress.rollout.traffic import whole
from hfcompress.tasks.image_input import decode

if TYPE_CHECKING:
    from PIL.Image import Image

TEXTS, CHARACTERS, IMAGES = 1024, 4_000_000, 32  # asked together: what is held of a file of any length


def labeled_texts(predictor: Any, lines: Iterator[str], max_length: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line and its answer, in order; so many are asked together."""
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


def labeled_images(
    predictor: Any, lines: Iterator[str], given: str, *, named: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each path and its image's answer, in order; of so many that are asked together one is held decoded.

    Args:
        given: where the paths are from: the option, or the name of a file.
        named: whether it is the option, whose paths have no line.

    Raises:
        UserError: a file is not there, or holds no whole image; those before it have been answered.
    """
    numbered = enumerate(lines, start=1)
    while chunk := list(islice(numbered, IMAGES)):
        wrong: list[UserError] = []
        images = readable(chunk, given, wrong, named)
        first = next(images, None)
        logits = [] if first is None else predictor.logits(chain([first], images))
        for (_, path), row in zip(chunk, logits, strict=False):
            yield whole(path), answer_of(predictor, row)
        sys.stdout.flush()
        if wrong:
            raise wrong[0]


def readable(chunk: list[tuple[int, str]], given: str, wrong: list[UserError], named: bool) -> "Iterator[Image]":
    """Yield the images of numbered paths up to the first that cannot be read, whose error is put into `wrong`."""
    for number, path in chunk:
        try:
            yield read_image(path, f"{given} {path}" if named else f"{given}, line {number}: {path}")
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


def require_kind(folder: Path, model: str, *, texts: bool, images: bool) -> None:
    """Refuse texts for a model of images, and images for one of texts.

    Raises:
        OptionError: naming what the model takes.
    """
    labels_images = is_image_folder(folder)
    if texts and labels_images:
        raise OptionError(".texts", "{model} labels images; give {.images}", model=model)
    if images and not labels_images:
        raise OptionError(".images", "{model} does not label images; give {.texts}", model=model)


def require_files(paths: Iterable[Path], option: str) -> None:
    """Refuse image files that are not there before the model is loaded.

    Args:
        option: what gave them, for the error.

    Raises:
        UserError: with the first of them.
    """
    for path in paths:
        if not path.is_file():
            read_image(str(path), f"{option} {path}")
