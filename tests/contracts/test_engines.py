"""What every engine of the table keeps, with each of its algorithms: ours or theirs on the same layer and grid."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfcompress import engines
from hfcompress.architectures.checkpoint import Checkpoint
from hfcompress.architectures.decoder_stack import DecoderStack
from hfcompress.architectures.decoders import kind_of
from hfcompress.architectures.quantized_model import Dequantized, PackedModel
from hfcompress.compress.quantize.engine_layers import require_engine, writers
from hfcompress.compress.quantize.weight_only import CALIBRATED, WeightOnly
from hfcompress.engines import ENGINES
from hfcompress.engines.engine import Autoround, Engine, Layer, Rounded, Tuning, checked
from hfcompress.errors import EXTRAS, CheckFailed, OptionError, Reason, UserError, has
from hfcompress.formats.compressed_tensors import ExportTransformers
from hfcompress.ops.grid import Grid
from hfcompress.ops.rtn import rtn
from hfcompress.stage import content_key, libraries_of, library_version, unused_options
from hfcompress.tasks.text_generation import CausalLM
from tests.language_models import rewrite, write_llama, write_task

CASES = [(name, algorithm) for name, engine in ENGINES.items() for algorithm in engine.algorithms]
GRIDS = (Grid(4, 0, True), Grid(3, 32, True), Grid(2, 32, False), Grid(8, 32, False))
WORST = {"rtn": 1.02, "hqq": 2.0, "gptq": 2.5, "awq": 2.0, "autoround": 1.0}
"""Their error of a layer's outputs, at most, as a multiple of ours by the algorithm of the same name."""


