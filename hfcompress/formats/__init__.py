"""The files of runtimes: written, opened, checked against what they were made from; `FORMATS` lists the formats."""

from pathlib import Path

from hfcompress.architectures.kinds import is_causal_lm, is_click_model, is_image_model
from hfcompress.folders.guard import read_config
from hfcompress.formats.format import Format, Kind
from hfcompress.formats.known.compressed_tensors import COMPRESSED_TENSORS
from hfcompress.formats.known.genai import GENAI
from hfcompress.formats.known.gguf import GGUF
from hfcompress.formats.known.litert import LITERT
from hfcompress.formats.known.onnx import ONNX_CLICKS, ONNX_IMAGES, ONNX_TEXT
from hfcompress.formats.known.patched import PATCHED
from hfcompress.formats.known.tensorrt import TENSORRT_ONNX
from hfcompress.formats.known.transformers import TRANSFORMERS

FORMATS: dict[str, Format] = {
    "litert": LITERT,
    "tensorrt-onnx": TENSORRT_ONNX,
    "onnx-genai": GENAI,
    "gguf": GGUF,
    "onnx-clicks": ONNX_CLICKS,
    "onnx-images": ONNX_IMAGES,
    "onnx-text": ONNX_TEXT,
    "patched": PATCHED,
    "compressed-tensors": COMPRESSED_TENSORS,
    "transformers": TRANSFORMERS,
}
"""Name -> the format, in the order in which a folder is asked: the first that holds it has it."""


def format_of(folder: Path) -> Format:
    """Return the format of a model's folder; a folder of no other is transformers'."""
    return next(found for found in FORMATS.values() if found.holds(folder))


def format_called(word: str) -> Format:
    """Return the first format that records and report.json call so.

    Raises:
        KeyError: there is none.
    """
    found = next((found for found in FORMATS.values() if found.word == word), None)
    if found is None:
        raise KeyError(word)
    return found


def kind_of(folder: Path) -> Kind:
    """Return what the model in a folder is asked, by its config.json and the files beside it.

    Raises:
        UserError: see `guard.read_config`.
    """
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    if is_click_model(config):
        return "clicks"
    if is_causal_lm(config):
        return "language"
    return "images" if (folder / "preprocessor_config.json").is_file() or is_image_model(config) else "text"
