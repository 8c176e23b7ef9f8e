"""Refused options: named by their fields in Python, as they are typed on the command line, by plan as by run."""

import ast
import inspect
import pickle
import string
from pathlib import Path

import pytest

import hfcompress
from hfcompress.cli import dispatch
from hfcompress.cli.arguments import as_typed
from hfcompress.errors import CheckFailed, OptionError, Reason, UserError, command_line_option
from hfcompress.runs.recipes import found_recipes, load_recipe
from hfcompress.stage import Stage

PACKAGE = Path(hfcompress.__file__).parent

# Stage -> a recipe with it, an option that it refuses, and the reason.
REFUSED = {
    "AdoptLanguage": None,  # it has no options of its own to be typed
    "Allot": ("summarize_7b", "--allot.bits 5", "choose from 2 3 4 8"),
    "Autotune": ("summarize_7b", "--autotune.configurations hqq-4-g32", "point to each group; give hqq-4-g32-asymm"),
    "Calibrate": ("summarize_7b", "--calibrate.windows 0", "must be at least 1"),
    "CompressEmbeddings": ("ctr_embeddings", "--compress.ratio 0.5", "must be at least 1"),
    "Distill": ("legal_bert", "--distill.num-hidden-layers 9", "from 1 to 6 (the model it is cut from has no more)"),
    "ExportGenai": ("summarize_7b", "--genai.accuracy-level 3", "choose from 0 1 4"),
    "ExportLiteRT": ("iot_camera", "--litert.calibration-images 0", "must be at least 1"),
    "ExportTensorRT": ("iot_camera", "--tensorrt.calibration-images 0", "must be at least 1"),
    "Factorize": ("legal_bert_structured", "--low-rank.temperature 0", "must be above 0"),
    "FactorizeEmbeddings": ("multilingual", "--factorize.embedding-size 999", "from 2 to the hidden size, 384"),
    "Finetune": ("legal_bert", "--finetune.warmup-ratio 1.5", "from 0 to below 1"),
    "FinetuneImages": ("iot_camera", "--finetune.shift 0.6", "a share of the image, from 0 to 0.5"),
    "Measure": ("legal_bert", "--measure.sequence-length 4096", "teacher has 512 positions; give no more than that"),
    "MeasureClicks": ("ctr_embeddings", "--measure.threads 0", "must be at least 1"),
    "MeasureImages": ("iot_camera", "--measure.threads 2000", "must be at most 1024"),
    "MeasureLanguage": ("summarize_7b", "--measure.runs 0", "must be at least 1"),
    "MeasureSummaries": ("summarize_7b", "--summaries.max-new-tokens 0", "must be at least 1"),
    "MovementPrune": ("legal_bert", "--prune.num-attention-heads 99", "from 1 to "),
    "NewMobileNet": ("iot_camera", "--new.width 0", "above 0 and finite"),
    "NewResNet": ("resnet_prune", "--new.side 0", "at least 1"),
    "Pretrain": ("summarize_7b", "--pretrain.num-attention-heads 5", "twice as many must divide --pretrain.hidden"),
    "QAT": ("legal_bert", "--qat.bits 4", "integer kernels multiply 8 bits; give 8"),
    "QATImages": ("iot_camera", "--qat.learning-rate nan", "must be a finite number"),
    "QuantizeLinears": ("any_causal_lm", "--quantize-linears.group-size 7", "choose from "),
    "QuantizeTowers": None,  # it takes what its type allows
    "Rollout": ("ctr_embeddings", "--rollout.confidence 0.3", "lies between 0.5 and 1"),
    "StaticInt8Images": ("iot_camera", "--static.calibration-images 0", "must be at least 1"),
    "StructuredPrune": ("legal_bert_structured", "--structured.round-to 0", "must be at least 1"),
    "StructuredPruneImages": ("iot_camera", "--prune.epochs-between 0", "above 0"),
    "TrainClicks": ("ctr_embeddings", "--train.id-dropout 1", "from 0 to below 1"),
    "TrimVocabulary": ("legal_bert", "--trim.vocabulary-size 5", "pieces (special tokens and single characters) must"),
    "WeightOnly": ("summarize_7b", "--weight-only.max-memory-gb 0", "must be above 0"),
    "WordTable": ("multilingual", "--words.ratio 0.5", "must be at least 1"),
}  # fmt: skip


def refusal(verb: str, recipe: str, words: str) -> str:
    with pytest.raises(UserError) as refused:
        dispatch([verb, recipe, *words.split()])
    return str(refused.value)


