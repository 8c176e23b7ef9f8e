import random
from pathlib import Path

import numpy as np
import pytest

from hfcompress.errors import UserError
from hfcompress.evaluation import generation
from hfcompress.evaluation.generation import Past, Stats, generate
from hfcompress.formats.runtimes.decoder import open_decoder
from hfcompress.formats.runtimes.torch_decoder import TorchDecoder

VOCABULARY, CONTEXT, END = 32, 96, 1


def random_llama(folder: Path, seed: int) -> Path:
    """One layer with large random weights, so that its choices depend on all that it has read."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.4,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> list[TorchDecoder]:
    folders = [random_llama(tmp_path_factory.mktemp("llama"), seed) for seed in range(4)]
    return [TorchDecoder(folder, threads=1) for folder in folders]


@pytest.fixture
def decoder(decoders: list[TorchDecoder]) -> TorchDecoder:
    decoders[0].rewind(0)
    return decoders[0]


def prompts(count: int) -> list[list[int]]:
    """Random tokens, every second prompt a short run again and again."""
    rng = random.Random(0)
    made = []
    for number in range(count):
        tokens = [rng.randrange(3, VOCABULARY) for _ in range(24)]
        made.append(tokens[:5] * 5 if number % 2 else tokens)
    return made


def answer(decoder: TorchDecoder, prompt: list[int], lookup: int, stats: Stats | None = None) -> list[int]:
    return list(generate(decoder, prompt, max_new_tokens=40, stop={END}, lookup=lookup, stats=stats))


def test_a_decoder_says_the_same_token_by_token_and_at_once(decoder: TorchDecoder) -> None:
    ids = prompts(1)[0]
    whole = decoder.append(ids, all_logits=True)
    assert whole.shape == (len(ids), VOCABULARY)
    assert whole.dtype == np.float32
    decoder.rewind(0)
    one_by_one = np.concatenate([decoder.append([token]) for token in ids])
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-4, atol=1e-4)
    decoder.rewind(10)
    assert decoder.length == 10
    np.testing.assert_allclose(decoder.append(ids[10:20])[0], whole[19], rtol=1e-4, atol=1e-4)


def test_a_decoder_refuses_what_it_cannot_hold(decoder: TorchDecoder) -> None:
    assert decoder.context == CONTEXT
    with pytest.raises(UserError, match=r"context of 96$"):
        decoder.append([3] * (CONTEXT + 1))
    with pytest.raises(ValueError, match="rewind to 1 of 0"):
        decoder.rewind(1)


def test_greedy_is_what_transformers_generates(decoder: TorchDecoder) -> None:
    import torch

    for prompt in prompts(4):
        theirs = decoder._model.generate(
            torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=END, pad_token_id=0
        )[0, len(prompt) :].tolist()
        assert answer(decoder, prompt, lookup=0) == [token for token in theirs if token != END]


@pytest.mark.parametrize("lookup", [1, 3, 8])
def test_speculation_gives_the_same_tokens(decoders: list[TorchDecoder], lookup: int) -> None:
    for decoder in decoders:
        for prompt in prompts(8):
            assert answer(decoder, prompt, lookup) == answer(decoder, prompt, 0)


def test_a_repeating_text_is_guessed(decoders: list[TorchDecoder]) -> None:
    guided, plain = Stats(), Stats()
    for decoder in decoders:
        for prompt in prompts(8):
            answer(decoder, prompt, 8, guided)
            answer(decoder, prompt, 0, plain)
    assert guided.accepted > 0
    assert guided.passes < plain.passes
    assert (plain.proposed, plain.accepted, plain.passes) == (0, 0, plain.new_tokens)


def test_a_verifier_that_accepts_everything_is_caught(
    decoders: list[TorchDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above would see it: without verification the tokens are others."""
    pairs = [(decoder, prompt) for decoder in decoders for prompt in prompts(8)]
    greedy = [answer(decoder, prompt, 0) for decoder, prompt in pairs]
    monkeypatch.setattr(generation, "next_tokens", trusting)
    assert [answer(decoder, prompt, 8) for decoder, prompt in pairs] != greedy


def trusting(decoder: TorchDecoder, token: int, guess: list[int]) -> list[int]:
    """`next_tokens` without verification."""
    return [*guess, int(decoder.append([token, *guess])[-1].argmax())]


def test_the_limits_are_kept(decoder: TorchDecoder) -> None:
    prompt = prompts(2)[1]
    for lookup in (0, 8):
        assert len(list(generate(decoder, prompt, max_new_tokens=7, stop=set(), lookup=lookup))) == 7
        full = list(generate(decoder, prompt, max_new_tokens=1000, stop=set(), lookup=lookup))
        assert len(prompt) + len(full) == CONTEXT + 1  # the last token is said, and not read
        stopped = list(generate(decoder, prompt, max_new_tokens=1000, stop={full[9]}, lookup=lookup))
        assert stopped == full[: full.index(full[9])]


def test_a_guess_is_what_followed_the_last_time() -> None:
    past = Past([5, 6, 7, 8, 9, 6, 7])
    assert past.guess(3) == [8, 9, 6]
    assert past.guess(0) == []
    past.add(8)
    assert past.guess(8) == [9, 6, 7, 8]
    past.add(4)
    assert past.guess(8) == []
    assert Past([1]).guess(4) == []


def test_figures_of_the_cost() -> None:
    assert Stats().ms_per_token is None
    assert Stats(answers=1, new_tokens=1).ms_per_token is None
    assert Stats(answers=2, new_tokens=12, later_s=0.05).ms_per_token == pytest.approx(5)


def test_a_folder_without_a_language_model_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match="holds no language model"):
        open_decoder(tmp_path, 1)
    with pytest.raises(UserError, match="is not a whole BertLMHeadModel: it does not contain"):
        open_decoder(tiny_model, 1)
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(UserError, match="has no weights"):
        open_decoder(tmp_path, 1)


@pytest.mark.slow
def test_stories_are_told_alike_with_fewer_passes(real_data: Path) -> None:
    from transformers import AutoTokenizer

    folder = real_data / "stories260k"
    tokenizer, decoder = AutoTokenizer.from_pretrained(folder), open_decoder(folder, 1)
    stories = (folder / "stories.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    guided, plain = Stats(), Stats()
    for story in filter(None, map(str.strip, stories)):
        prompt = [1, *tokenizer(story, add_special_tokens=False)["input_ids"][:250]]
        options = {"max_new_tokens": 200, "stop": {1, 2}}
        told = list(generate(decoder, prompt, **options, lookup=8, stats=guided))
        assert told == list(generate(decoder, prompt, **options, stats=plain))
    print(
        f"{plain.passes / guided.passes:.2f} times fewer passes, {guided.accepted} of {guided.proposed} guesses right"
    )
    assert guided.passes < 0.95 * plain.passes
