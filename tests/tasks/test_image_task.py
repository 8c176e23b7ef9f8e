"""Images are decoded whatever their mode, checked before anything is trained, and split without leaks."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture

from hfcompress.errors import UserError
from hfcompress.tasks.image_classification import ImageClassification, content
from hfcompress.tasks.image_data import Augment
from tests.image_models import processor


def picture(mode: str = "RGB", shade: int = 100, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    random = np.random.default_rng(shade).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Picture.fromarray(random).convert(mode).save(stream, form)
    return stream.getvalue()


def class_folders(folder: Path, **extra: bytes) -> Path:
    for split in ("train", "test"):
        for number, label in enumerate(("cat", "dog")):
            (folder / split / label).mkdir(parents=True)
            for i in range(30):
                shade = 100 * number + 200 * (split == "test") + i
                (folder / split / label / f"{i}.png").write_bytes(picture(shade=shade))
    for place, encoded in extra.items():
        file = folder / place.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".png").write_bytes(encoded)
    return folder


def test_digits_are_embedded_and_in_one_split_each() -> None:
    data = ImageClassification().data
    assert data.labels == [str(digit) for digit in range(10)]
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 1077, "validation": 180, "test": 540}
    stored = [row["image"]["bytes"] for rows in data.splits.values() for row in rows]
    assert len(set(stored)) > 1780, "a few digits are drawn alike"
    assert ImageClassification().data.fingerprint == data.fingerprint


def test_a_folder_of_classes_is_read_and_a_validation_split_set_aside(tmp_path: Path) -> None:
    data = ImageClassification(dataset=str(class_folders(tmp_path))).data
    assert data.labels == ["cat", "dog"]
    assert len(data.splits["test"]) == 60
    assert 0 < len(data.splits["validation"]) < 20
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 60


def test_an_image_in_two_splits_is_noted_and_can_be_dropped(tmp_path: Path) -> None:
    same = {"train__cat__known": picture(shade=7777), "test__dog__again": picture(shade=7777)}
    folder = str(class_folders(tmp_path, **same))
    noted = ImageClassification(dataset=folder).data
    assert [note.split(" (")[0] for note in noted.notes if "of test stand" in note] == [
        f"1 images of test stand byte for byte in {split} too"
        for split in ("train", "validation")
        if picture(shade=7777) in {content(row["image"]) for row in noted.splits[split]}
    ]
    assert any("--task.overlap drop" in note for note in noted.notes)
    data = ImageClassification(dataset=folder, overlap="drop").data
    stored = {split: {content(row["image"]) for row in rows} for split, rows in data.splits.items()}
    assert len(stored["test"]) == 61
    assert len(stored["train"] | stored["validation"]) == 60
    assert picture(shade=7777) not in stored["train"] | stored["validation"]
    assert data.notes == ("1 of 61 images of test stand in train too: 1 of 61 rows of train left out.",)


def test_equal_images_of_train_are_set_aside_together(tmp_path: Path) -> None:
    twins = {f"train__cat__{i}": picture(shade=i) for i in range(100, 130)}  # as train/dog has them
    data = ImageClassification(dataset=str(class_folders(tmp_path, **twins))).data
    train, validation = ({content(row["image"]) for row in data.splits[s]} for s in ("train", "validation"))
    assert len(train | validation) == 60
    assert not train & validation
    assert not data.notes


def test_grey_cmyk_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    odd = {"train__cat__grey": picture("L"), "train__cat__alpha": picture("RGBA"), "train__dog__bits": picture("1")}
    odd["train__dog__cmyk"] = picture("CMYK", form="JPEG")
    data = ImageClassification(dataset=str(class_folders(tmp_path, **odd))).data
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 64
    assert {image.mode for split in data.splits for image in data.images(split)} == {"RGB"}


@pytest.mark.parametrize("bad", [b"", picture()[:80], picture("RGB", form="JPEG")[:200], b"no image at all"])
def test_a_damaged_image_is_refused_by_name_or_skipped_with_a_count(
    tmp_path: Path, bad: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(class_folders(tmp_path, train__cat__broken=bad))
    with pytest.raises(UserError, match=r"broken\.png.*--task\.bad-images skip"):
        _ = ImageClassification(dataset=folder).data
    data = ImageClassification(dataset=folder, bad_images="skip").data
    assert data.skipped == {"train": 1, "test": 0}
    assert "1 of 61 images cannot be decoded" in capsys.readouterr().err


def test_a_class_with_one_image_is_kept_where_it_stands(tmp_path: Path) -> None:
    data = ImageClassification(dataset=str(class_folders(tmp_path, train__owl__one=picture()))).data
    assert data.labels == ["cat", "dog", "owl"]


def test_a_class_that_only_test_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'owl' stands only in test"):
        _ = ImageClassification(dataset=str(class_folders(tmp_path, test__owl__one=picture()))).data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "photo"}, "photo: the train, validation and test splits have no such column"),
        ({"image_column": "label"}, "--task.image-column label: it holds no images"),
        ({"group_column": "camera"}, "--task.group-column camera"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, options: dict[str, str], message: str) -> None:
    features = Features({"image": Image(), "label": Value("int64")})
    rows = {"image": [{"bytes": picture(shade=i), "path": None} for i in range(4)], "label": [0, 1, 0, 1]}
    for split in ("train", "validation", "test"):
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    assert ImageClassification(dataset=str(tmp_path)).data.labels == ["0", "1"]
    with pytest.raises(UserError, match=message):
        _ = ImageClassification(dataset=str(tmp_path), **options).data


def test_a_part_of_sorted_folders_has_every_class_and_no_part_of_nothing(tmp_path: Path) -> None:
    data = ImageClassification(dataset=str(class_folders(tmp_path)), max_train_examples=12).data
    assert {split: len(set(data.label_ids(split))) for split in ("train", "test")} == {"train": 2, "test": 2}
    with pytest.raises(UserError, match="max_train_examples 0"):
        ImageClassification(max_train_examples=0)


def test_rows_without_an_image_or_a_label_are_named(tmp_path: Path) -> None:
    features = Features({"image": Image(), "label": Value("string")})
    pictures = [{"bytes": picture(shade=i), "path": None} for i in range(3)]
    for split in ("train", "validation", "test"):
        rows = {"image": [*pictures, None], "label": ["a", "b", "a", "b"]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(UserError, match="row 3 of the train split is no whole image"):
        _ = ImageClassification(dataset=str(tmp_path)).data
    assert len(ImageClassification(dataset=str(tmp_path), bad_images="skip").data.splits["train"]) == 3
    rows = {"image": [*pictures, pictures[0]], "label": ["a", "b", None, "b"]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="1 rows of the train split have no label"):
        _ = ImageClassification(dataset=str(tmp_path), bad_images="skip").data


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="has no images"):
        _ = ImageClassification(dataset=str(tmp_path)).data


def test_training_images_vary_and_the_others_do_not() -> None:
    data = ImageClassification().data
    plain = data.examples(processor(16), "test")
    assert torch.equal(plain[3]["pixel_values"], plain[3]["pixel_values"])
    assert plain[3]["pixel_values"].shape == (3, 16, 16)
    torch.manual_seed(0)
    varied = data.examples(processor(16), "test", Augment(flip=True, shift=0.2))
    seen = []
    for epoch in range(8):
        varied.set_epoch(epoch)
        seen.append(varied[3]["pixel_values"])
        assert torch.equal(varied[3]["pixel_values"], seen[-1]), "the same after a kill as without one"
    assert len({tuple(pixels.flatten().tolist()) for pixels in seen}) > 4
    pixels = torch.arange(12.0).view(1, 3, 4)
    flipped = [Augment(flip=True)(pixels, epoch, 0) for epoch in range(12)]
    assert {tuple(image.flatten().tolist()) for image in flipped} == {
        tuple(image.flatten().tolist()) for image in (pixels, pixels.flip(-1))
    }
    with pytest.raises(UserError, match="shift"):
        Augment(shift=1.5)
