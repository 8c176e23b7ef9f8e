"""Every option of every recipe changes what is run, or is refused in a line that says why and what to type."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from hfcompress.budget import Budget, LanguageBudget
from hfcompress.cli import dispatch
from hfcompress.cli.arguments import as_typed, option_names, option_value, spelled
from hfcompress.cli.running import RunOptions, folder_of, parse
from hfcompress.compress.quantize.bit_allocation import Allot
from hfcompress.compress.quantize.calibrate import Calibrate
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.errors import UserError
from hfcompress.folders.record import Record
from hfcompress.runs.effects import field_at, refuse_without_effect, walked, with_field
from hfcompress.runs.prepare import defaults_of
from hfcompress.runs.recipes import found_recipes, load_recipe
from hfcompress.stage import unused_options
from tests.language_models import write_llama, write_task

ROOT = Path(__file__).parents[2]
# The options that change nothing where no other option is given, by recipe: all of a group, or single ones.
WITHOUT_EFFECT: dict[str, set[str]] = {
    "any_causal_lm": {"task.calibration-windows", "measure.context"},
    "ctr_embeddings": set(),
    "iot_camera": {"qat.label-smoothing-factor", "prune.threads", "litert", "tensorrt"},
    "legal_bert": {
        "distill.relation-heads", "distill.label-smoothing-factor", "prune.label-smoothing-factor",
        "qat.label-smoothing-factor",
    },
    "legal_bert_structured": {
        "distill.relation-heads", "distill.label-smoothing-factor", "prune.label-smoothing-factor",
        "qat.label-smoothing-factor", "structured.label-smoothing-factor", "factorize.label-smoothing-factor",
        "low-rank.label-smoothing-factor", "structured.threads",
    },
    "multilingual": {"words", "factorize.label-smoothing-factor", "qat.label-smoothing-factor"},
    "resnet_prune": {"prune.threads"},
    "summarize_7b": {
        "weight-only.bits", "weight-only.group-size", "weight-only.symmetric", "weight-only.autoround.steps",
        "weight-only.autoround.seed", "genai.context", "measure.context", "summaries", "documents",
        "autotune",
    },
}  # fmt: skip
SWITCHES = {"documents.dataset"}  # in a group without effect, the option that gives it one
# No other value is taken alone: an energy wants --compress.kind factorized, and equal trainings are counted in epochs.
NOT_ALONE = {("ctr_embeddings", "compress.energy"), ("resnet_prune", "prune.max-steps")}
TEXTS = [("l1",), ("rows-4-7",), ("transformers",), ("rtn-8-g32",), ()]  # one of them is taken
# Nor is the Python of an environment that is not here.
NOT_ALONE |= {("legal_bert", "optimum-python"), ("legal_bert_structured", "optimum-python")}


def small(recipe: str, *arguments: str, folder: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The recipe's module, its options at the small scale, and with these arguments."""
    module, given = load_recipe(recipe), spelled(["run", *arguments])[1:]
    defaults = defaults_of(module.recipe, module.arguments("small", folder), set(option_names(given)))
    return module, defaults, parse(module, RunOptions, defaults, given, "hfcompress")


