"""Image classification: a data set on disk or on the Hub, its columns, and what counts on it."""

import hashlib
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.errors import UserError
from hfcompress.tasks.image_data import ImageData, decode
from hfcompress.tasks.splits import (
    SPLITS,
    check_columns,
    class_names,
    class_values,
    first_line,
    names_repository,
    read_splits,
    with_validation,
)

if TYPE_CHECKING:
    from datasets import Dataset

DIGITS = "digits"
IMAGE_FILES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
TEST, VALIDATION = 0.3, 0.1  # of the digits


@dataclass(frozen=True)
class ImageClassification:
    """One label an image."""

    dataset: str = DIGITS
    """digits (embedded: scikit-learn's, 8x8), a Hub id (org/name or org/name@revision), a folder of parquet files
    named after their split, or a folder SPLIT/CLASS/image.jpg."""
    config: str | None = None
    """The data set's configuration on the Hub."""
    data_files: str | None = None
    """Which files of the folder, as a pattern."""
    image_column: str = "image"
    label_column: str = "label"
    group_column: str | None = None
    """Images of one group (a camera, a patient) are not independent: the statistics resample whole groups."""
    bad_images: Literal["refuse", "skip"] = "refuse"
    """What happens to images that cannot be decoded: refuse the data set, or leave them out and say how many."""
    metric: Literal["accuracy", "macro_f1"] = "accuracy"
    """What the best checkpoint is chosen by: accuracy or macro_f1."""
    max_train_examples: int | None = None
    """Only so many training images, drawn at random (the others too, in proportion); for trying things."""

    max_length: ClassVar[int] = 0  # a text's limit in tokens: images have none

    def __post_init__(self) -> None:
        if self.max_train_examples is not None and self.max_train_examples < 1:
            raise UserError(f"--task.max-train-examples {self.max_train_examples}: at least 1")

    def fingerprint(self) -> dict[str, Any]:
        """What stands for this task in a stage's key."""
        return {"data": self.data.fingerprint, "metric": self.metric}

    @property
    def identity(self) -> str:
        """The data set's name and a hash of its images, as a record names it: never a path of this machine."""
        return f"{Path(self.dataset).name}@{self.data.fingerprint[:16]}"

    @property
    def on_hub(self) -> bool:
        """Whether the data set's name is a Hub id."""
        return names_repository(self.dataset)

    @property
    def known_labels(self) -> list[str] | None:
        """The labels, for a plan: the embedded digits need not be read for them, and the Hub is not asked (None)."""
        if self.dataset == DIGITS:
            return [str(digit) for digit in range(10)]
        return None if self.on_hub else self.data.labels

    @cached_property
    def data(self) -> ImageData:
        """Load the data set once and decode every image of it.

        Raises:
            UserError: it is not there, a column is missing, a split is empty, an image cannot be decoded (and is not
                to be skipped), there is one class only, or a label is seen only in test.
        """
        raw = load_digits() if self.dataset == DIGITS else self._read()
        raw = {split: as_images(rows, self.image_column) for split, rows in raw.items()}
        columns, skipped = {}, {}
        for split, rows in raw.items():
            self._check_columns(split, rows)
            columns[split], skipped[split] = self._decodable(split, self._columns(rows))
        splits = with_validation(self.dataset, columns)
        values = class_values(self.label_column, splits)
        return self._numbered(splits, values, class_names(raw["train"].features[self.label_column], values), skipped)

    def _read(self) -> "dict[str, Dataset]":
        folder = Path(self.dataset).expanduser()
        return class_folders(folder) if is_class_folders(folder) else read_splits(
            self.dataset, self.config, self.data_files
        )

    def _check_columns(self, split: str, rows: "Dataset") -> None:
        wanted = {
            "--task.image-column": self.image_column,
            "--task.label-column": self.label_column,
            "--task.group-column": self.group_column,
        }
        check_columns(self.dataset, split, rows, wanted)
        if type(rows.features[self.image_column]).__name__ != "Image":
            raise UserError(f"--task.image-column {self.image_column}: it holds no images in the {split} split")

    def _columns(self, rows: "Dataset") -> "Dataset":
        """Keep image (as stored), label and group under these names; without a group column each is its own group."""
        from datasets import Image

        group = [str(v) for v in rows[self.group_column]] if self.group_column else [str(i) for i in range(len(rows))]
        kept = rows.select_columns([self.image_column, self.label_column])
        kept = kept.rename_columns({self.image_column: "image", self.label_column: "label"})
        return kept.cast_column("image", Image(decode=False)).add_column("group", group)

    def _decodable(self, split: str, rows: "Dataset") -> "tuple[Dataset, int]":
        """The rows whose images can be decoded, and how many cannot.

        Raises:
            UserError: one cannot, and bad images are to be refused; or none can.
        """
        good = []
        for i, row in enumerate(rows):
            try:
                decode(row["image"])
                good.append(i)
            except ValueError as error:
                if self.bad_images == "refuse":
                    name = Path((row["image"] or {}).get("path") or "").name
                    raise UserError(
                        f"--task.dataset {self.dataset}: row {i} of the {split} split"
                        f"{f' ({name})' if name else ''} is no whole image ({error}); "
                        "mend it, or leave such images out with --task.bad-images skip"
                    ) from None
        if not good:
            raise UserError(f"--task.dataset {self.dataset}: no image of the {split} split can be decoded")
        bad = len(rows) - len(good)
        if bad:
            print(f"  {split} split: {bad} of {len(rows)} images cannot be decoded and are left out", file=sys.stderr)
        return rows.select(good) if bad else rows, bad

    def _numbered(
        self, splits: "dict[str, Dataset]", values: list[Any], labels: list[str], skipped: dict[str, int]
    ) -> ImageData:
        import numpy as np
        from datasets import DatasetDict

        number = {value: i for i, value in enumerate(values)}
        share = min(1.0, self.max_train_examples / len(splits["train"])) if self.max_train_examples else 1.0
        digest = hashlib.sha256(repr(labels).encode())
        numbered = {}
        for split in SPLITS:
            rows = splits[split]
            if share < 1:  # at random: folders of classes are in the order of their classes
                order = np.random.default_rng(0).permutation(len(rows))[: max(1, round(share * len(rows)))]
                rows = rows.select(sorted(order.tolist()))
            ids = [number[value] for value in rows["label"]]
            rows = rows.remove_columns("label").add_column("label", ids)
            for row in rows:
                digest.update(row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes())
            digest.update(repr((ids, list(rows["group"]))).encode())
            numbered[split] = rows
        return ImageData(DatasetDict(numbered), labels, digest.hexdigest(), skipped)


