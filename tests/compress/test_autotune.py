"""Neural Compressor's autotune with our verdict: the smallest configuration whose loss is shown to be allowed."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.architectures.models import load_tokenizer
from hfcompress.budget import LanguageBudget
from hfcompress.cli import dispatch
from hfcompress.compress.quantize import autotune as stage_file
from hfcompress.compress.quantize.autotune import TUNED, Autotune, Configuration, Trials, require_absorbable
from hfcompress.compress.quantize.weight_only import WeightOnly
from hfcompress.engines.autotune import autotune
from hfcompress.errors import OptionError, has
from hfcompress.evaluation import language
from hfcompress.formats.runtimes.decoder import open_decoder
from hfcompress.formats.size import sizes
from hfcompress.planning.decoders import beside_matrices
from hfcompress.planning.plan import Plan
from hfcompress.recipes import summarize_7b
from hfcompress.report.sections import pages_of
from hfcompress.stage import unused_options
from hfcompress.tasks.text_generation import CausalLM
from tests.language_models import train_llama, write_task

pytestmark = pytest.mark.skipif(not has("neural_compressor"), reason="neural_compressor is not installed here")
TRIED = ("rtn-8-g32", "rtn-2-g0", "gptq-4-g32")  # not in the order of their sizes
OPTIONS = Autotune(TRIED, tokens=300, bf16="no", resamples=300)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return write_task(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, task: CausalLM) -> Path:
    """A Llama that has learned the texts: to 2 bits it cannot be rounded."""
    return train_llama(tmp_path_factory.mktemp("lm"), task, steps=100, layers=1)


def made(out: Path, options: Autotune, **inputs: Any) -> dict[str, Any]:
    (out / "work").mkdir(parents=True, exist_ok=True)
    return options(out, context=64, **inputs)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory, trained: Path, task: CausalLM) -> Path:
    out = tmp_path_factory.mktemp("tuned")
    made(out, OPTIONS, model=trained, task=task, drop=0.05)
    return out


def test_the_smallest_that_is_shown_to_keep_the_drop_is_written(
    chosen: Path, trained: Path, task: CausalLM, tmp_path: Path
) -> None:
    found = json.loads((chosen / TUNED).read_text())
    tried = [(row["configuration"], row["verdict"] == "shown") for row in found["tried"]]
    assert tried == [("rtn-2-g0", False), ("gptq-4-g32", True)]
    assert (found["chosen"], found["kept"], found["left_out"]) == ("gptq-4-g32", True, [])
    assert found["tried"][0]["bytes"] <= found["tried"][1]["bytes"] < sizes(trained)["bytes"]
    (tmp_path / "work").mkdir()
    WeightOnly("gptq", 4, 32, bf16="no", engine="neural-compressor")(tmp_path, model=trained, task=task)
    for file in tmp_path.glob("*.safetensors"):
        assert file.read_bytes() == (chosen / file.name).read_bytes()
    assert sizes(chosen)["bytes"] == sizes(tmp_path)["bytes"], "what was tried is not shipped"


def test_the_figures_are_those_of_the_model_on_validation_text(chosen: Path, trained: Path, task: CausalLM) -> None:
    found = json.loads((chosen / TUNED).read_text())
    windows = task.windows(load_tokenizer(trained), "validation", 300)
    of_test = [window.ids for window in task.windows(load_tokenizer(trained), "test", 10**6)]
    assert not any(window.ids in of_test for window in windows)

    def perplexity(folder: Path) -> float:
        decoder = open_decoder(folder, 1)
        return language.scores((language.log_probabilities(decoder, w) for w in windows), windows).perplexity

    before, after = perplexity(trained), perplexity(chosen)
    assert found["perplexity"] == pytest.approx(before, rel=1e-4)
    last = found["tried"][-1]
    assert last["perplexity"] == pytest.approx(after, rel=1e-4)
    assert -last["difference"] == pytest.approx(after / before - 1, abs=1e-4)
    assert last["lower_bound"] <= last["difference"]


def test_a_broken_model_is_not_chosen_and_where_none_holds_it_is_said(
    trained: Path, task: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 4-bit models' columns are written in another order: 8 bits are taken, and without them the nearest one."""
    right = WeightOnly.alone

    def broken(self: WeightOnly, *more: Any) -> dict[str, Any]:
        found = right(self, *more)
        return {n: v.flip(0) if n.endswith(".codes") and self.bits == 4 else v for n, v in found.items()}

    monkeypatch.setattr(WeightOnly, "alone", broken)
    options = replace(OPTIONS, configurations=("rtn-4-g32", "rtn-4-g64", "rtn-8-g32"))
    found = made(tmp_path / "first", options, model=trained, task=task, drop=0.1)
    assert [row["verdict"] for row in found["tried"]] == ["exceeded", "exceeded", "shown"]
    assert (found["chosen"], found["kept"]) == ("rtn-8-g32", True)
    options = replace(options, configurations=options.configurations[:2])
    found = made(tmp_path / "second", options, model=trained, task=task, drop=0.1)
    best = max(found["tried"], key=lambda row: row["lower_bound"])
    assert (found["chosen"], found["kept"]) == (best["configuration"], False)
    assert (tmp_path / "second" / "surgery.json").is_file()
    page = str(pages_of({"sections": {"autotune": found}})[0])
    assert f"{found['chosen']} comes nearest" in page