def skip_without(name: str) -> None:
    if not has(ENGINES[name].package):
        pytest.skip(f"{ENGINES[name].package} is not installed here")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return write_task(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of one layer, in which some inputs of each matrix are larger than others, as in real ones."""
    folder = write_llama(tmp_path_factory.mktemp("model"), num_hidden_layers=1, tied=False)
    spread = torch.logspace(-0.7, 0.7, 64)[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    for norm in ("input_layernorm", "post_attention_layernorm"):
        rewrite(folder, f"model.layers.0.{norm}.weight", lambda weight: weight * spread)
    return folder


class Original:
    """The model's layer and the hidden states that go into it."""

    def __init__(self, model: Path, task: CausalLM) -> None:
        from transformers import AutoTokenizer

        self.stack = DecoderStack(Checkpoint(model))
        self.hidden = self.stack.embed(task.calibration(AutoTokenizer.from_pretrained(model)))

    def layer(self, grid: Grid) -> Layer:
        linears = self.stack.kind.linears
        found = self.stack.layer(0)
        grids = {name: grid.fitting(found.get_submodule(name).in_features) for name in linears}
        batches = lambda: iter(self.hidden.split(4))  # noqa: E731
        return Layer(found, grids, batches, lambda module, hidden: self.stack.run(module, hidden))

    def error(self, other: torch.nn.Module) -> float:
        """The squared change of a layer's outputs, as a share of what the layer adds."""
        with torch.inference_mode():
            wanted, found = (self.stack.run(layer, self.hidden) for layer in (self.stack.layer(0), other))
            return float((found - wanted).square().sum() / (wanted - self.hidden).square().sum())


@pytest.fixture(scope="module")
def original(model: Path, task: CausalLM) -> Original:
    return Original(model, task)


def with_answer(layer: Layer, answer: Rounded) -> torch.nn.Module:
    """The layer with the weights that an answer stands for."""
    with torch.no_grad():
        for name, quantized in answer.matrices.items():
            layer.module.get_submodule(name).weight.copy_(quantized.dequantize())
        for name, value in answer.plain.items():
            layer.module.get_parameter(name).copy_(value)
    return layer.module


def by_ours(algorithm: Any, grid: Grid, model: Path, task: CausalLM, out: Path) -> torch.nn.Module:
    """The layer as our own algorithm leaves it."""
    (out / "work").mkdir(parents=True)
    stage = WeightOnly(algorithm, grid.bits, grid.group_size, grid.symmetric, autoround=Autoround(50), bf16="no")
    stage(out, model=model, task=task)
    return DecoderStack(Dequantized(PackedModel(out))).layer(0)


def theirs(name: str, algorithm: str, layer: Layer, original: Original) -> Rounded:
    given = replace(layer, writers=writers(original.stack.kind)) if algorithm == "awq" else layer
    return checked(ENGINES[name], given, algorithm, Tuning(autoround=Autoround(50)))


def require_near(error: float, ours: float, nearest: float, algorithm: str) -> None:
    """Their error is within the bound of ours, and below rounding to nearest where text calibrates."""
    assert error <= WORST[algorithm] * ours, f"{error:.4f}, ours {ours:.4f}"
    assert algorithm not in CALIBRATED or error < nearest, f"{error:.4f}, to nearest {nearest:.4f}"


@pytest.mark.parametrize(("name", "algorithm"), CASES)
def test_the_same_layer_and_grid_by_ours_and_by_theirs(
    name: str, algorithm: str, original: Original, model: Path, task: CausalLM, tmp_path: Path
) -> None:
    skip_without(name)
    for grid in GRIDS:
        if ENGINES[name].refusal(algorithm, grid):
            continue
        nearest = original.layer(grid)
        rounded = {n: rtn(nearest.module.get_submodule(n).weight, g) for n, g in nearest.grids.items()}
        floor = original.error(with_answer(nearest, Rounded(rounded)))
        layer = original.layer(grid)
        error = original.error(with_answer(layer, theirs(name, algorithm, layer, original)))
        if grid.bits == 8:  # nothing is left to gain; none of them may lose
            assert error <= 1.05 * floor
            continue
        ours = original.error(by_ours(algorithm, grid, model, task, tmp_path / str(GRIDS.index(grid))))
        require_near(error, ours, floor, algorithm)


@pytest.mark.parametrize(("name", "algorithm"), CASES)
def test_the_same_seed_gives_the_same_and_nothing_else_is_touched(
    name: str, algorithm: str, original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without(name)
    monkeypatch.chdir(tmp_path)
    looked_up: list[Any] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *host, **_: looked_up.append(host) or [])
    answers = []
    for _ in range(2):
        layer = original.layer(Grid(3, 32, False))
        before = {key: value.clone() for key, value in layer.module.state_dict().items()}
        hidden, generators = original.hidden.clone(), (torch.get_rng_state(), np.random.get_state()[1].copy())
        answers.append(theirs(name, algorithm, layer, original))
        assert all(torch.equal(before[key], value) for key, value in layer.module.state_dict().items())
        assert layer.module.state_dict().keys() == before.keys()
        assert torch.equal(original.hidden, hidden)
        assert torch.equal(torch.get_rng_state(), generators[0])
        assert np.array_equal(np.random.get_state()[1], generators[1])
        torch.rand(3)
    assert not list(tmp_path.iterdir()), "files were left in the working directory"
    assert not looked_up, "the network was asked"
    for key, quantized in answers[0].matrices.items():
        other = answers[1].matrices[key]
        for part in ("codes", "scales", "zeros"):
            assert torch.equal(getattr(quantized, part), getattr(other, part))
    assert answers[0].plain.keys() == answers[1].plain.keys()


@pytest.mark.parametrize(("name", "algorithm"), CASES)
def test_the_stage_records_it_and_a_delivery_format_holds_it(
    name: str, algorithm: Any, model: Path, task: CausalLM, tmp_path: Path
) -> None:
    """The transformers folder is checked against the packed integers by its own stage."""
    skip_without(name)
    (tmp_path / "packed" / "work").mkdir(parents=True)
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    stage = WeightOnly(algorithm, 4, 32, False, engine=name, autoround=Autoround(10))  # type: ignore[arg-type]
    read: set[str] = set()
    watched = type("Watched", (WeightOnly,), {"__getattribute__": reading(read)})(**vars(stage))
    read.clear()
    found = watched(tmp_path / "packed", model=model, task=task)
    assert {field for field in vars(stage) if field not in read} == set(unused_options(stage, {}))
    assert {file.name: file.read_bytes() for file in model.iterdir()} == files
    assert (found["engine"], found["algorithm"], found["matrices"]) == (name, algorithm, 9)
    assert found["bits_per_weight"] == pytest.approx(4 + 20 / 32)
    if algorithm in CALIBRATED:
        assert 0 < found["relative_errors"]["model.layers.0"] < 0.2
    (tmp_path / "out").mkdir()
    assert ExportTransformers()(tmp_path / "out", model=tmp_path / "packed", task=task)["checked"] is True


def reading(seen: set[str]) -> Callable[[Any, str], Any]:
    def get(self: Any, name: str) -> Any:
        seen.add(name)
        return object.__getattribute__(self, name)

    return get


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_an_entry_of_the_table_and_of_the_extras(name: str) -> None:
    engine = ENGINES[name]
    assert isinstance(engine, Engine)
    assert EXTRAS[engine.package][0] == name
    assert {library.replace("-", "_") for library in engine.libraries} >= {engine.package}
    sizes = engine.memory(next(iter(engine.algorithms)), 1e9, 2e9, 3e9)
    assert sizes > 1e9


@pytest.mark.parametrize(("name", "algorithm"), CASES)
def test_the_key_holds_the_version_of_the_engine_that_is_used_alone(
    name: str, algorithm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without(name)
    stage = WeightOnly(algorithm, symmetric=False, engine=name)  # type: ignore[arg-type]
    own = WeightOnly(algorithm, symmetric=False)
    before = content_key(stage, {}), content_key(own, {})
    assert before[0] != before[1]
    assert set(libraries_of(stage)) - set(libraries_of(own)) == set(ENGINES[name].libraries)
    newer = dict.fromkeys(ENGINES[name].libraries, "99")
    monkeypatch.setattr("hfcompress.stage.library_version", lambda name: newer.get(name) or library_version(name))
    assert content_key(stage, {}) != before[0]
    assert content_key(own, {}) == before[1]


def test_what_was_finished_before_there_were_engines_is_kept() -> None:
    """The key of that version: the options without this one. A value that is not the default enters."""
    fixed = type("Note", (WeightOnly,), {"libraries": (), "version": 1, "__qualname__": "WeightOnly"})
    assert content_key(fixed("gptq", 4, 32), {}) == "c8a9464e1958097d"


@pytest.mark.parametrize("name", ENGINES)
def test_a_missing_package_is_one_line_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, ENGINES[name].package, None)
    with pytest.raises(UserError, match=rf'^[^\n]*pip install "hfcompress\[{name}\]"$'):
        WeightOnly(next(iter(ENGINES[name].algorithms)), engine=name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"engine": "neural-compressor", "algorithm": "autoround"},
            r"engine neural-compressor: it has rtn, hqq, gptq, awq here, not autoround; give one of "
            r"them with algorithm, or engine auto-round or engine own",
        ),
        (
            {"engine": "auto-round", "algorithm": "gptq"},
            r"engine auto-round: it has autoround here, not gptq; .*neural-compressor or .*own",
        ),
    ],
)
def test_what_an_engine_has_not_is_refused_in_a_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(OptionError, match=rf"^{line}$"):
        WeightOnly(**options)