def refusal(recipe: str, *arguments: str, folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        small(recipe, *arguments, folder=folder)
    assert "\n" not in str(refused.value)
    return as_typed(refused.value, ["run", *arguments])


def names_of(options: dict[str, Any]) -> list[str]:
    """All options of a recipe as they are typed, those of a budget left out: each limit is a verdict."""
    found = []
    for group, value in options.items():
        if isinstance(value, Budget):
            continue
        found += [name.replace("_", "-") for name in names_in(group, value)]
    return found


def names_in(name: str, value: Any) -> list[str]:
    if not dataclasses.is_dataclass(value):
        return [name]
    return [inner for f in dataclasses.fields(value) for inner in names_in(f"{name}.{f.name}", getattr(value, f.name))]


def other_values(value: Any, hint: Any) -> list[Any]:
    """Other values than an option's; some may be refused."""
    if get_origin(hint) is not None and type(None) in get_args(hint):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if isinstance(value, bool):
        return [not value]
    if get_origin(hint) is tuple:
        return [(4,), (128,), (8, 4)] if get_args(hint)[0] is int else TEXTS
    if get_args(hint):
        return [choice for choice in get_args(hint) if choice != value]
    if isinstance(value, int):
        return [value + 1, value - 1, value + 4, 2 * value, 256, 3, 1]
    if isinstance(value, float):
        return [0.75 * value or 0.25, value + 0.25, 2 * value + 1]
    if value is None:
        return [{int: 3, float: 0.5, Path: ROOT / "README.md"}.get(hint, "other"), 6]
    return ["other", "hash", "3%", "all"]


@pytest.mark.parametrize("recipe", sorted(found_recipes()))
def test_the_options_without_effect_are_these_and_are_refused(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another value each option changes what the recipe asks of its stages, but for those known not to."""
    module = load_recipe(recipe)
    options = defaults_of(module.recipe, module.arguments("small", tmp_path), [])
    if recipe == "any_causal_lm":
        options["base"] = str(write_llama(tmp_path / "base"))
    before, refused = walked(module.recipe, options).noted(), set()
    for name in names_of(options):
        group, _, field = name.replace("-", "_").partition(".")
        outer, _, last = field.rpartition(".")
        owner = type(field_at(options[group], outer) if outer else options[group]) if field else module.recipe
        value = field_at(options[group], field) if field else options[group]
        outcomes = set()
        for other in [] if name == "base" else other_values(value, get_type_hints(owner)[last or group]):
            try:
                changed = with_field(options[group], field, other) if field else other
                found = options | {group: changed}
                refuse_without_effect(module.recipe, options, found, [name], module.needed)
                said = "has no effect" in capsys.readouterr().err
                outcomes.add("refused" if said else walked(module.recipe, found).noted() != before)
            except UserError as error:
                if "has no effect" not in str(error):
                    continue  # not a value that the option takes
                outcomes.add("refused")
            break
        assert False not in outcomes, f"{name} is accepted and changes nothing"
        assert outcomes or name == "base" or (recipe, name) in NOT_ALONE, f"{name}: no other value was taken"
        if "refused" in outcomes:
            refused.add(name)
    known = WITHOUT_EFFECT[recipe]
    groups = {name for name in known if "." not in name}
    assert {name for name in refused if name.partition(".")[0] not in groups} == known - groups
    for group in groups:
        assert {n for n in names_of(options) if n.startswith(f"{group}.")} - refused <= SWITCHES


@pytest.mark.parametrize(
    ("recipe", "typed", "line"),
    [
        ("legal_bert", "--base . --teacher . --finetune.max-steps 12", "--finetune.max-steps 12: has no effect with"),
        ("any_causal_lm", "--base . --task.calibration-windows 4", "--task.calibration-windows 4: has no effect in"),
        ("legal_bert", "--teacher . --no-trim-vocabulary", "--no-trim-vocabulary: has no effect with --teacher ."),
    ],
)
def test_what_holds_anyhow_is_said_and_not_refused(
    recipe: str, typed: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(write_llama(tmp_path / "base"))
    small(recipe, *typed.split(), folder=tmp_path)
    said = [text for text in capsys.readouterr().err.splitlines() if "has no effect" in text]
    assert [text.startswith(f"hfcompress: {line}") for text in said] == [True]


@pytest.mark.parametrize(
    ("recipe", "typed", "line"),
    [
        ("summarize_7b", "--weight-only.bits 2", "--weight-only.bits 2: has no effect for all matrices: the bits of "
         "each are chosen; give --allot.bits"),
        ("summarize_7b", "--weight_only.group_size 32", "--weight-only.group-size 32: has no effect for all matrices: "
         "the bits of each are chosen; give --allot.group-sizes"),
        ("summarize_7b", "--weight-only.algorithm rtn --weight-only.autoround.steps 50",
         "--weight-only.autoround.steps 50: has no effect with --weight-only.algorithm rtn"),
        ("summarize_7b", "--weight_only.autoround.steps 50",
         "--weight-only.autoround.steps 50: has no effect with --weight-only.algorithm gptq"),
        ("summarize_7b", "--weight-only.algorithm awq --weight-only.gptq.no-activation-order",
         "--weight-only.gptq.no-activation-order: has no effect with --weight-only.algorithm awq"),
        ("summarize_7b", "--weight-only.algorithm hqq --weight-only.bf16 no",
         "--weight-only.bf16 no: has no effect with --weight-only.algorithm hqq"),
        ("summarize_7b", "--genai.kv-cache float32 --genai.windows 4",
         "--genai.windows 4: has no effect with --genai.kv-cache float32"),
        ("summarize_7b", "--autotune.tokens 99", "--autotune.tokens 99: has no effect without --quantize autotune"),
        ("summarize_7b", "--quantize autotune --allot.bits 4",
         "--allot.bits 4: has no effect with --quantize autotune"),
        ("summarize_7b", "--quantize autotune --autotune.configurations rtn-4-g32 --autotune.bf16 no",
         "--autotune.bf16 no: has no effect without gptq or awq in --autotune.configurations"),
        ("summarize_7b", "--base . --pretrain.seed 3", "--pretrain.seed 3: has no effect with --base ."),
        ("summarize_7b", "--summaries.lookup 3", "--summaries.lookup 3: has no effect without --documents.dataset"),
        ("summarize_7b", "--measure.context 64", "--measure.context 64: has no effect here: give --budget.context"),
        ("legal_bert", "--teacher . --finetune.seed 3", "--finetune.seed 3: has no effect with --teacher ."),
        ("legal_bert", "--no-trim-vocabulary --trim.vocabulary-size 900",
         "--trim.vocabulary-size 900: has no effect with --no-trim-vocabulary"),
        ("legal_bert", "--qat.max-steps 3 --qat.num-train-epochs 7",
         "--qat.num-train-epochs 7: has no effect with --qat.max-steps 3"),
        ("legal_bert", "--qat.logits-weight 0 --qat.hard-weight 1 --qat.temperature 4",
         "--qat.temperature 4: has no effect with --qat.logits-weight 0"),
        ("legal_bert", "--distill.relation-heads 4",
         "--distill.relation-heads 4: has no effect with --distill.relation-weight 0"),
        ("legal_bert", "--prune.importance l1 --prune.score-learning-rate 1",
         "--prune.score-learning-rate 1: has no effect with --prune.importance l1: no scores are learned"),
        ("multilingual", "--words.seed 3", "--words.seed 3: has no effect without --curve"),
        ("multilingual", "--curve rows-4-7 --words.bits 4",
         "--words.bits 4: has no effect here: --curve KIND-BITS-RATIO says it"),
        ("resnet_prune", "--base . --new.blocks 3", "--new.blocks 3: has no effect with --base ."),
        ("iot_camera", "--prune.iterations 1 --prune.epochs-between 2",
         "--prune.epochs-between 2: has no effect with --prune.iterations 1"),
        ("iot_camera", "--litert.bits 32", "--litert.bits 32: has no effect without --deliver litert"),
        ("iot_camera", "--tensorrt.seed 3", "--tensorrt.seed 3: has no effect without --deliver tensorrt-onnx"),
        ("ctr_embeddings", "--task.dataset . --task.users 50",
         "--task.users 50: has no effect with --task.dataset .: it is of the generated log"),
        ("ctr_embeddings", "--compress.kind factorized --compress.energy 0.9 --compress.ratio 4",
         "--compress.ratio 4: has no effect with --compress.energy 0.9"),
    ],
)  # fmt: skip
def test_the_line_says_why(recipe: str, typed: str, line: str, tmp_path: Path) -> None:
    assert refusal(recipe, *typed.split(), folder=tmp_path) == line


@pytest.mark.parametrize("option", ["base", "teacher", "task.dataset", "task.text-column"])
def test_a_text_of_nothing_is_refused(option: str, tmp_path: Path) -> None:
    line = f"--{option}: nothing is given; give a value, or leave the option out"
    assert refusal("legal_bert", f"--{option}", "", folder=tmp_path) == line


def test_a_default_may_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, found = small("summarize_7b", "--weight-only.bits", "4", "--genai.context", "2048", folder=tmp_path)
    assert (found["weight_only"].bits, found["genai"].context) == (4, 2048)
    chosen = ("--weight-only.algorithm", "autoround", "--weight-only.autoround.steps", "50")
    assert small("summarize_7b", *chosen, folder=tmp_path)[2]["weight_only"].autoround.steps == 50
    assert small("multilingual", "--curve", "rows-4-7", "--words.seed", "3", folder=tmp_path)[2]["words"].seed == 3
    assert "has no effect" not in capsys.readouterr().err


class Watched(WeightOnly):
    """Notes which of its options are read while it runs."""

    read: set[str] = set()  # noqa: RUF012

    def __getattribute__(self, name: str) -> Any:
        Watched.read.add(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("algorithm", ["rtn", "hqq", "gptq", "awq", "autoround"])
@pytest.mark.parametrize("allotted", [True, False])
def test_what_is_refused_is_not_read_and_the_rest_is(algorithm: Any, allotted: bool, tmp_path: Path) -> None:
    task, model = write_task(tmp_path / "data"), write_llama(tmp_path / "model", tied=False)
    inputs: dict[str, Any] = {"model": model, "task": task}
    if allotted:
        for name in ("calibration", "allotment", "packed"):
            (tmp_path / name / "work").mkdir(parents=True)
        Calibrate(windows=2)(tmp_path / "calibration", **inputs)
        Allot(group_sizes=(32,))(tmp_path / "allotment", model=model, calibration=tmp_path / "calibration")
        inputs["allotment"] = tmp_path / "allotment"
    stage = Watched(algorithm=algorithm, group_size=32)
    unused = set(unused_options(stage, inputs))
    Watched.read.clear()
    (tmp_path / "packed" / "work").mkdir(parents=True, exist_ok=True)
    stage(tmp_path / "packed", **inputs)
    assert {field.name for field in dataclasses.fields(WeightOnly)} - Watched.read == unused


def test_every_option_is_read_somewhere() -> None:
    """By name, in the code of the package or of the recipes: an option that nothing reads is none."""
    files = [file for folder in ("hfcompress", "recipes") for file in (ROOT / folder).rglob("*.py")]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    read = set(re.findall(r"\.(\w+)\b", source)) | set(re.findall(r"[\"'](\w+)[\"']", source))
    for recipe in found_recipes():
        for parameter in inspect.signature(load_recipe(recipe).recipe).parameters.values():
            assert {
                part for name in names_in(parameter.name, parameter.default) for part in name.split(".")[1:]
            } <= read


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--run_dir", "x"], ["--run-dir", "x"]),
        (["--from_lock=a_b"], ["--from-lock=a_b"]),
        (["--weight_only.group_size", "a_b"], ["--weight-only.group-size", "a_b"]),
        (["-h", "--", "a_b"], ["-h", "--", "a_b"]),
    ],
)
def test_both_spellings_are_one_option(typed: list[str], said: list[str]) -> None:
    assert spelled(typed) == said


@pytest.mark.parametrize(
    "typed", [["--run_dir", "x", "--run-dir=y"], ["--smoke", "--smoke"], ["--a.b", "1", "--a.b", "1"]]
)
def test_an_option_is_given_once(typed: list[str]) -> None:
    with pytest.raises(UserError, match="given twice"):
        spelled(typed)
    with pytest.raises(UserError, match="contradict each other"):
        spelled(["--prune.heads", "--prune.no-heads"])


def test_the_last_of_an_option_given_twice_counts_in_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = spelled(["run", "lm", "--task.window", "32", "--run-dir=a", "--task.window=128", "--run_dir", "b"])
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "hfcompress: --task.window 128: given 2 times; the last one counts",
        "hfcompress: --run-dir b: given 2 times; the last one counts",
    ]
    assert folder_of(twice, "lm", "small") == Path("b")
    typed = "--allot.group-sizes 32 64 --task.window 32 --task.stride 8 --allot.group-sizes 64 --task.window 96"
    options = small("summarize_7b", *typed.split(), "--budget.ram-gb=1", "--budget.ram-gb", "None", folder=tmp_path)[2]
    assert (options["task"].window, options["allot"].group_sizes, options["budget"].ram_mb) == (96, (64,), None)


def test_an_option_is_no_value() -> None:
    assert option_value(["--run-dir", "--smoke"], "--run-dir") is None
    assert option_value(["--run-dir=--smoke"], "--run-dir") == "--smoke"


def test_a_limit_in_another_unit_takes_the_defaults_place(tmp_path: Path) -> None:
    def budget(*typed: str) -> LanguageBudget:
        return small("summarize_7b", *typed, folder=tmp_path)[2]["budget"]

    assert budget().ram_mb == 250
    assert (budget("--budget.ram-mb", "60").ram_mb, budget("--budget.ram_mb", "60").ram_gb) == (60, 0.06)
    assert (budget("--budget.ram-gb", "None").ram_mb, budget("--budget.ram-gb", "2").ram_mb) == (None, 2000)
    both = refusal("summarize_7b", "--budget.ram-mb", "60", "--budget.ram-gb", "1", folder=tmp_path)
    assert both == "--budget.ram-mb 60: --budget.ram-gb 1 limits the same memory; give one of them"


def test_nothing_is_written_into_a_run_of_another_recipe_or_into_a_finished_stage(tmp_path: Path) -> None:
    other, stage = tmp_path / "other", tmp_path / "run" / "lm-0"
    other.mkdir()
    (other / "recipe.lock.json").write_text(json.dumps({"recipe": "summarize_7b", "scale": "smoke", "options": {}}))
    stage.mkdir(parents=True)
    Record("lm", "Adopt", "0" * 16, {}, {}, 0.0, 0.0, "transformers", 0, 0, {}, {}).write(stage)
    for place, what in (
        (other, "it holds a run of summarize_7b"),
        (stage, "it is a finished stage"),
        (stage / "runs" / "a", "it lies in lm-0, a finished stage"),
    ):
        with pytest.raises(UserError, match=f"--run-dir {place}: {what}"):
            dispatch(["run", "legal_bert", "--smoke", "--run-dir", str(place)])
    assert [file.name for file in other.iterdir()] == ["recipe.lock.json"]
    assert [file.name for file in stage.iterdir()] == ["record.json"]
    assert folder_of(spelled(["--run-dir", str(stage.parent)]), "legal_bert", "small") == stage.parent


@pytest.mark.parametrize("spelling", ["--run-dir", "--run_dir"])
def test_the_run_lies_where_it_is_said(spelling: str) -> None:
    assert folder_of(spelled([spelling, "a b/ü"]), "legal_bert", "small") == Path("a b/ü")
    assert folder_of(spelled([f"{spelling}=x_y"]), "legal_bert", "small") == Path("x_y")
    assert folder_of([], "legal_bert", "small") == Path("runs/legal_bert-small")
    for name in ("", "  ", "a\nb", "a\x00b"):
        with pytest.raises(UserError, match=r"^run_dir"):
            folder_of(spelled([spelling, name]), "legal_bert", "small")


@pytest.mark.parametrize("spelling", ["--from-lock", "--from_lock"])
def test_a_lock_is_read_however_its_option_is_spelled(spelling: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json: no such file"):
        dispatch(["run", spelling, str(tmp_path / "nowhere.json")])
    with pytest.raises(UserError, match="b: no such file"):
        dispatch(["run", "legal_bert", "--from-lock", "a", "--from_lock", "b"])


@pytest.mark.parametrize("option", ["--private", "--create_pr", "--revision=x", "--license=mit"])
def test_options_of_a_push_want_a_push(option: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--[a-z_-]+: has no effect without --push-to-hub; leave it out$"):
        dispatch(["run", "legal_bert", "--run-dir", str(tmp_path / "run"), option])
    assert not (tmp_path / "run").exists()


def test_an_empty_scale_is_no_scale() -> None:
    with pytest.raises(UserError, match="legal_bert has small and full"):
        dispatch(["plan", "legal_bert", "--scale", ""])
