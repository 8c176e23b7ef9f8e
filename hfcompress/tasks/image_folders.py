"""Images in folders: SPLIT/CLASS/image.jpg, or CLASS/image.jpg and the splits by a hash of the image."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hfcompress.errors import UserError
from hfcompress.tasks.find_splits import (
    folders_in,
    hidden,
    kind_of,
    listed,
    name_in,
    say,
    split_folders,
    split_of,
    stem_of,
)
from hfcompress.tasks.hold_out import rows_by_split, split_by_digest

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_FILES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
# Photographs that are not read.
OTHER_IMAGES = {".heic", ".heif", ".avif", ".jxl", ".svg", ".raw", ".dng", ".cr2", ".nef"}


def is_class_folders(folder: Path) -> bool:
    """Return whether a folder is laid out as SPLIT/CLASS/image, or as CLASS/image with two classes at least."""
    if split_folders(folder):
        return True
    tables = any(kind_of(file) and split_of(stem_of(file)) for file in folder.glob("*")) if folder.is_dir() else False
    return not tables and len(flat_classes(folder)) > 1


def flat_classes(folder: Path) -> list[Path]:
    """Return the folders that have images of their own: each is a class."""
    return [below for below in folders_in(folder) if any(is_image(file) for file in below.iterdir())]


def is_image(file: Path) -> bool:
    """Return whether a file's name is that of an image that is read: ._cat.jpg is not one."""
    return file.suffix.lower() in IMAGE_FILES and not hidden(file) and file.is_file()


def class_folders(folder: Path) -> "dict[str, Dataset]":
    """Return split -> rows (image, label) of a folder of class folders; a label is its folder's name.

    Whatever lies below a split's folder is of that split, and whatever lies below a class folder is of that class.

    Raises:
        UserError: there is no train or test folder, or a split has no images.
    """
    places = split_folders(folder)
    if not places:
        return by_hash(folder)
    found = {split: images_below(place, split) for split, place in places.items()}
    for split, rows in found.items():
        if not rows:
            raise UserError(
                f"--task.dataset {folder}: {places[split].name}/ has no images in folders named after their class"
            )
    for split in ("train", "test"):
        if split not in found:
            there = ", ".join(f"{place.name}/" for place in places.values())
            raise UserError(
                f"--task.dataset {folder}: no {split} split: it has {there} but no folder {split}/ with a folder for "
                "each class"
            )
    read = {file for rows in found.values() for file, _ in rows}
    say_unread(folder, read)
    return {split: as_rows(rows) for split, rows in found.items()}


def images_below(place: Path, split: str) -> list[tuple[Path, str]]:
    """Return (image, class) of every image in the class folders of a split's folder.

    A split's folder within itself (seg_train/seg_train/CLASS) is passed through.
    """
    classes = folders_in(place)
    if len(classes) == 1 and split_of(classes[0].name) == split and folders_in(classes[0]):
        return images_below(classes[0], split)
    return [(file, below.name) for below in classes for file in walked(below) if is_image(file)]


def walked(folder: Path) -> list[Path]:
    """Return all files below a folder in the order of their paths, without those of hidden folders."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not hidden(Path(name))]
        found += [Path(place, name) for name in files]
    return sorted(found)


def by_hash(folder: Path) -> "dict[str, Dataset]":
    """Return the splits of a folder CLASS/image: seven tenths, one and two, by a hash of an image's bytes.

    An image of a class that train would lack stays in train.
    """
    rows = [(file, place.name) for place in flat_classes(folder) for file in walked(place) if is_image(file)]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file, _ in rows]
    splits = {digest: split_by_digest(digest) for digest in digests}
    parts = rows_by_split(splits, digests, [label for _, label in rows])
    found = {split: [rows[i] for i in which] for split, which in parts.items()}
    sizes = ", ".join(f"{split} {len(rows)}" for split, rows in found.items())
    if not all(found.values()):
        raise UserError(
            f"--task.dataset {folder}: too few images to split them ({sizes}); lay them out as train/CLASS/image and "
            "test/CLASS/image"
        )
    say(f"--task.dataset {folder}: no folder is named after a split; split by a hash of each image: {sizes}")
    say_unread(folder, {file for file, _ in rows})
    return {split: as_rows(rows) for split, rows in found.items()}


def say_unread(folder: Path, read: set[Path]) -> None:
    """Name the photographs below a folder that are not used: outside of the class folders, or of a kind not read."""
    kinds = IMAGE_FILES | OTHER_IMAGES
    others = [f for f in walked(folder) if f.suffix.lower() in kinds and not hidden(f) and f not in read]
    if others:
        names = listed([name_in(folder, file) for file in others])
        say(f"--task.dataset {folder}: {len(others)} images are not used: {names}")


def as_rows(images: list[tuple[Path, str]]) -> "Dataset":
    """Return the columns image (by its path) and label."""
    from datasets import Dataset, Features, Image, Value

    features = Features({"image": Image(), "label": Value("string")})
    columns = {"image": [str(file) for file, _ in images], "label": [label for _, label in images]}
    return Dataset.from_dict(columns, features=features)
