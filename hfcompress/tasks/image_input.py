"""An image as it is stored and as a model reads it: decoded upright in RGB, then processed to pixel values."""

import io
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError, needs
from hfcompress.folders.foreign_files import refuse_pointer

if TYPE_CHECKING:
    from PIL.Image import Image

RUNS_A_PROGRAM = "EPS"  # Pillow calls Ghostscript for it
SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def decode(stored: Mapping[str, Any] | None) -> "Image":
    """Return the image that a row or a file holds, upright (by its EXIF orientation) and in RGB, whatever its mode.

    16 bits are scaled to 8; transparency is dropped, as transformers' `load_image` does; of an animation the first
    frame counts.

    Args:
        stored: `bytes`, or None and a `path`.

    Raises:
        ValueError: it holds no whole image.
        UserError: it is a Git LFS pointer.
    """
    import struct

    needs("PIL")
    from PIL import Image, ImageOps

    if stored is None or (stored["bytes"] is None and not stored["path"]):
        raise ValueError("there is none")
    if stored["bytes"] is None:
        refuse_pointer(Path(stored["path"]))
    source = io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, odd EXIF data and palettes
            with Image.open(source, formats=readable_formats()) as image:
                image.load()
                return in_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(f"more than {most:,} pixels; make it smaller") from None
    except (OSError, SyntaxError, EOFError, ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(" ".join(reason.split())[:160]) from error


@cache
def readable_formats() -> tuple[str, ...]:
    """Names of the formats that Pillow decodes by itself."""
    needs("PIL")
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.ID if name != RUNS_A_PROGRAM)


def in_rgb(image: "Image") -> "Image":
    """Return an image in RGB, 8 bits.

    Raises:
        ValueError: its pixels are floating-point numbers, whose range is not known.
    """
    needs("PIL")
    import numpy as np
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels; save it in 8 or 16 bits")
    if image.mode in SIXTEEN_BITS:  # convert() would make everything above 255 white
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        if image.mode != "I" or values.max(initial=0) > 255:  # 32 bits may hold 8 or 16
            values //= 256
        image = Image.fromarray(values.astype(np.uint8))
    return image.convert("RGB")


def pixel_values(processor: Any, images: "Iterable[Image]", channels: int = 3) -> Any:
    """Return float32 [images, channels, height, width] of RGB images, by a model's own image processor.

    Each is processed by itself, so that images of any shapes go together and one at a time is held decoded.

    Args:
        channels: that the model reads: 3, or 1 for a model of gray images.

    Raises:
        UserError: the processor normalizes three colors differently, and the model reads one; it leaves images in
            different sizes; or its numbers make no pixel values.
    """
    import numpy as np

    options = {name: one_value(processor, name) for name in ("image_mean", "image_std")} if channels == 1 else {}
    found = []
    for image in images:
        array = np.asarray(image.convert("L"))[..., None] if channels == 1 else image
        # Of a very small image the processor would take the height for the channels.
        try:
            with np.errstate(all="ignore"):  # what comes of an image_std of 0 is looked at below
                made = processor([array], return_tensors="np", input_data_format="channels_last", **options)
            found.append(np.asarray(made["pixel_values"], dtype=np.float32))
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
            reason = " ".join(str(error).split())[:160]
            said = f"preprocessor_config.json makes no pixel values of an image ({reason}); mend it"
            raise UserError(said) from error
        if not np.isfinite(found[-1]).all():
            raise UserError("preprocessor_config.json makes pixel values of nan or inf (image_std of 0?); mend it")
        if found[-1].shape != found[0].shape:
            raise UserError(
                "preprocessor_config.json makes images of different sizes of images of different sizes; give it "
                "do_resize and a size"
            )
    return np.concatenate(found)


def one_value(processor: Any, name: str) -> Any:
    """Return the mean or deviation of a processor for one channel.

    Raises:
        UserError: it has one for each color, and they differ.
    """
    values = getattr(processor, name, None)
    if not isinstance(values, list | tuple):
        return values
    if len(set(values)) != 1:
        raise UserError(
            f"the model takes 1 channel, and its preprocessor_config.json has {len(values)} numbers for {name}; "
            "give it the one of gray images"
        )
    return [values[0]]


def channels_of(config: Mapping[str, Any]) -> int:
    """Return the channels of the images that a model reads, by its config.json: 3 where that does not say it."""
    channels = config.get("num_channels", 3)
    return channels if isinstance(channels, int) else 3
