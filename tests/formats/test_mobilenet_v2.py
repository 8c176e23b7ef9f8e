"""Real weights and photographs: static int8 keeps top-1; a spoilt one does not, and the same check says so."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.mobilenet_v2 import CALIBRATION, answers, fp32_onnx, images, quantize
from hfcompress.formats.onnx_export import Array
from hfcompress.formats.onnx_image_stages import require_int8_weights
from hfcompress.formats.onnx_images import require_integer_kernels

ALLOWED = 0.015  # of top-1, as a point estimate


def keeps(logits: Array, reference: Array, labels: Array) -> bool:
    """The acceptance check."""
    before, after = (float((found.argmax(axis=1) == labels).mean()) for found in (reference, logits))
    return after >= before - ALLOWED


@pytest.mark.slow
def test_static_int8_keeps_top_1_within_1_5_points_and_spoilt_ones_do_not(real_data: Path, tmp_path: Path) -> None:
    pixels, labels = images(real_data / "mobilenet_v2")
    seen, tested = pixels[:CALIBRATION], np.arange(CALIBRATION, len(pixels))
    fp32 = fp32_onnx(real_data / "mobilenet_v2", tmp_path, pixels[:4])
    reference, truth = answers(fp32, pixels[tested]), labels[tested]
    assert (reference.argmax(axis=1) == truth).mean() > 0.8
    int8 = quantize("uint8", fp32, tmp_path / "int8.onnx", seen)
    require_int8_weights(onnx.load(str(int8)))
    assert require_integer_kernels(int8)["QLinearConv"] == 52
    assert keeps(answers(int8, pixels[tested]), reference, truth)

    part = tested[:120]  # spoilt ones are far off: fewer images show it
    short, truth = answers(fp32, pixels[part]), labels[part]
    assert keeps(answers(int8, pixels[part]), short, truth)
    assert not keeps(answers(int8, np.ascontiguousarray(pixels[part][:, ::-1])), short, truth), "channels swapped"
    assert not keeps(answers(int8, (pixels[part] + 1) / 2), short, truth), "scaled to [0, 1], not to [-1, 1]"
    noise = np.random.default_rng(0).normal(scale=0.02, size=(4, *pixels.shape[1:])).astype(np.float32)
    blind = quantize("uint8", fp32, tmp_path / "noise.onnx", noise)
    assert not keeps(answers(blind, pixels[part]), short, truth), "ranges calibrated on noise"
