"""Image classification: a data set on disk or on the Hub, its columns, and what counts on it."""

import hashlib
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.errors import OptionError, UserError, needs
from hfcompress.tasks.columns import check_columns, groups_of
from hfcompress.tasks.examples import check_cells, labels_of
from hfcompress.tasks.find_splits import SPLITS, listed, say
from hfcompress.tasks.hold_out import ALL, families, require_classes, sample_of, splits_of_one, validation_rows
from hfcompress.tasks.image_data import Examples as ImageExamples
from hfcompress.tasks.image_data import ImageData, decode
from hfcompress.tasks.image_folders import class_folders, is_class_folders
from hfcompress.tasks.labels import Classes, classes_of, marks_of_missing
from hfcompress.tasks.overlap import Keys, Overlap, checked
from hfcompress.tasks.splits import read_splits
from hfcompress.tasks.task import Labelled

if TYPE_CHECKING:
    from datasets import Dataset

DIGITS = "digits"
LEAST_IMAGES = 2  # that batch norms can be trained on
TEST, VALIDATION = 0.3, 0.1  # of the digits


@dataclass(frozen=True)
class ImageClassification(Labelled):
    """One label an image."""

    version: ClassVar[int] = 1
    name: ClassVar[str] = "image-classification"
    pipeline_tag: ClassVar[str] = "image-classification"
    auto_class: ClassVar[str | None] = "AutoModelForImageClassification"
    takes: ClassVar[str] = "an image classifier"
    unit: ClassVar[str] = "images"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "micro_f1", "macro_f1", "recall_at_90_precision", "ece")
    drops: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    purpose: ClassVar[str] = "Labels images like those of its test set with one of {labels} labels"
    measure: ClassVar[str] = "hfcompress.evaluation.measure_images:MeasureImages"
    budget: ClassVar[str] = "ImageBudget"
    page: ClassVar[str] = "hfcompress.report.pages:IMAGES"
    has_images: ClassVar[bool] = True
    varied: ClassVar[bool] = True

    dataset: str = DIGITS
    """digits (embedded: scikit-learn's, 8x8), a Hub id (org/name or org/name@revision), a folder of parquet files
    named after their split, a folder SPLIT/CLASS/image.jpg, or CLASS/image.jpg (split by a hash of each image)."""
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
    labels: tuple[str, ...] | None = None
    """The classes in order: names for integer labels (up down), or the order of labels that are names."""
    overlap: Overlap = "refuse"
    """What happens where a group stands in two splits: refuse the data, or drop such images from train (and
    validation, where they stand in test). Images that are equal byte for byte are counted, and dropped alike."""
    metric: Literal["accuracy", "macro_f1"] = "accuracy"
    """What the best checkpoint is chosen by: accuracy or macro_f1."""
    max_train_examples: int | None = None
    """Only so many training images, drawn at random (the others too, in proportion); for trying things."""

    max_length: ClassVar[int] = 0  # a text's limit in tokens: images have none

    def __post_init__(self) -> None:
        if self.labels is not None:  # a list, where a lock was read
            object.__setattr__(self, "labels", tuple(map(str, self.labels)))
        if self.max_train_examples is not None and self.max_train_examples < 1:
            raise OptionError("max_train_examples", "at least 1", self.max_train_examples)

    def fingerprint(self) -> dict[str, Any]:
        """What stands for this task in a stage's key."""
        return {"data": self.data.fingerprint, "metric": self.metric}

    def encode(self, processor: Any, split: str) -> ImageExamples:
        return self.data.examples(processor, split)

    def padded_by(self, processor: Any) -> None:
        return None

    def excerpts(self, split: str) -> list[str]:
        return [f"{split} image {i}" for i in range(len(self.data.splits[split]))]

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
        named = self._check_columns(raw)
        columns, skipped = {}, {}
        for split, rows in raw.items():
            columns[split], skipped[split] = self._decodable(split, self._columns(split, rows, named[split]))
        splits, notes = self._held_apart(columns)
        feature = next(iter(raw.values())).features[self.label_column]
        labels = {split: [str(label) for label in rows["label"]] for split, rows in splits.items()}
        option = f"--task.label-column {self.label_column}"
        classes = classes_of(option, labels, self.labels, getattr(feature, "names", None))
        return replace(self._numbered(splits, classes, skipped), notes=notes)

    def _read(self) -> "dict[str, Dataset]":
        folder = Path(self.dataset).expanduser()
        return (
            class_folders(folder)
            if is_class_folders(folder)
            else read_splits(self.dataset, self.config, self.data_files)
        )

    def _check_columns(self, splits: "dict[str, Dataset]") -> dict[str, list[str | None]]:
        """Return split -> the label of every row; raise UserError for columns that are not what they should be."""
        wanted = {
            "--task.image-column": self.image_column,
            "--task.label-column": self.label_column,
            "--task.group-column": self.group_column,
        }
        check_columns(self.dataset, splits, wanted, "--task")
        for split, rows in splits.items():
            if type(rows.features[self.image_column]).__name__ != "Image":
                raise UserError(f"--task.image-column {self.image_column}: it holds no images in the {split} split")
        columns: dict[str, str | None] = {"--task.group-column": self.group_column}
        check_cells(splits, columns, {"--task.label-column": self.label_column})
        labels = labels_of(splits, self.label_column, "--task.label-column")
        marks = marks_of_missing({label for found in labels.values() for label in found if label}, self.labels)
        for split, found in labels.items():
            if missing := sum(not label or label in marks for label in found):
                raise UserError(
                    f"--task.label-column {self.label_column}: {missing} rows of the {split} split have no label"
                    f"{f' ({listed(sorted(marks))})' if marks else ''}; drop them"
                )
        return labels

    def _columns(self, split: str, rows: "Dataset", labels: list[str | None]) -> "Dataset":
        """Keep image (as stored), label and group under these names; without a group column each is its own group."""
        from datasets import Image

        group = groups_of(rows, self.group_column, "--task.group-column", split)
        kept = rows.select_columns([self.image_column]).rename_columns({self.image_column: "image"})
        kept = kept.cast_column("image", Image(decode=False)).add_column("label", labels)
        return kept.add_column("group", group)

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

    def _held_apart(self, splits: "dict[str, Dataset]") -> "tuple[dict[str, Dataset], tuple[str, ...]]":
        """Train, validation and test with no group in two of them, and what a reader of the report must know.

        Images that stand in two splits, byte for byte, are counted, and left out where `overlap` says so: a camera
        that sees nothing writes the same image each time.

        Raises:
            UserError: a group stands in two splits, and is to be refused; or there are too few to split.
        """
        if ALL in splits:
            rows, found = splits[ALL], hashes(splits[ALL])
            names = families(list(rows["group"]) if self.group_column else found, found)
            parts = splits_of_one(self.dataset, names, rows["label"], "--task")
            splits = {split: rows.select(which) for split, which in parts.items()}
        keys = {split: self._keys(rows) for split, rows in splits.items()}
        kept, notes = checked(self.dataset, keys, self.overlap, "--task")
        splits = {split: rows.select(kept[split]) for split, rows in splits.items()}
        if "validation" not in splits:
            rows = splits["train"]
            names = families(list(rows["group"]), hashes(rows))
            train, validation = validation_rows(self.dataset, names, "--task")
            splits = {"train": rows.select(train), "validation": rows.select(validation), "test": splits["test"]}
        seen = {split: set(hashes(rows)) for split, rows in splits.items()}
        for one, other in combinations(SPLITS, 2):
            if both := len(seen[one] & seen[other]):
                notes.append(
                    f"{both} images of {other} stand byte for byte in {one} too (--task.overlap drop leaves them out)."
                )
        for note in notes:
            say(f"--task.dataset {self.dataset}: {note}")
        return splits, tuple(notes)

    def _keys(self, rows: "Dataset") -> Keys:
        """What of a split must not stand in another one: its groups and, where they are to be dropped, its images."""
        images: list[str | None] = [*hashes(rows)] if self.overlap == "drop" else [None] * len(rows)
        return Keys(images, list(rows["group"]) if self.group_column else None, "images")

    def _numbered(self, splits: "dict[str, Dataset]", classes: Classes, skipped: dict[str, int]) -> ImageData:
        from datasets import DatasetDict

        require_classes(self.max_train_examples, len(classes.names))
        share = min(1.0, self.max_train_examples / len(splits["train"])) if self.max_train_examples else 1.0
        digest = hashlib.sha256(repr(classes.names).encode())
        numbered = {}
        for split in SPLITS:
            rows = splits[split]
            if share < 1:  # at random: folders of classes are in the order of their classes
                rows = rows.select(sample_of(list(rows["label"]), share))
            if split == "train" and len(rows) < LEAST_IMAGES:
                option = f"--task.max-train-examples {self.max_train_examples}"
                raise UserError(
                    f"{option if share < 1 else f'--task.dataset {self.dataset}'}: {len(rows)} training image; "
                    f"a network is trained on {LEAST_IMAGES} at least"
                )
            ids = [classes.number[label] for label in rows["label"]]
            rows = rows.remove_columns("label").add_column("label", ids)
            for row in rows:
                digest.update(content(row["image"]))
            digest.update(repr((ids, list(rows["group"]))).encode())
            numbered[split] = rows
        return ImageData(DatasetDict(numbered), classes.names, digest.hexdigest(), skipped)


def content(stored: dict[str, Any]) -> bytes:
    """The encoded image that a row holds, or that lies where it says."""
    return stored["bytes"] or Path(stored["path"]).read_bytes()


def hashes(rows: "Dataset") -> list[str]:
    """SHA-256 of every encoded image."""
    return [hashlib.sha256(content(row["image"])).hexdigest() for row in rows]


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
    needs("PIL")
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