def test_a_grid_that_an_algorithm_cannot_fill_is_refused_by_plan_and_run_alike(model: Path, task: CausalLM) -> None:
    skip_without("neural-compressor")
    from hfcompress.architectures.decoder_spec import LanguageShape

    stage = WeightOnly("hqq", engine="neural-compressor")
    line = r"^engine neural-compressor: its HQQ fits a zero point .*: give symmetric False or allot\.symmetric False$"
    with pytest.raises(OptionError, match=line):
        stage.predict(LanguageShape.read(model), task=task)
    with pytest.raises(OptionError, match=line):
        stage(model / "out", model=model, task=task)


def test_a_norm_that_multiplies_by_one_more_is_refused() -> None:
    skip_without("neural-compressor")
    kind = kind_of({"model_type": "gemma", "hidden_size": 64, "num_hidden_layers": 1})
    require_engine("neural-compressor", "gptq", [Grid()], kind)
    with pytest.raises(OptionError, match=r"norms multiply by 1 \+ weight; give engine own$"):
        require_engine("neural-compressor", "awq", [Grid()], kind)


class Broken:
    """An engine that rounds to nearest, and breaks one thing."""

    package, libraries, algorithms = "PIL", (), {"rtn": (), "gptq": ()}

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def refusal(self, algorithm: str, grid: Grid) -> Reason | None:
        return None

    def memory(self, algorithm: str, layer_bytes: float, moment_bytes: float, state_bytes: float) -> float:
        return 0.0

    def quantize(self, layer: Layer, algorithm: str, tuning: Tuning) -> Rounded:
        found = {name: rtn(layer.module.get_submodule(name).weight, grid) for name, grid in layer.grids.items()}
        name, first = next(iter(found.items()))
        broken: dict[str, Callable[[], dict[str, Any]]] = {
            "a matrix is missing": lambda: found.pop(name) and {},
            "another grid": lambda: {name: replace(first, grid=Grid(2, 0, False))},
            "codes beyond the bits": lambda: {name: replace(first, codes=first.codes + 9)},
            "float32 scales": lambda: {name: replace(first, scales=first.scales.float())},
            "a nan scale": lambda: {name: replace(first, scales=first.scales * torch.nan)},
            "a moved middle": lambda: {name: replace(first, zeros=first.zeros - 1)},
            "groups of other shape": lambda: {name: replace(first, scales=first.scales[:, :1])},
            "columns in another order": lambda: {name: replace(first, codes=first.codes.flip(1))},
        }
        return Rounded(found | broken[self.fault]())


FAULTS = [
    "a matrix is missing", "another grid", "codes beyond the bits", "float32 scales", "a nan scale", "a moved middle",
    "groups of other shape",
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_breaks_the_contract_is_not_written(
    fault: str, original: Original, model: Path, task: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckFailed):
        checked(Broken(fault), original.layer(Grid(4, 32)), "rtn", Tuning())
    monkeypatch.setitem(engines.ENGINES, "neural-compressor", Broken(fault))
    (tmp_path / "work").mkdir()
    with pytest.raises(CheckFailed):
        WeightOnly("gptq", 4, 32, engine="neural-compressor")(tmp_path, model=model, task=task)
    assert not list(tmp_path.glob("*.safetensors"))


def test_an_engine_that_rounds_badly_is_seen(original: Original) -> None:
    layer = original.layer(Grid(4, 32))
    wrong = checked(Broken("columns in another order"), layer, "rtn", Tuning())
    error = original.error(with_answer(layer, wrong))
    nearest = original.layer(Grid(4, 32))
    rounded = {n: rtn(nearest.module.get_submodule(n).weight, g) for n, g in nearest.grids.items()}
    floor = original.error(with_answer(nearest, Rounded(rounded)))
    for algorithm in WORST:
        with pytest.raises(AssertionError):
            require_near(error, floor, floor, algorithm)
    with pytest.raises(AssertionError, match="to nearest"):
        require_near(floor, floor, floor, "gptq")
