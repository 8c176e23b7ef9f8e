"""Linear layers of architectures that nothing else here knows: loaded and computed by stock transformers."""

import json
from pathlib import Path

import pytest
import torch

from hfcompress.architectures.checkpoint import Checkpoint
from hfcompress.architectures.loading import empty_model
from hfcompress.cli import dispatch
from hfcompress.compress.quantize.linears import QuantizeLinears, linear_modules
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.errors import UserError
from hfcompress.formats.bits_claimed import require_share
from hfcompress.formats.runtimes.torch_decoder import TorchDecoder
from hfcompress.ops.grid import Grid
from hfcompress.ops.rtn import rtn
from hfcompress.recipes import tiny
from hfcompress.tasks.text_generation import CausalLM
from hfcompress.training.adopt_language import AdoptLanguage

IDS = torch.tensor([[5, 9, 200, 17, 33, 42, 250, 6, 11, 280]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neox")
    return tiny.write_gpt_neox(folder / "base", tiny.write_dataset(folder / "data"))


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(3, 64, False), Grid(8, 0), Grid(2, 32)], ids=str)
def test_stock_transformers_computes_with_the_rounded_matrices(tmp_path: Path, base: Path, grid: Grid) -> None:
    from transformers import AutoModelForCausalLM

    told = QuantizeLinears("rtn", grid.bits, grid.group_size, grid.symmetric)(tmp_path, model=base)
    assert told["matrices"] == 2 * 4, "query_key_value, dense and the two of the MLP, in each layer"
    wanted = AutoModelForCausalLM.from_pretrained(base).eval()
    for module in wanted.modules():
        if isinstance(module, torch.nn.Linear) and module is not wanted.get_output_embeddings():
            module.weight.data = rtn(module.weight.data, grid.fitting(module.in_features)).dequantize()
    found = AutoModelForCausalLM.from_pretrained(tmp_path, torch_dtype=torch.float32).eval()
    near = 1e-4 if grid.symmetric else 1e-3  # transformers 5 unpacks these at once, to the scales' float16
    with torch.inference_mode():
        assert torch.allclose(found(IDS).logits, wanted(IDS).logits, atol=near)


def test_the_head_and_the_embedding_stay_as_they_are(tmp_path: Path, base: Path) -> None:
    from safetensors.torch import load_file

    QuantizeLinears("hqq")(tmp_path, model=base)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    for name in ("gpt_neox.embed_in.weight", "embed_out.weight"):
        assert torch.equal(before[name], after[name])
    assert "gpt_neox.layers.0.mlp.dense_h_to_4h.weight" not in after


def test_the_layer_by_layer_stage_says_where_to_go(tmp_path: Path, base: Path) -> None:
    with pytest.raises(UserError, match=r"GPTNeoXForCausalLM; .*any_causal_lm"):
        WeightOnly("rtn")(tmp_path, model=base, task=CausalLM())


def test_a_model_that_does_not_say_how_many_tokens_it_holds_is_refused_before_it_is_rounded(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM, MptConfig, MptForCausalLM

    shape = {"vocab_size": 50, "n_layers": 1, "n_heads": 2}
    BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(tmp_path / "no")
    MptForCausalLM(MptConfig(d_model=16, max_seq_len=64, **shape)).save_pretrained(tmp_path / "mpt")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="does not say how many tokens the model holds; set max_position_embeddings"):
        AdoptLanguage(any_architecture=True)(tmp_path / "out", model=tmp_path / "no")
    AdoptLanguage(any_architecture=True)(tmp_path / "out", model=tmp_path / "mpt")
    assert TorchDecoder(tmp_path / "mpt", 1).context == 64


def test_experts_are_rounded_one_by_one_or_refused_where_they_are_merged(tmp_path: Path) -> None:
    """Version 5 of transformers holds a mixture's experts in one tensor, its files hold each alone."""
    from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, __version__

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(vocab_size=320, num_hidden_layers=1, num_local_experts=2, **sizes)
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    if __version__.startswith("5."):
        with pytest.raises(UserError, match=r"merges the tensors of a mixtral .*; install 'transformers<5'"):
            Checkpoint(tmp_path)
    else:
        network = empty_model(tmp_path, AutoModelForCausalLM)
        assert sum(".experts." in name for name in linear_modules(Checkpoint(tmp_path), network)[0]) == 2 * 3


def test_matrices_that_are_conv1d_are_named(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"only 0\.0% .* transformers' Conv1D, .* no 4-bit model"):
        QuantizeLinears()(tmp_path / "out", model=tmp_path / "gpt2")


def test_fused_experts_are_no_4_bit_model(tmp_path: Path) -> None:
    """gpt-oss: nearly all weights are 3-D parameters, which no Linear multiplies by."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_local_experts=4, num_experts_per_tok=2, rope_scaling=None,
    )  # fmt: skip
    GptOssForCausalLM(config).save_pretrained(tmp_path / "oss")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"only \d+\.\d% of .*experts\.gate_up_proj \[4, 16, 32\].*fused experts"):
        QuantizeLinears()(tmp_path / "out", model=tmp_path / "oss")
    assert not list((tmp_path / "out").iterdir()), "before anything is written"


def test_a_share_of_half_is_enough_and_less_is_not(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {"a": (4, 4), "b": (2, 8)}
    assert require_share(tmp_path, shapes, {"a"}, 4) == 0.5
    with pytest.raises(UserError, match=r"only 48\.5% of the weights would be in 4 bits, and 51\.5% left"):
        require_share(tmp_path, shapes | {"c": (1,)}, {"a"}, 4)


@pytest.mark.slow
def test_the_recipe_runs_to_its_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert dispatch(["run", "any_causal_lm", "--smoke", "--run-dir", str(folder)]) == 0
    report = json.loads((folder / "report.json").read_text())
    assert [model["format"] for model in report["models"]] == ["transformers", "transformers"]
    packed = report["models"][1]
    assert packed["dtypes"]["int4"] > 0
    assert "compressed-tensors" in (folder / "model_card.md").read_text()
    with pytest.raises(UserError, match="--base FOLDER"):
        dispatch(["run", "any_causal_lm", "--run-dir", str(tmp_path / "none")])
    with pytest.raises(UserError, match="gpt_neox is no model whose shape is known"):
        dispatch(["plan", "any_causal_lm", "--base", str(folder / "smoke" / "base")])