def test_what_was_tried_before_a_kill_is_kept(
    chosen: Path, trained: Path, task: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, seen = Trials.judge, list[str]()

    def killed(self: Trials, name: str, size: float) -> float:
        if name.startswith("gptq") and name not in seen:
            seen.append(name)
            raise KeyboardInterrupt
        return right(self, name, size)

    monkeypatch.setattr(Trials, "judge", killed)
    inputs: dict[str, Any] = {"model": trained, "task": task, "drop": 0.05}
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, OPTIONS, **inputs)
    quantized = []

    class Counted(WeightOnly):
        def __call__(self, *more: Any, **inputs: Any) -> dict[str, Any]:
            quantized.append((self.algorithm, self.bits))
            return super().__call__(*more, **inputs)

    monkeypatch.setattr(stage_file, "WeightOnly", Counted)
    made(tmp_path, OPTIONS, **inputs)
    assert quantized == [("gptq", 4)], "the model of 2 bits had its figures"
    assert (tmp_path / TUNED).read_bytes() == (chosen / TUNED).read_bytes()
    for file in chosen.glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def test_what_exceeds_a_limit_is_not_tried_and_plan_predicts_the_rest(trained: Path, task: CausalLM) -> None:
    shape = LanguageShape.read(trained)
    everything, _ = OPTIONS.fitting(shape, None, None, 64)
    assert [found.name for found in everything] == ["rtn-2-g0", "gptq-4-g32", "rtn-8-g32"]
    file = [found.sizes(shape)["file"] for found in everything]
    beside = (file[1] + file[2]) / 2  # between 4 and 8 bits
    disk_mb = (beside + beside_matrices(shape, 64)) / 1e6
    kept, left_out = OPTIONS.fitting(shape, None, disk_mb, 64)
    assert [found.name for found in kept] == ["rtn-2-g0", "gptq-4-g32"]
    assert [(row["configuration"], row["limit"]) for row in left_out] == [("rtn-8-g32", "budget.disk_mb")]
    common: dict[str, Any] = {"task": task, "drop": 0.1, "context": 64, "kv_bits": 8}
    assert OPTIONS.predict(shape, ram_gb=None, disk_mb=disk_mb, **common).weight_bits == pytest.approx(4.5)
    assert OPTIONS.predict(shape, ram_gb=None, disk_mb=None, **common).weight_bits == pytest.approx(8.5)
    with pytest.raises(OptionError, match=r"^budget.ram_gb 0.1: .* 0.00 MB .*rtn-2-g0, the smallest of"):
        OPTIONS.predict(shape, ram_gb=0.1, disk_mb=None, **common)


