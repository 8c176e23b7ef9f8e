"""`plan --device`: where each byte goes, whether it fits, and refusals."""

import json
from pathlib import Path

import pytest

from hfcompress.budget import Budget
from hfcompress.compress.quantize.bit_allocation import Allot
from hfcompress.errors import UserError
from hfcompress.planning.decoders import lines, memory, prediction
from hfcompress.planning.devices.memory import device, first_token_ms
from hfcompress.planning.plan import Plan, render
from hfcompress.recipes import legal_bert, summarize_7b


def planned_on(name: str) -> Plan:
    planned = Plan(name)
    summarize_7b.recipe(planned, **summarize_7b.arguments("full", Path("unused")))  # type: ignore[arg-type]
    return planned


def test_four_gigabytes_fit_a_board_and_not_what_ios_leaves() -> None:
    board, phone = planned_on("raspberry-pi-5"), planned_on("apple-a17-pro")
    assert board.memory is not None
    assert phone.memory is not None
    assert (board.memory["fits"], phone.memory["fits"]) == (True, False)
    assert not phone.ok
    assert "DOES NOT FIT" in render(phone)
    assert board.memory["bytes"]["kv_cache"] == 1024 * 131_072, "int8"
    assert abs(sum(board.memory["bytes"].values()) - board.memory["sum"]) <= len(board.memory["bytes"])
    assert "interpreter" not in phone.memory["bytes"]
    json.dumps(phone.as_dict(), allow_nan=False)


def test_the_prediction_is_the_tables_sum() -> None:
    on = device("raspberry-pi-5")
    found, table = prediction(summarize_7b.MISTRAL_7B, on, 2048), memory(summarize_7b.MISTRAL_7B, on, 2048)
    assert found["ram_mb"] == pytest.approx(table["sum"] / 1e6)
    assert found["first_token_ms"] == first_token_ms(summarize_7b.MISTRAL_7B, on, 2048)
    text = lines("model", table)
    assert any("*usable memory" in line for line in text), "an estimated number is marked"
    assert any(on.sources["sustained"] in line for line in text)


def test_memory_that_not_even_the_fewest_bits_fit_is_refused_and_never_planned_as_negative_bytes() -> None:
    with pytest.raises(UserError, match=r"budget\.ram_gb 0\.1: .* leaves 0\.00 MB"):
        Allot().predict(summarize_7b.MISTRAL_7B, calibration=None, ram_gb=0.1, context=512, kv_bits=8)


def test_what_no_device_can_tell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose from here"):
        Plan("toaster")
    planned = Plan("apple-a18")
    options = legal_bert.arguments("smoke", tmp_path) | {"budget": Budget()}
    with pytest.raises(UserError, match="only causal LMs"):
        legal_bert.recipe(planned, **options)  # type: ignore[arg-type]
