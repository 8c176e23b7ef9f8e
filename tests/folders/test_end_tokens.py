"""An answer ends at every token that the model's files say ends one, in every format, and none of them is printed."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from hfcompress.architectures.checkpoint import Checkpoint
from hfcompress.architectures.decoder_stack import DecoderStack
from hfcompress.architectures.quantized_model import PackedModel
from hfcompress.errors import UserError
from hfcompress.evaluation.long_documents import summarize
from hfcompress.folders.end_tokens import end_tokens
from hfcompress.formats.genai import ExportGenai
from hfcompress.formats.runtimes.decoder import open_decoder
from hfcompress.formats.runtimes.torch_decoder import TorchDecoder
from hfcompress.ops.grid import Grid
from hfcompress.training.adopt_language import AdoptLanguage
from tests.language_models import pack_model, write_llama, write_task

IDS = [5, 9, 200, 17]
TURN = "<|im_end|>"
ANSWER = "{% if add_generation_prompt %}: {% endif %}"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}" + TURN + "{% endfor %}" + ANSWER


def write_chat_model(folder: Path) -> tuple[Path, int]:
    """A Llama that answers one word, then <|im_end|> for ever, which is an ordinary added token of its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    write_llama(folder, tied=False, vocab_size=330)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([TURN])
    end = int(tokenizer.convert_tokens_to_ids(TURN))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    word = tokenizer(" licence", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        rows, head = model.model.embed_tokens.weight, model.lm_head.weight
        rows[:, 0], rows[[word, end], 0], rows[[word, end], 1] = 1.0, 0.0, 1.0
        head[word, 0], head[end, 1] = 5.0, 5.0
    model.save_pretrained(folder)
    GenerationConfig(eos_token_id=[1, end]).save_pretrained(folder)
    (folder / "additional_chat_templates").mkdir(exist_ok=True)
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATE)
    return folder, end


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    return write_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ([2, 7], 2, [2, 7]),
        (None, [3, 4], [3, 4]),
        (7, 2, [7, 2]),
        (None, None, []),
        ([True, -1, "5", 6], 2, [6, 2]),
    ],
)
def test_the_ends_are_those_of_all_files_each_once(
    generation: object, config: object, ends: list[int], tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": config}))
    assert end_tokens(tmp_path) == ends


def test_ids_without_a_row_end_nothing(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 320, 319]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 99999, "vocab_size": 320}')
    assert end_tokens(tmp_path) == [7, 319]


def test_files_that_are_damaged_or_missing_say_nothing(tmp_path: Path) -> None:
    assert end_tokens(tmp_path) == []
    (tmp_path / "generation_config.json").write_text("{")
    (tmp_path / "config.json").write_text("[]")
    assert end_tokens(tmp_path) == []


def test_a_summary_ends_before_a_token_that_is_not_special(chat: tuple[Path, int]) -> None:
    folder, end = chat
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert end not in tokenizer.all_special_ids
    options = {"max_new_tokens": 12, "lookup": 0, "say": print, "ends": end_tokens(folder, tokenizer)}
    pieces = summarize(TorchDecoder(folder, 1), tokenizer, "the licence grants", **options)  # type: ignore[arg-type]
    assert "".join(pieces) == "licence"


def test_stock_onnxruntime_genai_stops_where_the_model_does(chat: tuple[Path, int], tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    folder, end = chat
    adopted = tmp_path / "lm"
    adopted.mkdir()
    AdoptLanguage()(adopted, model=folder)
    packed = pack_model(adopted, tmp_path / "packed", Grid(8, 32, True))
    out = tmp_path / "onnx"
    (out / "work").mkdir(parents=True)
    ExportGenai(context=64)(out, model=packed, task=write_task(tmp_path / "data"))
    for each in (adopted, packed, out):
        assert json.loads((each / "generation_config.json").read_text())["eos_token_id"] == [1, end]
        assert (each / "additional_chat_templates" / "tool_use.jinja").read_text() == TEMPLATE
        assert (each / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((out / "genai_config.json").read_text())["model"]["eos_token_id"] == [1, end]
    model = genai.Model(str(out))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=40, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(AutoTokenizer.from_pretrained(folder)("the")["input_ids"])
    answer = []
    while not generator.is_done():
        generator.generate_next_token()
        answer.append(int(generator.get_next_tokens()[0]))
    assert answer[-1] == end
    assert len(answer) == 2


def test_runtimes_take_a_model_that_names_no_end_and_minus_one_for_none(tmp_path: Path) -> None:
    """As the first Llamas: pad_token_id -1; and as base models: no token ends an answer."""
    genai = pytest.importorskip("onnxruntime_genai")
    source = write_llama(tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        changes = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": -1}
        (source / name).write_text(json.dumps(json.loads((source / name).read_text()) | changes))
    settings = json.loads((source / "tokenizer_config.json").read_text()) | {"eos_token": None}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "special_tokens_map.json").unlink(missing_ok=True)  # transformers 5 writes none
    packed = pack_model(source, tmp_path / "packed", Grid(8, 32, True))
    out = tmp_path / "onnx"
    (out / "work").mkdir(parents=True)
    ExportGenai("float32", context=64)(out, model=packed, task=write_task(tmp_path / "data"))
    assert json.loads((out / "genai_config.json").read_text())["model"]["eos_token_id"] == []
    parameters = genai.GeneratorParams(model := genai.Model(str(out)))
    parameters.set_search_options(max_length=20, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(IDS)
    while not generator.is_done():
        generator.generate_next_token()
    assert len(generator.get_sequence(0)) == 20
    pytest.importorskip("gguf")
    from hfcompress.formats import gguf_file

    gguf_file.write(PackedModel(packed), tmp_path / "model.gguf")


def test_a_token_without_a_row_is_refused_in_one_line(tmp_path: Path) -> None:
    """Tokens were added to the tokenizer alone: torch and onnxruntime would end in errors of their own."""
    source = write_llama(tmp_path / "model")
    packed = pack_model(source, tmp_path / "packed", Grid(8, 32, True))
    out = tmp_path / "onnx"
    (out / "work").mkdir(parents=True)
    ExportGenai("float32", context=64)(out, model=packed, task=write_task(tmp_path / "data"))
    refused = pytest.raises(UserError, match="gives token 320 for a text, and the model has 320 rows")
    for folder in (source, packed, out):
        decoder = open_decoder(folder, 1)
        with refused:
            decoder.append([*IDS, 320])
        assert decoder.append([*IDS, 319]).shape == (1, 320)
    with refused:
        DecoderStack(Checkpoint(source)).embed(np.array([[*IDS, 320]]))


def test_llama_cpp_is_told_every_end(chat: tuple[Path, int]) -> None:
    pytest.importorskip("gguf")
    from hfcompress.formats.gguf_tokenizer import add_ends

    special = {"bos": 0, "eos": 1, "pad": 2}
    add_ends(special, [1, 326, 327, 328])
    assert special == {"bos": 0, "eos": 1, "pad": 2, "eot": 326, "eom": 327}
    without = {"bos": 0}
    add_ends(without, [326])
    assert without == {"bos": 0, "eos": 326}
