"""Options of an algorithm are a group of their own: help lists the chosen one's, and the names before are refused."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import hfcompress as hfc
from hfcompress.cli import dispatch
from hfcompress.cli.arguments import as_typed, spelled
from hfcompress.cli.running import RunOptions, parse
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.engines.engine import Autoround, Gptq, Tuning
from hfcompress.errors import UserError
from hfcompress.recipes import summarize_7b
from hfcompress.runs.lock import LOCK, lock, options_from, read_lock, require_same_data
from hfcompress.runs.prepare import changed_names, merged, signature_defaults
from hfcompress.runs.recipes import load_recipe
from hfcompress.stage import chosen_by, content_key, of_choice, options_of, unused_options
from hfcompress.tasks.text_generation import CausalLM
from tests.language_models import write_task

OWN = {group: [f.name for f in dataclasses.fields(value)] for group, value in vars(Tuning()).items()}


def parsed(*arguments: str) -> dict[str, Any]:
    defaults = signature_defaults(summarize_7b.recipe)
    return parse(load_recipe("summarize_7b"), RunOptions, defaults, list(arguments), "hfcompress run summarize_7b")


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as refused:
        dispatch([*arguments])
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize("algorithm", [None, "rtn", "hqq", "gptq", "awq", "autoround"])
def test_help_lists_the_options_of_the_chosen_algorithm_and_names_the_groups_of_the_others(
    verb: str, algorithm: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [] if algorithm is None else [f"--weight_only.algorithm={algorithm}"]
    with pytest.raises(SystemExit):
        dispatch([verb, "summarize_7b", *chosen, "--help"])
    text = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    listed = set(re.findall(r"^\W*--weight-only\.(\w+\.[\w-]+)", text, re.M))
    group = algorithm or "gptq"
    assert listed == {f"{group}.{field}".replace("_", "-") for field in OWN.get(group, [])}
    said = " ".join(re.sub(r"[│|\n]", " ", text).split())
    others = [f"--weight-only.{name}.* (--weight-only.algorithm {name} --help)" for name in OWN if name != group]
    assert f"Not listed: {', '.join(others)}." in said
    assert "--weight-only.bf16" in text


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(("group", "field"), [(group, field) for group, fields in OWN.items() for field in fields])
def test_the_name_before_is_refused_with_the_new_one(verb: str, group: str, field: str) -> None:
    option = "no-activation-order" if field == "activation_order" else field
    line = f"there is no such option; did you mean --weight-only.{group}.{option}?"
    assert refusal(verb, "summarize_7b", f"--weight-only.{option}") == f"--weight-only.{option}: {line}"
    typed = f"--weight_only.{option}=1"  # as somebody types it from Python
    assert refusal(verb, "summarize_7b", typed) == f"--weight_only.{option}: {line}"


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("--weight-only.autoround.steps 9", "has no effect with --weight-only.algorithm gptq"),
        ("--weight-only.autoround.steps 0", "must be at least 1"),
        ("--weight-only.gptq.damping -1", "must be at least 0"),
        (
            "--weight-only.autoround.seed 7 --weight-only.algorithm awq",
            "has no effect with --weight-only.algorithm awq",
        ),
    ],
)
def test_plan_and_run_refuse_an_algorithms_option_in_the_same_words(
    verb: str, typed: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    option = " ".join(typed.split()[:2])
    assert refusal(verb, "summarize_7b", *typed.split()) == f"{option}: {line}"
    assert list(tmp_path.iterdir()) == []


def test_the_options_reach_the_algorithm(tmp_path: Path) -> None:
    arguments = "--weight-only.algorithm autoround --weight-only.autoround.steps 50 --weight-only.autoround.seed 3"
    stage = parsed(*arguments.split())["weight_only"]
    assert stage == WeightOnly(algorithm="autoround", autoround=Autoround(steps=50, seed=3))
    assert type(stage) is WeightOnly
    gptq = parsed("--weight-only.gptq.no-activation-order", "--weight-only.gptq.damping", "0.2")["weight_only"].gptq
    assert gptq == Gptq(activation_order=False, damping=0.2)


def test_a_caller_of_python_gives_a_group_or_a_dict_of_it() -> None:
    default, asked = WeightOnly(), {"algorithm": "autoround", "autoround": {"steps": 50}}
    found = merged("weight_only", default, asked)
    assert found == WeightOnly(algorithm="autoround", autoround=Autoround(steps=50))
    assert changed_names("weight_only", default, found) == ["weight-only.algorithm", "weight-only.autoround.steps"]
    for wrong, line in [
        ({"steps": 50}, "weight_only.steps: there is no such option; did you mean autoround.steps?"),
        ({"autoround": {"step": 5}}, "weight_only.autoround.step: there is no such option; did you mean steps?"),
        ({"autoround": {"steps": 0}}, "weight_only.autoround.steps 0: must be at least 1"),
    ]:
        with pytest.raises(hfc.OptionError, match=rf"^{re.escape(line)}$"):
            merged("weight_only", default, wrong)
    with pytest.raises(
        hfc.OptionError, match=r"^weight_only\.autoround\.steps 50: has no effect with weight_only\.alg"
    ):
        hfc.plan("summarize_7b", weight_only={"autoround": {"steps": 50}})


def test_an_earlier_lock_gives_the_same_options(tmp_path: Path) -> None:
    """In it the options of the algorithms stand among the stage's own."""
    task = CausalLM(dataset=str(write_task(tmp_path / "data").dataset))
    stage = WeightOnly(algorithm="autoround", gptq=Gptq(damping=0.5), autoround=Autoround(7, 3))
    now = json.loads(json.dumps(lock("summarize_7b", "small", {"weight_only": stage, "task": task}, task.identity)))
    before = now["options"]["weight_only"]
    before |= before.pop("gptq") | before.pop("autoround")
    (tmp_path / LOCK).write_text(json.dumps(now))
    locked = read_lock(tmp_path / LOCK, task=True)
    given = [f"--task.dataset={task.dataset}"]
    defaults = {"weight_only": WeightOnly(), "task": task}
    assert options_from(locked, defaults, given)["weight_only"] == stage
    require_same_data(locked, {"weight_only": stage, "task": task})


