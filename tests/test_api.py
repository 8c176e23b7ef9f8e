"""The verbs as functions of Python: what the command line does, without its words and without its output."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import hfcompress as hfc
from hfcompress import api
from hfcompress.cli import dispatch
from hfcompress.evaluation.measure import Measure
from hfcompress.formats.onnx import ExportOnnx
from hfcompress.recipes import legal_bert
from hfcompress.runs.of_model import recipe_of_model
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune import Finetune
from tests.language_models import write_llama, write_task


def recipe(
    run: hfc.Run,
    base: str = "",
    task: TextClassification = TextClassification(),
    budget: hfc.Budget = hfc.Budget(disk_mb=30),
    finetune: Finetune = Finetune(max_steps=2),
    measure: Measure = Measure(sequence_length=32, runs=3, resamples=100),
) -> dict[str, Any]:
    """Train a head, then export."""
    tuned = run(finetune, model=run.base(base), task=task, name="tuned")
    onnx = run(ExportOnnx(), model=tuned, task=task, name="onnx")
    return run.compare(tuned, onnx, reference=tuned, candidate=onnx, budget=budget, task=task, measure=measure)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_task: TextClassification) -> hfc.Result:
    folder = tmp_path_factory.mktemp("api") / "run"
    return hfc.run(recipe, run_dir=folder, base=str(tiny_model), task=tiny_task, finetune={"learning_rate": 1e-3})


def test_every_verb_of_the_api_is_exported_and_documented() -> None:
    functions = {
        name for name, value in vars(api).items() if inspect.isfunction(value) and value.__module__ == api.__name__
    } - {"chosen"}  # what `plan` and `run` share
    assert functions == set(hfc.MODULES["hfcompress.api"])
    for name in functions:
        function = getattr(hfc, name)
        text = inspect.getdoc(function) or ""
        assert "Args:" in text
        assert "Raises:" in text
        for parameter in inspect.signature(function).parameters:
            assert re.search(rf"^    {parameter}: ", text, re.M), f"{name}: {parameter} is not described"


def test_a_run_gives_verdicts_table_and_model(result: hfc.Result, capsys: pytest.CaptureFixture[str]) -> None:
    assert result.report == json.loads((result.folder / "report.json").read_text())
    assert result.ok is result.report["ok"]
    assert str(result) == result.table
    assert "tuned" in result.table
    assert (result.model / "model.onnx").is_file()
    assert [row["name"] for row in result.models] == ["tuned", "onnx", "tfidf-svm"]
    assert result.verdicts[0]["limit"] == "disk_mb"
    found = hfc.check(result.folder)
    assert found.ok is result.ok
    assert dispatch(["check", str(result.folder)]) == (0 if found.ok else 1)
    assert capsys.readouterr().out == f"{found}\n"


def test_a_changed_report_is_seen(result: hfc.Result, tmp_path: Path) -> None:
    import shutil

    changed = shutil.copytree(result.folder, tmp_path / "changed")
    report = json.loads((changed / "report.json").read_text())
    report["verdicts"][0]["measured"] = 0.001
    (changed / "report.json").write_text(json.dumps(report))
    found = hfc.check(changed)
    assert not found.ok
    assert found.disagreement


def test_standard_output_stays_empty(
    result: hfc.Result, tiny_model: Path, tiny_task: TextClassification, capsys: pytest.CaptureFixture[str]
) -> None:
    hfc.plan(recipe, base=str(tiny_model), task=tiny_task)
    hfc.run(
        recipe, run_dir=result.folder, base=str(tiny_model), task=tiny_task, finetune={"learning_rate": 1e-3}
    )  # done before
    hfc.predict(result.folder, "Some words.")
    hfc.check(result.folder)
    assert capsys.readouterr().out == ""


def test_texts_are_labeled(result: hfc.Result, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["Some words.", "", "Other words."]
    answers = hfc.predict(result.folder, texts)
    assert [set(answer) for answer in answers] == [{"label", "score"}] * 3
    assert hfc.predict(result.model, texts[0]) == answers[:1]
    assert dispatch(["predict", str(result.folder), "--text", texts[0]]) == 0
    label, score, _ = capsys.readouterr().out.split("\t")
    assert (label, score) == (answers[0]["label"], f"{answers[0]['score']:.4f}")
    with pytest.raises(hfc.UserError, match="give one of texts and images"):
        hfc.predict(result.folder)
    with pytest.raises(hfc.OptionError, match=r"^images: .* does not label images; give texts$"):
        hfc.predict(result.folder, images=["a.png"])


def test_a_model_is_exported(result: hfc.Result, tmp_path: Path) -> None:
    found = hfc.export(result.folder, "onnx", tmp_path / "out")
    assert found.folder == tmp_path / "out"
    assert (found.folder / "model.onnx").is_file()
    with pytest.raises(hfc.OptionError, match=r"^bits 8: onnx has the bits that the model has; leave it out$"):
        hfc.export(result.folder, "onnx", tmp_path / "more", bits=8)


def test_a_plan_prints_as_the_command_line_does(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    sizes = {"distill": {"num_hidden_layers": 2}, "prune": {"num_attention_heads": 2, "intermediate_size": 64}}
    budget = hfc.Budget(disk_mb=1, drop={"accuracy": 0.5})
    plan = hfc.plan(
        legal_bert.recipe, teacher=str(tiny_model), budget=budget, measure={"sequence_length": 32}, **sizes
    )
    assert plan.ok
    assert [row["name"] for row in plan.rows][-1] == "int8"
    assert plan.rows[-1]["shape"]["num_hidden_layers"] == 2
    words = ["--distill.num-hidden-layers", "2", "--prune.num-attention-heads", "2", "--prune.intermediate-size", "64"]
    limits = ["--budget.disk-mb", "1", "--budget.latency-ratio", "None", "--budget.drop.accuracy", "0.5"]
    assert (
        dispatch(
            ["plan", "legal_bert", "--teacher", str(tiny_model), "--measure.sequence-length", "32", *words, *limits]
        )
        == 0
    )
    printed, table = capsys.readouterr().out.splitlines(), str(plan).splitlines()
    assert printed[0] == table[0]
    rows = slice(1, 1 + len(plan.rows))
    assert [line.split()[:-1] for line in printed[rows]] == [line.split()[:-1] for line in table[rows]]  # but for ms


def test_the_recipe_follows_from_a_model_in_hand(tiny_model: Path, tiny_task: TextClassification) -> None:
    options = {"budget": hfc.Budget(disk_mb=1), "measure": {"sequence_length": 32}, "task": {"max_length": 32}}
    sizes = {"distill": {"num_hidden_layers": 2}, "prune": {"num_attention_heads": 2, "intermediate_size": 64}}
    plan = hfc.plan(tiny_model, data=tiny_task.dataset, **options, **sizes)
    assert plan.rows[0]["name"] == "teacher"
    assert plan.rows[-1]["name"] == "int8"
    with pytest.raises(hfc.OptionError, match=r"^data .*: task\.dataset is given, too; give one of them$"):
        hfc.plan(str(tiny_model), data="a", task={"dataset": "b"})
    with pytest.raises(hfc.OptionError, match=r"^teacher: the model is given as the first argument"):
        hfc.plan(str(tiny_model), teacher="other")


SIZES = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), 8) | {
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


@pytest.mark.parametrize(
    ("config", "recipe", "option"),
    [
        ({"model_type": "roberta", "architectures": ["RobertaForSequenceClassification"]}, "legal_bert", "teacher"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "legal_bert", "base"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "summarize_7b", "base"),
        ({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}, "any_causal_lm", "base"),
        ({"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}, "resnet_prune", "base"),
        ({"model_type": "t5", "architectures": ["T5Model"]}, "", ""),
    ],
)
def test_each_kind_of_model_has_its_recipe(config: dict[str, Any], recipe: str, option: str, tmp_path: Path) -> None:
    sizes = {} if config["model_type"] == "resnet" else SIZES
    (tmp_path / "config.json").write_text(json.dumps(sizes | config))
    if not recipe:
        with pytest.raises(hfc.UserError, match="a t5 has no recipe"):
            recipe_of_model(str(tmp_path))
        return
    found, taken = recipe_of_model(str(tmp_path))
    assert (found.name, taken[option]) == (recipe, str(tmp_path))


REFUSED = [
    ({"prune": {"num_attention_heads": 99}}, "prune.num_attention_heads 99: from 1 to "),
    ({"qat": {"bits": 4}}, "qat.bits 4: integer kernels multiply 8 bits; give 8"),
    ({"distill": {"temperature": 0.0}}, "distill.temperature 0: must be above 0"),
    ({"trim_vocabulary": False, "trim": {"vocabulary_size": 900}}, "trim.vocabulary_size 900: has no effect with"),
    ({"qat": {"max_steps": 3, "num_train_epochs": 7}}, "qat.num_train_epochs 7: has no effect with qat.max_steps 3"),
    ({"budget": hfc.Budget(disk_mb=0.1)}, "budget.disk_mb 0.1: int8 would take "),
    ({"prun": {}}, "prun: legal_bert has no such option; did you mean prune?"),
    ({"prune": {"num_heads": 3}}, "prune.num_heads: there is no such option; "),
    ({"scale": "medium"}, "scale medium: legal_bert has small and full"),
    ({"teacher": " "}, "teacher: nothing is given; give a value, or leave the option out"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=lambda value: value[:20] if isinstance(value, str) else "")
def test_a_refused_option_is_named_by_its_field(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    verbs = [hfc.run] if "budget" in options else [hfc.plan, hfc.run]  # a plan says that a limit fails, and goes on
    for verb in verbs:
        place = {"run_dir": tmp_path / "run"} if verb is hfc.run else {}
        with pytest.raises(hfc.UserError) as refused:
            verb("legal_bert", **place, **options)
        assert str(refused.value).startswith(said)
        assert "--" not in str(refused.value).partition(";")[0]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for call in (lambda: hfc.check(tmp_path), lambda: hfc.push(tmp_path, "org/name"), lambda: hfc.verify(tmp_path)):
        with pytest.raises(hfc.UserError):
            call()
    with pytest.raises(hfc.OptionError, match=r"^threads 0: must be at least 1$"):
        hfc.evaluate(tmp_path, ["task"], threads=0)
    with pytest.raises(hfc.UserError, match="is neither a run"):
        hfc.evaluate(tmp_path, ["task"])


def test_a_causal_lm_is_quantized_into_a_folder_that_transformers_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    model, task = write_llama(tmp_path / "my-llm"), write_task(tmp_path / "texts")
    small = hfc.quantize(model, bits=4, algorithm="rtn", group_size=32, data=task, run_dir=tmp_path / "run")
    assert small.parent == tmp_path / "run"
    assert capsys.readouterr().out == ""
    loaded = AutoModelForCausalLM.from_pretrained(small)
    assert loaded.config.quantization_config
    assert (
        hfc.quantize(model, bits=4, algorithm="rtn", group_size=32, data=task, run_dir=tmp_path / "run") == small
    )  # kept
    for options, said in (
        ({"bits": 5}, "bits 5: choose from 2 3 4 8"),
        ({"format": "pickle"}, "format pickle: choose from transformers onnx gguf"),
    ):
        with pytest.raises(hfc.OptionError, match=rf"^{said}$"):
            hfc.quantize(model, **options, run_dir=tmp_path / "no")  # type: ignore[arg-type]
    assert not (tmp_path / "no").exists()


def test_a_causal_lm_is_quantized_into_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model = write_llama(tmp_path / "my-llm")
    small = hfc.quantize(model, bits=4, format="gguf", run_dir=tmp_path / "run")
    assert len(gguf.GGUFReader(small / "model.gguf").tensors) > 10


def test_what_is_no_causal_lm_is_not_quantized(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(hfc.UserError, match="it is no causal LM"):
        hfc.quantize(tiny_model, run_dir=tmp_path / "run")
