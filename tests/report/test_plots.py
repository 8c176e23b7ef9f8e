"""The reports' pictures: what stands in them can be read."""

import pytest

from hfcompress.report import plots


@pytest.mark.parametrize("values", [(4.0, 4.0), (0.0, 0.0)])
def test_equal_values_have_an_axis_that_can_be_read(values: tuple[float, float]) -> None:
    drawn = plots.waterfall([("teacher", values[0]), ("int8", values[1])], "accuracy, points", 1)
    assert "e−" not in drawn
    assert "(+0.0)" in drawn


def test_small_values_are_told_apart_in_a_waterfall() -> None:
    drawn = plots.waterfall([("teacher", 0.031), ("slim", 0.018)], "size, MB", 2)
    assert ">0.031<" in drawn
    assert ">(-0.013)<" in drawn


def test_long_names_under_a_waterfall_are_slanted() -> None:
    names = ("teacher", "student", "structured-low-rank", "structured-low-rank-int8")
    drawn = {n: plots.waterfall([(name, 1.0 + i) for i, name in enumerate(names[:n])], "size", 1) for n in (2, 4)}
    assert ["rotate(-20" in text for text in drawn.values()] == [False, True]


@pytest.mark.parametrize(("bits", "is_white"), [(8, True), (4, False)])
def test_eight_bits_are_written_in_white_on_the_darkest_blue(bits: int, is_white: bool) -> None:
    drawn = plots.allotment({"model.layers.0.self_attn.q_proj": {"bits": bits, "group_size": 32}})
    assert ("#ffffff" in drawn) is is_white