def test_every_stage_of_a_recipe_is_in_the_table() -> None:
    stages = {
        type(parameter.default).__name__
        for name in found_recipes()
        for parameter in inspect.signature(load_recipe(name).recipe).parameters.values()
        if isinstance(parameter.default, Stage)
    }
    assert stages <= set(REFUSED), stages - set(REFUSED)


@pytest.mark.parametrize("stage", sorted(name for name, row in REFUSED.items() if row))
def test_plan_refuses_an_option_in_the_words_of_run(stage: str, tmp_path: Path) -> None:
    row = REFUSED[stage]
    assert row is not None
    recipe, words, reason = row
    planned = refusal("plan", recipe, words)
    assert planned == refusal("run", recipe, f"{words} --run-dir {tmp_path / 'run'}")
    assert planned.startswith(words.partition(" ")[0])
    assert reason in planned
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*-*"))


def test_what_an_engine_has_not_is_refused_with_the_options_as_typed() -> None:
    asked = "--weight-only.engine auto-round --weight-only.algorithm gptq"
    assert refusal("plan", "summarize_7b", asked) == (
        "--weight-only.engine auto-round: it has autoround here, not gptq; give one of them with "
        "--weight-only.algorithm, or --weight-only.engine neural-compressor or --weight-only.engine own"
    )


def test_a_field_is_named_as_a_python_caller_knows_it_and_as_it_is_typed() -> None:
    error = OptionError("hidden_size", "must divide {num_attention_heads} {n}; see {budget.disk_mb}, {.base}", 96, n=7)
    assert str(error) == "hidden_size 96: must divide num_attention_heads 7; see budget.disk_mb, base"
    assert error.reason.startswith("must divide")
    typed = ["run", "x", "--student.hidden_size", "96"]
    assert as_typed(error, typed) == (
        "--student.hidden-size 96: must divide --student.num-attention-heads 7; see --budget.disk-mb, --base"
    )
    error.group = "other"
    assert str(error).startswith("other.hidden_size 96: must divide other.num_attention_heads")
    assert as_typed(error, typed).startswith("--other.hidden-size 96: must divide --other.num-attention-heads")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.group) == (OptionError, str(error), "other")


def test_an_option_typed_in_two_groups_is_the_one_with_that_value() -> None:
    error = OptionError("shift", "too far", 0.9)
    assert as_typed(error, ["--a.shift", "0.1", "--b.shift", "0.9"]) == "--b.shift 0.9: too far"
    assert as_typed(error, ["--a.shift=0.9", "--b.shift", "0.9"]) == "--a.shift or --b.shift 0.9: too far"
    assert as_typed(error, []) == "--shift 0.9: too far"


def test_values_are_never_read_as_templates() -> None:
    """A file's name may have braces, and so may what a library says."""
    text = "{0} {x.__class__} {"
    assert str(OptionError("dataset", "no such file {place}", text, place=text)) == (
        f"dataset {text}: no such file {text}"
    )
    assert str(Reason("with {other}", other=Reason("{heads:no}"))) == "with heads False"
    assert str(CheckFailed(Reason("{share:.1%} differ; lower {learning_rate}", share=0.5))) == (
        "50.0% differ; lower learning_rate"
    )


def test_a_switch_is_spelled_with_no() -> None:
    assert command_line_option("heads", False, "prune") == "--prune.no-heads"
    assert command_line_option(".trim_vocabulary", False) == "--no-trim-vocabulary"
    assert command_line_option("widths", (4, 8), "new") == "--new.widths 4 8"


def calls(source: str) -> list[ast.Call]:
    """The calls that make an OptionError or a Reason."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call for call in found if isinstance(call.func, ast.Name) and call.func.id in ("OptionError", "Reason")]


def unknown_names(source: str, fields: set[str]) -> list[str]:
    """The names in templates for which no value is given and which are no option of any stage."""
    unknown = []
    for call in calls(source):
        given = {keyword.arg for keyword in call.keywords}
        for argument in call.args[:2]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                names = [name for _, name, _, _ in string.Formatter().parse(argument.value) if name is not None]
                unknown += [n for n in names if n not in given and "." not in n and n not in fields]
    return unknown


def fields_of_package() -> set[str]:
    """All annotated names in the package's classes: options are among them."""
    return {
        node.target.id
        for file in PACKAGE.rglob("*.py")
        for owner in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def test_every_sentence_names_options_that_there_are() -> None:
    fields, seen = fields_of_package(), 0
    for file in PACKAGE.rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        seen += len(calls(source))
        assert not unknown_names(source, fields), file
        assert "--*." not in source, f"{file}: an option is named by its field, in an OptionError or a Reason"
    assert seen > 60
    assert unknown_names('OptionError("a", "must divide {hidden_sise}", 3)', fields) == ["hidden_sise"]