def as_images(rows: "Dataset", column: str) -> "Dataset":
    """The rows, with a column of encoded images as one, which a file says that `datasets` has not written."""
    from datasets import Image, Value

    kind = rows.features.get(column)
    if kind == Value("binary") or (isinstance(kind, dict) and kind.get("bytes") == Value("binary")):
        return rows.cast_column(column, Image(decode=False))
    return rows


def load_digits() -> "dict[str, Dataset]":
    """scikit-learn's 1,797 handwritten digits (UCI, Alpaydin and Kaynak 1998), 8x8, split at random by class.

    The set does not say who wrote which: a writer's digits may stand in two splits.
    """
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Picture
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    found: Any = datasets.load_digits()
    pictures = [Picture.fromarray((pixels * 255 / 16).round().astype(np.uint8)) for pixels in found.images]
    order = np.arange(len(pictures))
    rest, test = train_test_split(order, test_size=TEST, stratify=found.target, random_state=0)
    train, validation = train_test_split(
        rest, test_size=VALIDATION / (1 - TEST), stratify=found.target[rest], random_state=0
    )
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return {
        split: Dataset.from_dict(
            {"image": [pictures[i] for i in rows], "label": [int(found.target[i]) for i in rows]}, features=features
        )
        for split, rows in (("train", train), ("validation", validation), ("test", test))
    }


def is_class_folders(folder: Path) -> bool:
    """Whether a folder is laid out as SPLIT/CLASS/image."""
    return any(folder.joinpath(name).is_dir() for names in SPLITS.values() for name in names)


def class_folders(folder: Path) -> "dict[str, Dataset]":
    """Split -> rows of a folder SPLIT/CLASS/image; classes are numbered in the order of their names in train.

    Raises:
        UserError: there is no train or test folder, or a split has no images.
    """
    from datasets import load_dataset

    found = {}
    for split, names in SPLITS.items():
        place = next((folder / name for name in names if (folder / name).is_dir()), None)
        if place is None:
            continue
        if not any(file.suffix.lower() in IMAGE_FILES for file in place.rglob("*")):
            raise UserError(f"--task.dataset {folder}: {place.name}/ has no images in folders named after their class")
        try:
            rows = load_dataset("imagefolder", data_dir=str(place), split="train", drop_labels=False)
        except (ValueError, OSError) as error:
            raise UserError(f"--task.dataset {place}: cannot be read ({first_line(error)})") from error
        names_of = rows.features["label"]
        found[split] = (rows, [names_of.names[label] for label in rows["label"]])
    for split in ("train", "test"):
        if split not in found:
            raise UserError(f"--task.dataset {folder}: it has no folder {split}/ with a folder for each class")
    return {
        split: rows.remove_columns("label").add_column("label", names) for split, (rows, names) in found.items()
    }
