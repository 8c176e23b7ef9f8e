"""A BERT with surgery.json is planned as what it is, not as its config.json alone says."""

from pathlib import Path
from typing import Any

import pytest

from hfcompress.architectures.encoder_spec import parameters
from hfcompress.architectures.models import load_classifier, load_tokenizer, save
from hfcompress.architectures.patches import apply, write_edits
from hfcompress.errors import UserError
from hfcompress.formats.size import sizes
from hfcompress.planning.encoders import disk_bytes
from hfcompress.planning.plan import Plan

LAYER = "bert.encoder.layer"
FIRST = f"{LAYER}.0.attention"
HEADS = [  # of layer 0, a head of sixteen is left of four, as structured_prune writes it
    *({"edit": "resize", "module": f"{FIRST}.self.{name}", "to": {"in_features": 64, "out_features": 16}}
      for name in ("query", "key", "value")),
    {"edit": "attributes", "module": f"{FIRST}.self", "to": {"num_attention_heads": 1, "all_head_size": 16}},
    {"edit": "resize", "module": f"{FIRST}.output.dense", "to": {"in_features": 16, "out_features": 64}},
]  # fmt: skip
NEURONS = [
    {"edit": "resize", "module": f"{LAYER}.2.intermediate.dense", "to": {"in_features": 64, "out_features": 20}},
    {"edit": "resize", "module": f"{LAYER}.2.output.dense", "to": {"in_features": 20, "out_features": 64}},
]
ALL_NEURONS = [
    {"edit": "resize", "module": f"{LAYER}.{i}.{name}", "to": to}
    for i in range(4)
    for name, to in (("intermediate.dense", {"out_features": 1}), ("output.dense", {"in_features": 1}))
]
FACTORS = [
    {"edit": "low_rank_linear", "module": f"{LAYER}.{i}.{name}.dense", "rank": 10}
    for i in range(3)
    for name in ("intermediate", "output", "attention.output")
]
TRAIN = [{"edit": "tt_embedding", "module": "bert.embeddings.word_embeddings", "rank": 8}]


@pytest.mark.parametrize(
    "edits",
    [HEADS, NEURONS, HEADS + NEURONS, FACTORS, NEURONS + FACTORS, TRAIN, HEADS + ALL_NEURONS],
    ids=["heads", "neurons", "both", "factors", "factors of a cut one", "tensor train", "hardly a neuron"],
)
def test_parameters_and_bytes_are_those_of_the_edited_model(
    tmp_path: Path, tiny_teacher: Path, edits: list[dict[str, Any]]
) -> None:
    network = load_classifier(tiny_teacher)
    before = sum(p.numel() for p in network.parameters())
    apply(network, edits)
    save(network, load_tokenizer(tiny_teacher), tmp_path)
    after = sum(p.numel() for p in network.parameters())
    shape = Plan().base(str(tmp_path)).shape
    assert shape.format == "surgery"
    assert abs(parameters(shape) - after) < 0.05 * (before - after) + 100, "biases are counted as if heads were there"
    assert disk_bytes(shape) == pytest.approx(sizes(tmp_path)["bytes"], rel=0.03)


def test_edits_that_are_not_a_berts_are_refused(tmp_path: Path, tiny_teacher: Path) -> None:
    save(load_classifier(tiny_teacher), load_tokenizer(tiny_teacher), tmp_path)
    for edit in (
        {"edit": "resize", "module": "resnet.stem", "to": {}},
        {"edit": "cp_conv", "module": "a", "rank": 1},
        {"edit": "tt_embedding", "module": "bert.embeddings.word_embeddings", "rank": 10**6},
    ):
        write_edits(tmp_path, [edit])
        with pytest.raises(UserError, match=r"surgery\.json does not fit the encoder"):
            Plan().base(str(tmp_path))
