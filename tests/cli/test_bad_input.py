"""What is no model, no folder or no number is refused in one line, whichever command meets it."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from hfcompress.architectures.models import load_tokenizer
from hfcompress.errors import UserError
from hfcompress.evaluation.generation import generate
from hfcompress.formats.memory import image_size
from hfcompress.formats.runtimes.decoder import Array, open_decoder
from hfcompress.formats.runtimes.image_predictor import ImagePredictor
from hfcompress.recipes import tiny
from hfcompress.rollout.traffic import Writer
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.training.finetune_images import FinetuneImages
from tests.cli.test_cli import refused
from tests.image_models import write_mobilenet
from tests.language_models import write_llama, write_task

CONFIGS = {"list": "[1]", "null": "null", "cut off": '{"a": ', "empty": "", "no fields": "{}"}


@pytest.fixture(params=CONFIGS)
def no_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder whose config.json is no model's."""
    (tmp_path / "config.json").write_text(CONFIGS[request.param], encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("recipe", ["iot_camera", "summarize_7b", "legal_bert"])
def test_a_config_that_is_none_is_refused_by_the_plan(recipe: str, no_model: Path) -> None:
    assert str(no_model / "config.json") in refused("plan", recipe, "--base", no_model)


def test_a_run_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refused("run", "iot_camera", "--smoke", "--run-dir", tmp_path / "file" / "run")
    assert line == f"hfcompress: {tmp_path / 'file' / 'run'}: Not a directory; give another place, or mend this one"


def test_what_no_memory_holds_is_refused() -> None:
    assert "not enough memory" in refused("plan", "resnet_prune", "--new.side", "10000000")


def test_a_number_out_of_range_is_named_as_it_was_typed() -> None:
    assert refused("plan", "iot_camera", "--qat.learning-rate", "nan") == (
        "hfcompress: --qat.learning-rate nan: must be a finite number"
    )


@pytest.mark.parametrize(
    ("recipe", "option"),
    [
        ("iot_camera", "--measure.threads"),
        ("iot_camera", "--prune.threads"),
        ("summarize_7b", "--summaries.threads"),
        ("summarize_7b", "--measure.threads"),
        ("ctr_embeddings", "--measure.threads"),
    ],
)
def test_threads_that_no_machine_would_use_are_refused_by_the_recipes(recipe: str, option: str) -> None:
    assert refused("plan", recipe, option, "100000") == f"hfcompress: {option} 100000: must be at most 1024"


@pytest.mark.parametrize("kind", ["rows", "hashed", "quotient_remainder", "mixed"])
def test_rows_of_an_odd_length_in_4_bits_are_refused_by_the_plan(kind: str) -> None:
    options = ["--compress.kind", kind, "--compress.ratio", "4", "--train.dim", "15", "--curve"]
    line = refused("plan", "ctr_embeddings", "--compress.bits", "4", *options)
    assert line.startswith("hfcompress: --compress.bits 4: two codes share a byte, and rows of 15 numbers")


def test_requests_longer_than_the_models_read_are_refused_by_the_plan() -> None:
    line = refused("plan", "legal_bert", "--measure.sequence-length", "100000")
    assert line == "hfcompress: --measure.sequence-length 100000: teacher has 512 positions; give no more than that"


@pytest.mark.parametrize(("option", "least"), [("--task.max-length", 3), ("--task.max-train-examples", 1)])
def test_texts_of_nothing_are_refused_by_the_plan(option: str, least: int) -> None:
    assert refused("plan", "legal_bert", option, "0") == f"hfcompress: {option} 0: must be at least {least}"


def test_options_that_were_not_typed_have_the_name_of_the_group_that_was() -> None:
    assert refused("plan", "legal_bert", "--qat.logits-weight", "0") == (
        "hfcompress: --qat.logits-weight, --qat.hard-weight: not all of them 0"
    )


def test_a_network_without_end_is_refused() -> None:
    assert "--new.width inf" in refused("plan", "iot_camera", "--new.width", "inf")


def test_an_option_of_the_summaries_has_the_recipes_name() -> None:
    assert refused("plan", "summarize_7b", "--summaries.lead-sentences", "0") == (
        "hfcompress: --summaries.lead-sentences 0: must be at least 1"
    )


@pytest.mark.parametrize("report", ["[]", "{}", '{"models": [], "verdicts": [{"candidate": "int8"}]}'])
@pytest.mark.parametrize("command", ["report", "check", "profile", "export", "push"])
def test_a_report_that_is_none_is_refused_by_every_command(command: str, report: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report, encoding="utf-8")
    more = {"export": ["--to", "onnx"], "push": ["--hub-model-id", "org/name", "--dry-run"]}
    if command == "check" and "models" in report:
        return  # there are no files to check
    assert "report" in refused(command, tmp_path, *more.get(command, []))


def test_a_lock_that_is_none_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "recipe.lock.json"
    for text in ("[]", "{}", '{"recipe": "legal_bert", "scale": "small", "options": {}}'):
        lock.write_text(text, encoding="utf-8")
        assert str(lock) in refused("run", "--from-lock", lock)


def test_a_decoder_without_a_graph_or_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"genai_config\.json is damaged"):
        open_decoder(tmp_path, 1)
    settings = {"context_length": 8, "vocab_size": 9, "decoder": {"num_key_value_heads": 1, "head_size": 4}}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": settings}), encoding="utf-8")
    (tmp_path / "model.onnx").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"model\.onnx cannot be run"):
        open_decoder(tmp_path, 1)


