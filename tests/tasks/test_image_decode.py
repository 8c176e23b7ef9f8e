"""Pictures as they are stored become the pixels that transformers makes of them, one at a time, or one clear line."""

import gc
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hfcompress.cli import dispatch
from hfcompress.errors import UserError
from hfcompress.formats.runtimes.image_predictor import ImagePredictor, same_shapes
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.image_input import decode, pixel_values
from hfcompress.training.trainer import Train, require_pairs
from tests.image_models import processor, write_mobilenet


def photograph(side: int = 24, shade: int = 0) -> Image.Image:
    random = np.random.default_rng(shade)
    return Image.fromarray(random.integers(0, 256, (side, side * 2, 3), dtype=np.uint8))


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return saved(photograph(), "JPEG", exif=exif)


def modes() -> Iterator[Any]:
    """A file of each mode that stands for 8 bits."""
    picture = photograph()
    for mode in ("L", "RGB", "RGBA", "LA", "P", "1"):
        yield pytest.param(saved(picture.convert(mode)), id=mode)
    yield pytest.param(saved(picture.convert("P"), transparency=3), id="P-transparent")
    yield pytest.param(saved(picture.convert("CMYK"), "JPEG"), id="CMYK")
    for orientation in range(1, 9):
        yield pytest.param(turned(orientation), id=f"orientation-{orientation}")
    frames = [photograph(shade=i) for i in (1, 2)]
    for form in ("GIF", "WEBP"):
        yield pytest.param(saved(frames[0], form, save_all=True, append_images=frames[1:]), id=f"animated-{form}")


@pytest.mark.parametrize("stored", modes())
def test_an_image_is_what_transformers_loads(stored: bytes, tmp_path: Path) -> None:
    from transformers.image_utils import load_image

    (tmp_path / "image").write_bytes(stored)
    expected = load_image(str(tmp_path / "image"))
    for row in ({"bytes": stored, "path": None}, {"bytes": None, "path": str(tmp_path / "image")}):
        found = decode(row)
        assert (found.mode, found.size) == ("RGB", expected.size)
        assert np.array_equal(found, expected)


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    for form in ("PNG", "TIFF"):
        found = decode({"bytes": saved(Image.fromarray(values), form), "path": None})
        assert np.asarray(found)[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    wide = Image.fromarray(values.astype(np.int32))
    assert np.asarray(decode({"bytes": saved(wide, "TIFF"), "path": None}))[0, :, 1].tolist() == [0, 0, 1, 128, 255]
    small = Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32))
    assert np.asarray(decode({"bytes": saved(small, "TIFF"), "path": None}))[0, :, 2].tolist() == [0, 7, 255]


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (b"", "cannot identify"),
        (b"Thumbs", "cannot identify"),
        (saved(photograph(), "JPEG")[:300], "(?i)truncated"),
        (saved(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"), "floating-point pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n", "cannot identify"),
    ],
)
def test_what_is_no_whole_image_is_said_in_one_line(stored: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        decode({"bytes": stored, "path": None})
    assert "\n" not in str(error.value)


def test_an_image_of_too_many_pixels_is_one_line_and_a_large_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {"bytes": saved(photograph()), "path": None}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 48 - 1)
    assert decode(stored).size == (48, 24), "Pillow only warns up to twice as many"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="more than 200 pixels; make it smaller"):
        decode(stored)


def test_one_channel_is_what_the_processor_makes_of_gray() -> None:
    made = processor(16)
    gray = photograph().convert("L")
    found = pixel_values(made, [gray.convert("RGB")], channels=1)
    assert found.shape[1] == 1
    three = pixel_values(made, [gray.convert("RGB")])
    assert np.array_equal(found[:, 0], three[:, 0])
    made.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(UserError, match=r"takes 1 channel, .* has 3 numbers for image_mean"):
        pixel_values(made, [gray], channels=1)


def one_channel(folder: Path) -> Path:
    """A MobileNetV2 of gray images."""
    from transformers import AutoModelForImageClassification

    write_mobilenet(folder, ["a", "b"], side=16, width=0.1)
    config = AutoModelForImageClassification.from_pretrained(folder).config
    config.num_channels = 1
    torch.manual_seed(0)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    return folder


