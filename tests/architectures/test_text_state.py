"""A state that is no keys and values is refused before a text is read wrongly, or work is done in vain."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, DynamicCache, LlamaForCausalLM

from hfcompress.architectures.text_state import require_key_values
from hfcompress.errors import UserError
from hfcompress.formats.runtimes.torch_decoder import TorchDecoder
from hfcompress.training.adopt_language import AdoptLanguage
from tests.language_models import write_llama


@pytest.mark.parametrize("kind", ["mamba", "jamba", "bamba", "falcon_h1", "zamba2", "lfm2", "rwkv", "recurrent_gemma"])
def test_models_with_a_state_are_refused(kind: str) -> None:
    config = AutoConfig.for_model(kind, **({"full_attn_idxs": [2]} if kind == "lfm2" else {}))
    with pytest.raises(UserError, match=f"a {kind} keeps a state of the text"):
        require_key_values(Path("folder"), config)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "gpt2", "gpt_neox", "bloom", "opt", "qwen2_moe"])
def test_models_of_keys_and_values_are_read(kind: str) -> None:
    require_key_values(Path("folder"), AutoConfig.for_model(kind))


def test_it_is_refused_before_the_work(tmp_path: Path) -> None:
    AutoConfig.for_model("rwkv", context_length=64, max_position_embeddings=64).save_pretrained(tmp_path / "lm")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="a rwkv keeps a state"):
        AdoptLanguage(any_architecture=True)(tmp_path / "out", model=tmp_path / "lm")


def test_a_model_that_leaves_the_cache_as_it_is_answers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What neither config nor class says shows with the first tokens."""
    decoder = TorchDecoder(write_llama(tmp_path / "lm", tied=False), threads=1)
    assert decoder.append([1, 2, 3]).shape[0] == 1
    right = LlamaForCausalLM.forward

    def forgetful(self: Any, *arguments: Any, **options: Any) -> Any:
        return right(self, *arguments, **options | {"past_key_values": DynamicCache()})

    monkeypatch.setattr(LlamaForCausalLM, "forward", forgetful)
    with pytest.raises(UserError, match="a llama keeps a state"):
        decoder.append([4])