def test_a_tokenizer_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text('{"version": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(tmp_path)


class Nan:
    """A decoder whose weights are nan."""

    length, context = 0, 8

    def append(self, ids: list[int], all_logits: bool = False) -> Array:
        return np.full((1, 4), np.nan, np.float32)

    def rewind(self, length: int) -> None:
        pass


def test_a_model_that_answers_nan_writes_nothing() -> None:
    with pytest.raises(UserError, match="no numbers"):
        next(generate(Nan(), [1], max_new_tokens=2, stop=set()))


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return tiny.write_model(tmp_path / "model", labels=["x", "y"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id2label": ["x", "y"]}, "id2label"),
        ({"hidden_size": 48}, "no model that transformers loads"),
        ({"pad_token_id": 99999}, "no model that transformers loads"),
        ({"hidden_size": "large"}, "hidden_size is 'large'; it must be a whole number"),
        ({"architectures": ["LlamaForCausalLM"]}, "is a LlamaForCausalLM, which labels no texts"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_predict(
    changes: dict[str, Any], words: str, classifier: Path
) -> None:
    config = json.loads((classifier / "config.json").read_text(encoding="utf-8"))
    (classifier / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    line = refused("predict", classifier, "--text", "a text")
    assert words in line
    assert str(classifier) in line


def test_weights_of_nan_label_nothing(classifier: Path) -> None:
    weights = load_file(classifier / "model.safetensors")
    save_file({n: w * float("nan") if w.is_floating_point() else w for n, w in weights.items()},
              classifier / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    assert "holds NaN or Inf; the model is damaged" in refused("predict", classifier, "--text", "a text")


def test_a_page_that_cannot_be_written_is_refused_before_the_first_request(classifier: Path, tmp_path: Path) -> None:
    more = ["--page", tmp_path / "none" / "page.html"]
    assert "page.html" in refused("shadow", classifier, classifier, tmp_path / "traffic", *more, stdin="a text\n")
    assert not (tmp_path / "traffic").read_bytes()


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_that_is_none_is_refused(port: int, tmp_path: Path) -> None:
    assert f"--serve {port}" in refused("shadow", "old", "new", tmp_path / "traffic", "--serve", port)


@pytest.mark.parametrize("size", ["0", "-1", "nan"])
def test_a_file_that_would_be_renamed_after_every_line_is_refused(size: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--rotate-mb {size}"):
        Writer(tmp_path / "traffic", float(size))


def test_an_image_of_one_pixel_is_labelled(tmp_path: Path) -> None:
    folder = write_mobilenet(tmp_path / "model", ["x", "y", "z"], side=16)
    assert ImagePredictor(folder).logits([Image.new("RGB", (1, 1))]).shape == (1, 3)


@pytest.mark.parametrize("text", ["[]", "{}", '{"size": "large"}', "{"])
def test_a_processor_that_does_not_say_the_size_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        image_size(tmp_path)


COMMAND = "import sys; from hfcompress.cli import main; sys.argv = ['hfcompress', 'list']; main()"


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-u", "-c", COMMAND], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("hfcompress: standard output: No space left on device")
    assert len(done.stderr.splitlines()) == 1


def test_closed_standard_input_is_empty() -> None:
    code = COMMAND.replace("'list'", "'predict', 'model'")
    done = subprocess.run(["bash", "-c", f'"{sys.executable}" -c "{code}" <&-'], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "hfcompress: standard input holds no text\n")


def test_documents_are_refused_by_the_plan(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"document": "a", "digest": "b"}\n', encoding="utf-8")
    assert "--documents.summary-column summary" in refused("plan", "summarize_7b", "--documents.dataset", tmp_path)


def test_a_text_encoder_is_no_base_of_a_causal_lm(classifier: Path) -> None:
    for recipe in ("summarize_7b", "any_causal_lm"):
        assert "no causal LM" in refused("plan", recipe, "--base", classifier)


@pytest.mark.parametrize("recipe", ["summarize_7b", "any_causal_lm"])
def test_a_type_that_transformers_does_not_know_is_told_as_such(recipe: str, tmp_path: Path) -> None:
    config = {"model_type": "llama9", "architectures": ["Llama9ForCausalLM"], "hidden_size": 64, "vocab_size": 320}
    for saved, said in (
        ({"transformers_version": "99.1.0"}, "needs a newer transformers than the installed"),
        ({}, "is unknown to the installed transformers"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | saved), encoding="utf-8")
        line = refused("plan", recipe, "--base", tmp_path)
        assert f"model_type 'llama9' {said}" in line
        assert "causal LM" not in line


@pytest.mark.parametrize("heads", [["--pretrain.num-attention-heads", 5], ["--pretrain.num-key-value-heads", 3]])
def test_heads_that_do_not_divide_are_refused_by_the_plan(heads: list[Any]) -> None:
    assert f"{heads[0]} {heads[1]}" in refused("plan", "summarize_7b", *heads)


def test_texts_that_do_not_fill_a_window_are_refused(tmp_path: Path) -> None:
    task, folder = write_task(tmp_path / "data"), write_llama(tmp_path / "model")
    with pytest.raises(UserError, match=r"task\.window 1000000: the train split has"):
        replace(task, window=1_000_000).blocks(load_tokenizer(folder), "train")


def images(count: int) -> list[dict[str, Any]]:
    """Rows of a parquet file that `datasets` has not written."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    return [{"image": {"bytes": content.getvalue(), "path": None}, "label": "ab"[i % 2]} for i in range(count)]


def test_encoded_images_of_a_plain_parquet_file_are_images(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(images(8)), tmp_path / f"{split}.parquet")
    assert len(ImageClassification(dataset=str(tmp_path)).data.images("test")) == 8


def test_a_last_batch_of_one_image_is_left_out(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(images(9)), tmp_path / f"{split}.parquet")
    task = ImageClassification(dataset=str(tmp_path))
    folder, out = write_mobilenet(tmp_path / "model", ["a", "b"], side=16), tmp_path / "out"
    (out / "work").mkdir(parents=True)
    finetune = FinetuneImages(num_train_epochs=1, per_device_train_batch_size=4, bf16="no", saves_per_epoch=1)
    measured = finetune(out, model=folder, task=task)
    assert measured["steps"] == 2
    assert [entry["step"] for entry in measured["history"] if "eval_accuracy" in entry] == [2], "the last is validated"


def test_a_folder_of_another_recipes_run_is_refused(tmp_path: Path) -> None:
    lock = {"recipe": "legal_bert", "scale": "smoke", "options": {"task": {"dataset": "data"}}}
    (tmp_path / "recipe.lock.json").write_text(json.dumps(lock), encoding="utf-8")
    line = refused("run", "iot_camera", "--smoke", "--run-dir", tmp_path)
    assert f"--run-dir {tmp_path}: it holds a run of legal_bert; give iot_camera a folder of its own" in line