def test_a_network_of_gray_images_labels_them_and_is_no_base(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    folder = one_channel(tmp_path / "gray")
    predictor = ImagePredictor(folder, 1)
    picture = photograph()
    pixels = pixel_values(predictor.processor, [picture], channels=1)
    with torch.inference_mode():
        expected = AutoModelForImageClassification.from_pretrained(folder)(torch.from_numpy(pixels)).logits.numpy()
    assert np.allclose(predictor.logits([picture]), expected, atol=1e-6)
    assert predictor.request().shape == (1, 1, 16, 16)
    with pytest.raises(UserError, match=r"takes 1 channel\(s\), and the images of a recipe have 3"):
        dispatch(["plan", "iot_camera", "--base", str(folder)])


def test_images_of_many_shapes_get_the_answers_that_they_get_alone(tmp_path: Path) -> None:
    predictor = ImagePredictor(write_mobilenet(tmp_path / "model", ["a", "b"], side=16, width=0.1), 1)
    pictures = [photograph(side, side) for side in (3, 16, 40, 9)]
    together = predictor.logits(pictures)
    assert np.abs(together - np.concatenate([predictor.logits([one]) for one in pictures])).max() < 1e-5
    arrays = [np.zeros(shape) for shape in ((1, 2), (1, 2), (1, 2), (2, 2), (1, 2))]
    assert [len(batch) for batch in same_shapes(arrays, 2)] == [2, 1, 1, 1]


def test_of_many_photographs_one_is_held_decoded(tmp_path: Path) -> None:
    predictor = ImagePredictor(write_mobilenet(tmp_path / "model", ["a", "b"], side=16, width=0.1), 1)
    held = []

    def pictures() -> Iterator[Image.Image]:
        for i in range(70):
            gc.collect()
            held.append(sum(isinstance(thing, Image.Image) and thing.size == (100, 50) for thing in gc.get_objects()))
            yield photograph(50, i)

    gc.collect()
    gc.freeze()  # what is there already is neither searched nor counted: that took a second an image
    try:
        assert predictor.logits(pictures()).shape == (70, 2)
    finally:
        gc.unfreeze()
    assert max(held) <= 3, "not the 32 of a batch, and not all"


def test_predict_answers_images_in_order_and_stops_at_the_first_bad_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(write_mobilenet(tmp_path / "model", ["a", "b"], side=16, width=0.1))
    files = [tmp_path / f"{i}\u2028.png" for i in range(40)]
    for i, file in enumerate(files):
        file.write_bytes(saved(photograph(shade=i)))
    assert dispatch(["predict", model, "--format", "json", "--image", *map(str, files)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["image"] for answer in answers] == [str(file) for file in files]
    files[35].write_bytes(saved(photograph())[:200])
    (tmp_path / "list.txt").write_text("\r\n".join(map(str, files)), encoding="utf-8-sig")
    with pytest.raises(UserError, match=r"list\.txt, line 36: .*35.* is no whole image"):
        dispatch(["predict", model, str(tmp_path / "list.txt"), "--format", "json"])
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert again == answers[:35]


@pytest.mark.parametrize(
    ("make", "words"),
    [(Path.mkdir, "a folder"), (lambda path: path.symlink_to("gone"), "a link to nothing"), (id, "no such file")],
)
def test_what_is_no_file_is_refused_before_the_model_is_loaded(tmp_path: Path, make: Any, words: str) -> None:
    model = write_mobilenet(tmp_path / "model", ["a", "b"], side=16, width=0.1)
    os.truncate(model / "model.safetensors", 100)
    make(tmp_path / "x.png")
    with pytest.raises(UserError, match=rf"^--image .*x\.png: {words}"):
        dispatch(["predict", str(model), "--image", str(tmp_path / "x.png")])


def test_a_training_set_of_one_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"--task\.max-train-examples 1: train has 10 classes"):
        _ = ImageClassification(max_train_examples=1).data


def test_batches_of_one_image_are_refused_where_batch_norms_are_trained() -> None:
    network: Any = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    with pytest.raises(UserError, match=r"per_device_train_batch_size 1"):
        require_pairs(network, Train(per_device_train_batch_size=1))
    require_pairs(network, Train(per_device_train_batch_size=2))
    require_pairs(network[:1], Train(per_device_train_batch_size=1))


def test_images_that_a_processor_leaves_in_their_sizes_do_not_share_an_array() -> None:
    made = processor(16)
    made.do_resize = made.do_center_crop = False
    assert pixel_values(made, (photograph(16, i) for i in range(3))).shape == (3, 3, 16, 32)
    with pytest.raises(UserError, match="do_resize and a size"):
        pixel_values(made, [photograph(16), photograph(20)])


def test_export_reads_the_images_of_a_folder_and_no_hidden_file(tmp_path: Path) -> None:
    from hfcompress.runs.delivery import stored_images

    (tmp_path / "below").mkdir()
    for name in ("b.png", "._b.png", ".DS_Store", "Thumbs.db", "below/a.JPG"):
        (tmp_path / name).write_bytes(b"")
    assert [Path(row["path"]).name for row in stored_images(tmp_path)] == ["b.png", "a.JPG"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": {"longest_edge": 32}}, "makes no pixel values of an image (Size must contain"),
        ({"image_mean": [0.5] * 4}, "makes no pixel values of an image (mean must have 3 elements"),
        ({"rescale_factor": "1/255"}, "makes no pixel values of an image"),
        ({"image_std": [0.0, 0.0, 0.0]}, "makes pixel values of nan or inf (image_std of 0?)"),
    ],
)
def test_a_processor_that_makes_no_pixel_values_is_one_line(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = write_mobilenet(tmp_path / "model", ["a", "b"], side=16)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    with pytest.raises(UserError) as error:
        ImagePredictor(folder, 1).logits([Image.new("RGB", (20, 20), "red")])
    assert words in str(error.value)
    assert "\n" not in str(error.value)
