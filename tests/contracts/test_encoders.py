"""What every encoder of the table keeps: named places, planned sizes, cuts that compute what masks did, exports."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from hfcompress import architectures
from hfcompress.architectures import ENCODERS, encoders
from hfcompress.architectures.encoder import Encoder
from hfcompress.architectures.encoder_spec import Shape, parameters
from hfcompress.architectures.native import config_changes
from hfcompress.architectures.patched_encoders import linear_sizes
from hfcompress.compress.factorize.ranks import put_tensor_train
from hfcompress.compress.prune.channel_groups import cut_and_check, find_groups
from hfcompress.compress.prune.pruner import Pruner
from hfcompress.compress.quantize.qat import prepare, write_int8
from hfcompress.errors import UserError
from hfcompress.formats import onnx_export
from hfcompress.formats.runtimes.sessions import onnx_session
from hfcompress.training.teacher_outputs import Wanted, forward

SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
LABELS, WORDS, ROWS = 3, 60, 40
TOLERANCE = 1e-5


def network_of(kind: str) -> Any:
    encoder = ENCODERS[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        **{encoder.name(ours): size for ours, size in SIZES.items()},
        **dict.fromkeys(encoder.as_hidden_size, SIZES["hidden_size"]),
        vocab_size=WORDS,
        max_position_embeddings=ROWS,
        num_labels=LABELS,
        pad_token_id=1,
    )
    network = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in network.parameters():  # biases and norms too, or a swap of them would not be seen
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def batch_of(network: Any, length: int = 9) -> dict[str, Any]:
    """Two texts, the second padded."""
    ids = torch.randint(5, WORDS, (2, length), generator=torch.Generator().manual_seed(1))
    ids[1, length // 2 :] = network.config.pad_token_id
    return {"input_ids": ids, "attention_mask": (ids != network.config.pad_token_id).long()}


def logits_of(network: Any, batch: dict[str, Any]) -> Any:
    with torch.inference_mode():
        return network(**batch).logits


@pytest.fixture(params=ENCODERS)
def network(request: pytest.FixtureRequest) -> Any:
    return network_of(request.param)


def test_the_planned_parameters_are_the_real_ones(network: Any) -> None:
    shape = Shape.from_config(network.config.to_dict(), LABELS)
    assert {ours: getattr(shape, ours) for ours in SIZES} == SIZES
    assert parameters(shape) == sum(p.numel() for p in network.parameters())


def test_the_linear_layers_have_the_names_and_sizes_that_are_planned(network: Any) -> None:
    planned = linear_sizes(Shape.from_config(network.config.to_dict(), LABELS))
    found = {name: network.get_submodule(name) for name in encoders.linear_names(network)}
    assert {name: (linear.in_features, linear.out_features) for name, linear in found.items()} == planned
    assert len(encoders.encoder_linears(network)) == 6 * SIZES["num_hidden_layers"]
    left = {module for module in network.modules() if isinstance(module, torch.nn.Linear)} - set(found.values())
    assert left == {encoders.classifier(network)}


def test_every_norm_and_table_on_the_residual_stream_is_found(network: Any) -> None:
    norms = {getattr(parent, name) for parent, name in encoders.layer_norms(network)}
    assert norms == {module for module in network.modules() if isinstance(module, torch.nn.LayerNorm)}
    tables = {getattr(encoders.body(network).embeddings, name) for name in encoders.tables(network)}
    assert tables == {module for module in network.modules() if isinstance(module, torch.nn.Embedding)}


def pruned_by_half(network: Any) -> tuple[Any, Any]:
    """Logits of the masked network, and the network that is cut as the masks say."""
    pruner = Pruner(network, heads=2, neurons=24, importance="magnitude", warm_up=0.0, cool_down=0.0)
    pruner.finish()
    masked = logits_of(network, batch_of(network))
    return masked, pruner.cut()


def require_same_answers(network: Any) -> Any:
    """Return the cut network, which answers as the masked one."""
    masked, small = pruned_by_half(network)
    torch.testing.assert_close(logits_of(small, batch_of(small)), masked, atol=TOLERANCE, rtol=TOLERANCE)
    return small


def test_a_cut_network_computes_what_the_masked_one_did_and_loads_natively(network: Any, tmp_path: Path) -> None:
    small = require_same_answers(network)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in network.parameters())
    small.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits_of(loaded, batch_of(loaded)), logits_of(small, batch_of(small)))
    assert parameters(Shape.from_config(loaded.config.to_dict(), LABELS)) == sum(
        p.numel() for p in loaded.parameters()
    )


@pytest.mark.parametrize(
    "broken", [{"key": "query"}, {"context_norm": "neurons_norm"}, {"neurons_input": "context_output"}], ids=str
)
def test_a_wrong_place_is_seen(network: Any, broken: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    kind = network.config.model_type
    right: Encoder = ENCODERS[kind]
    wrong = replace(right, **{name: getattr(right, other) for name, other in broken.items()})
    monkeypatch.setitem(architectures.ENCODERS, kind, wrong)
    with pytest.raises((AssertionError, AttributeError, RuntimeError, IndexError)):
        require_same_answers(network)


def test_single_heads_and_neurons_are_cut_where_the_table_says_so(network: Any) -> None:
    """In place, other numbers in each layer: heads where attention reads their number when it is called."""
    encoder, hidden, head = ENCODERS[network.config.model_type], SIZES["hidden_size"], 8
    path = f"{encoder.body}.{encoder.layers}.0"
    kinds = {encoder.neurons_input: ([0, 3, 7], 2 * hidden + 1)}
    if encoder.heads_cut_in_place:
        kinds[encoder.query] = [1], head * (4 * hidden + 3)  # rows of three, columns of one, three biases
    taken = {f"{path}.{name}": units for name, (units, _) in kinds.items()}
    batch = batch_of(network)
    groups, _ = find_groups(network, batch, list(taken))
    assert {group.root for group in groups} == set(taken)
    left = sum(p.numel() for p in network.parameters()) - sum(len(units) * each for units, each in kinds.values())
    assert cut_and_check(network, batch, groups, taken, batch, left) < TOLERANCE


def test_fewer_layers_keep_the_chosen_ones(network: Any) -> None:
    everything = torch.arange(SIZES["hidden_size"])
    kept = encoders.Kept(
        layers=[1], heads=[torch.arange(4)], neurons=[torch.arange(SIZES["intermediate_size"])], dimensions=everything
    )
    small = encoders.cut(network, kept)
    wanted = encoders.layers(network)[1].state_dict()
    found = encoders.layers(small)[0].state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_attention_maps_and_relations_are_read(network: Any) -> None:
    eager, batch = encoders.with_attention_maps(network), batch_of(network)
    found = forward(eager, batch, Wanted(attention_layers=(1, 2), relation_layer=2))
    torch.testing.assert_close(found["logits"], logits_of(network, batch), atol=TOLERANCE, rtol=TOLERANCE)
    assert found["attention"].shape == (2, 9, 9, 2)
    torch.testing.assert_close(found["attention"].sum(dim=2), torch.ones(2, 9, 2))
    assert found["relations"].shape == (2, 9, 3, SIZES["hidden_size"])


def test_the_last_layer_begins_as_the_mean_of_all_tokens_where_the_head_can(network: Any) -> None:
    if not ENCODERS[network.config.model_type].starts_as_mean:
        with pytest.raises(UserError, match=r"^pooling mean: .*give pooling cls$"):
            encoders.start_as_mean(network)
        return
    states: list[Any] = []
    encoders.layers(network)[-1].register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))
    encoders.start_as_mean(network)
    read: list[Any] = []
    pooler = network.get_submodule(ENCODERS[network.config.model_type].pooler)
    pooler.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    batch = batch_of(network)
    logits_of(network, batch)
    mask = batch["attention_mask"][..., None].float()
    mean = (states[0] * mask).sum(dim=1) / mask.sum(dim=1)
    wanted = torch.nn.functional.layer_norm(states[0][:, 0] + encoders.MEAN_OVER_CLS * mean, (SIZES["hidden_size"],))
    wanted = torch.nn.functional.layer_norm(wanted, (SIZES["hidden_size"],))
    torch.testing.assert_close(read[0], wanted, atol=1e-4, rtol=1e-4)


def test_the_onnx_graph_answers_as_torch_and_asks_for_no_useless_input(network: Any, tmp_path: Path) -> None:
    onnx_export.export(network, tmp_path)
    batch = batch_of(network)
    session = onnx_session(tmp_path / "model.onnx", threads=1)
    names = {entry.name for entry in session.get_inputs()}
    types = getattr(network.config, "type_vocab_size", 0)
    assert names == {"input_ids", "attention_mask"} | ({"token_type_ids"} if types > 1 else set())
    feed = {name: tensor.numpy() for name, tensor in batch.items()}
    if "token_type_ids" in names:
        feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
    np.testing.assert_allclose(session.run(["logits"], feed)[0], logits_of(network, batch), atol=1e-4, rtol=1e-4)
    feed = {name: array[:1, :5] for name, array in feed.items()}  # of another batch and length
    alone = logits_of(network, {name: tensor[:1, :5] for name, tensor in batch.items()})
    np.testing.assert_allclose(session.run(["logits"], feed)[0], alone, atol=1e-4, rtol=1e-4)


def test_the_int8_graph_answers_as_the_fake_quantized_network(network: Any, tmp_path: Path) -> None:
    batch = batch_of(network)
    prepare(network, symmetric=False, learned=False)
    from hfcompress.ops.fake_quant import ActivationQuantizer

    quantizers = [module for module in network.modules() if isinstance(module, ActivationQuantizer)]
    for quantizer in quantizers:
        quantizer.observing = True
    logits_of(network, batch)
    for quantizer in quantizers:
        quantizer.observing = False
    weights = write_int8(network, tmp_path)
    assert len(weights) == 6 * SIZES["num_hidden_layers"] + 1 + len(encoders.tables(network))
    feed = {name: tensor.numpy() for name, tensor in batch.items()}
    session = onnx_session(tmp_path / "model.onnx", threads=1)
    if "token_type_ids" in {entry.name for entry in session.get_inputs()}:
        feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
    expected = logits_of(network, batch).numpy()
    assert np.abs(session.run(["logits"], feed)[0] - expected).max() <= 0.05 * np.abs(expected).max()


def test_a_cut_feed_forward_is_said_by_the_config(network: Any) -> None:
    name = ENCODERS[network.config.model_type].name("intermediate_size")
    assert config_changes(network) == {name: SIZES["intermediate_size"]}


def test_the_word_embeddings_become_a_tensor_train(network: Any) -> None:
    body = ENCODERS[network.config.model_type].body
    edit = put_tensor_train(network, f"{body}.embeddings.word_embeddings", 4)
    assert edit["module"] == f"{body}.embeddings.word_embeddings"
    assert logits_of(network, batch_of(network)).shape == (2, LABELS)


def test_an_encoder_of_no_table_is_refused_in_a_line() -> None:
    config = AutoConfig.for_model("mpnet", hidden_size=36, num_hidden_layers=1, vocab_size=WORDS)
    network = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(UserError, match=r"^MPNetForSequenceClassification cannot be made smaller here: .*roberta"):
        encoders.encoder_of(network)


@pytest.mark.parametrize("kind", [kind for kind, encoder in ENCODERS.items() if encoder.as_hidden_size])
def test_a_size_that_is_not_the_hidden_one_is_refused_in_a_line(kind: str) -> None:
    network = network_of(kind)
    name = ENCODERS[kind].as_hidden_size[0]
    changed = network.config.to_dict() | {name: SIZES["hidden_size"] // 2}
    other = type(network)(type(network.config).from_dict(changed))
    refused = rf"^{name} 16 is not hidden_size 32: such a model of type {kind} cannot be made smaller here; [^\n]*$"
    with pytest.raises(UserError, match=refused):
        encoders.encoder_of(other)
    with pytest.raises(UserError, match=refused):
        Shape.from_config(other.config.to_dict(), LABELS)