def test_the_key_of_the_same_choice_is_that_of_before() -> None:
    """The options of a group enter under the names that they had among the stage's own."""
    assert set(options_of(WeightOnly())) >= {"activation_order", "damping", "steps", "seed"}
    keys = {
        content_key(stage, {})
        for stage in (
            WeightOnly(),
            WeightOnly(gptq=Gptq(damping=0.1)),
            WeightOnly(gptq=Gptq(activation_order=False)),
            WeightOnly(autoround=Autoround(steps=9)),
            WeightOnly(autoround=Autoround(seed=9)),
        )
    }
    assert len(keys) == 5


@dataclasses.dataclass(frozen=True)
class Two:
    """Two groups that both have a seed, and a stage that has a `steps` of its own."""

    steps: int = 1
    algorithm: str = "a"
    a: Autoround = dataclasses.field(default=Autoround(2, 3), metadata=of_choice("algorithm", "a"))
    b: Autoround = dataclasses.field(default=Autoround(4, 5), metadata=of_choice("algorithm", "b"))


def test_no_option_of_a_key_hides_another() -> None:
    found = options_of(Two())  # type: ignore[arg-type]
    assert found == {"steps": 1, "algorithm": "a", "a.steps": 2, "seed": 3, "b.steps": 4, "b.seed": 5}
    assert set(unused_options(Two(), {})) == {"b"}
    assert set(unused_options(Two(algorithm="c"), {})) == {"a", "b"}


def test_a_group_is_of_an_algorithm_that_there_is() -> None:
    choices = get_args(get_type_hints(WeightOnly)["algorithm"])
    assert [of for of in chosen_by(WeightOnly()).values() if of[0] != "algorithm" or of[1] not in choices] == []
    assert set(chosen_by(WeightOnly())) == set(vars(Tuning()))
    for name in vars(Tuning()):  # what an engine is told is what the stage has
        assert inspect.signature(WeightOnly).parameters[name].default == getattr(Tuning(), name)


def test_an_option_with_underscores_is_named_as_typed() -> None:
    typed = ["run", "summarize_7b", "--weight_only.autoround.steps", "0"]
    with pytest.raises(UserError) as refused:
        parsed(*spelled(typed)[2:])
    assert as_typed(refused.value, typed) == "--weight-only.autoround.steps 0: must be at least 1"