@pytest.mark.parametrize(
    ("configurations", "words"),
    [
        (("gptq-5-g32",), "configurations gptq-5-g32: give ALGORITHM-BITS-gGROUP"),
        (("teq-4-g32",), "configurations teq-4-g32: teq fails in Neural Compressor 3.10; give gptq or awq"),
        (("autoround-4-g32",), "autoround fails in Neural Compressor 3.10; .*weight_only.engine auto-round"),
        (("hqq-4-g32",), "its HQQ fits a zero point to each group; give hqq-4-g32-asymmetric"),
        (("rtn-4-g32", "rtn-4-g32"), "it is there twice"),
        ((), "give at least one"),
    ],
)
def test_what_cannot_be_tried_is_refused(configurations: tuple[str, ...], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Autotune(configurations)


def test_norms_that_its_awq_scales_wrongly_are_refused_by_the_plan_too() -> None:
    gemma = {"model_type": "gemma", "hidden_size": 64, "num_hidden_layers": 1}
    require_absorbable(("gptq-4-g32",), gemma)
    with pytest.raises(OptionError, match=r"norms multiply by 1 \+ weight; leave awq-4-g32 out$"):
        require_absorbable(("gptq-4-g32", "awq-4-g32"), gemma)


def test_an_option_that_nothing_reads_is_named() -> None:
    assert "bf16" in unused_options(Autotune(("rtn-4-g32",)), {})
    assert not unused_options(OPTIONS, {})


def test_a_budget_without_a_drop_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^budget\.drop: it does not limit perplexity, and quantize autotune stops"):
        summarize_7b.recipe(Plan(), quantize="autotune", budget=LanguageBudget(disk_mb=3))  # type: ignore[arg-type]
    assert summarize_7b.allowed_drop(LanguageBudget(drop={"perplexity": 0.2})) == 0.2


@pytest.mark.parametrize(
    ("slack", "expected", "tried"),
    [
        ({"a": -1e-18, "b": 0.0, "c": 1.0}, "b", ["a", "b"]),
        ({"a": -0.5, "b": -0.2, "c": math.nan}, "b", ["a", "b", "c", "b"]),
        ({"a": -math.inf, "b": -1e9, "c": -2.0}, "c", ["a", "b", "c"]),
    ],
)
def test_the_loop_stops_at_the_first_that_is_good_enough(
    slack: dict[str, float], expected: str, tried: list[str]
) -> None:
    seen: list[str] = []
    assert autotune(list(slack), seen.append, slack.__getitem__) == expected
    assert seen == tried


def test_a_failure_within_reaches_the_caller_and_leaves_nothing_registered() -> None:
    from neural_compressor.torch.utils import algos_mapping

    def fails(name: str) -> None:
        raise OptionError("configurations", "no", name)

    with pytest.raises(OptionError, match="configurations a: no"):
        autotune(["a"], fails, lambda name: 0.0)
    assert "hfcompress" not in algos_mapping


def test_every_default_is_a_configuration() -> None:
    assert [Configuration.read(text).name for text in Autotune().configurations] == [*Autotune().configurations]


@pytest.mark.slow
def test_the_recipe_ends_with_a_verdict_a_row_and_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["run", "summarize_7b", "--smoke", "--quantize", "autotune"]
    assert dispatch([*common, "--run-dir", str(tmp_path / "holds")]) == 0
    report = json.loads((tmp_path / "holds" / "report.json").read_text())
    assert [row["name"] for row in report["models"]] == ["lm", "rtn-4-g128", "packed", "onnx", "transformers"]
    assert {verdict["limit"] for verdict in report["verdicts"]} == {"disk_mb", "drop:perplexity"}
    page = (tmp_path / "holds" / "report.html").read_text()
    assert "rtn-4-g64 is the smallest whose rise of perplexity" in page
    assert "Where the bits went" not in page
    assert "rtn-4-g64" in capsys.readouterr().err
    two = ["--autotune.configurations", "rtn-2-g64", "--budget.drop.perplexity", "0.0001"]
    assert dispatch([*common, *two, "--run-dir", str(tmp_path / "fails")]) == 1
    assert "rtn-2-g64 comes nearest" in (tmp_path / "fails" / "report.html").read_text()
