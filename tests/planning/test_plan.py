"""A plan says before anything is trained what will be measured: parameters exactly, files within 3%."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from hfcompress.architectures.encoder_spec import Shape, parameters
from hfcompress.budget import Budget
from hfcompress.compress.embeddings.trim_vocabulary import TrimVocabulary
from hfcompress.errors import UserError
from hfcompress.evaluation.measure import Measure
from hfcompress.planning.encoders import Serving, disk_bytes, keeps, latency_ms, prediction, ram_mb, student_shapes
from hfcompress.planning.machine import Machine
from hfcompress.planning.plan import Plan, read_shape, render
from hfcompress.recipes import legal_bert, tiny
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune import Finetune
from hfcompress.training.new_images import NewResNet
from tests.fork_server import ForkServer

SHAPES = [
    Shape(2, 64, 4, 128, 200, max_position_embeddings=64, num_labels=3),
    Shape(1, 96, 3, 384, 1000, num_labels=8),
    Shape(5, 128, 2, 192, 300, type_vocab_size=1, num_labels=2),
]
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
LARGE = legal_bert.BERT_LARGE
INT8 = {"format": "onnx", "weight_bits": 8, "embedding_bits": 8}
DISK_ERROR = 0.03


class CountingMachine(Machine):
    """A machine that takes a millisecond for 100 million multiplications, four times as fast in int8."""

    def __init__(self) -> None:
        super().__init__(threads=1)

    def layer_ms(
        self,
        batch: int,
        tokens: int,
        hidden_size: int,
        heads: int,
        intermediate_size: int,
        bits: int,
        share: float = 1.0,
    ) -> float:
        products = share * batch * tokens * (4 * hidden_size**2 + 2 * hidden_size * intermediate_size)
        return products / 1e8 / (1 if bits == 32 else 4)

    def embeddings_ms(self, batch: int, tokens: int, hidden_size: int) -> float:
        return batch * tokens * hidden_size / 1e8


@pytest.fixture
def serving() -> Serving:
    return Serving(CountingMachine(), batch=1, tokens=128, reference_ms=1000.0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that time nothing."""
    monkeypatch.setattr("hfcompress.planning.encoders.Machine", lambda threads: CountingMachine())


def network(shape: Shape) -> BertForSequenceClassification:
    """Random everywhere: the exporter stores equal tensors, such as biases of 0, only once."""
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=shape.num_hidden_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        type_vocab_size=shape.type_vocab_size,
        num_labels=shape.num_labels,
    )
    model = BertForSequenceClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def close(predicted: float, measured: float) -> bool:
    return abs(predicted / measured - 1) <= DISK_ERROR


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_the_models_own_exactly(shape: Shape) -> None:
    assert parameters(shape) == sum(p.numel() for p in network(shape).parameters())


def test_bert_large_has_335_million_parameters() -> None:
    assert parameters(LARGE) == 335_143_938


# --- files


def write_transformers(model: BertForSequenceClassification, out: Path) -> dict[str, Any]:
    model.save_pretrained(out)
    return {}


def write_onnx(model: BertForSequenceClassification, out: Path) -> dict[str, Any]:
    from hfcompress.formats import onnx_export

    model.config.save_pretrained(out)
    onnx_export.export(model, out)
    return {"format": "onnx"}


def write_qat(model: BertForSequenceClassification, out: Path) -> dict[str, Any]:
    from hfcompress.compress.quantize.qat import prepare
    from hfcompress.formats import onnx_export
    from hfcompress.ops.fake_quant import FakeQuantEmbedding, FakeQuantLinear, integer_rows, row_scales

    model.config.save_pretrained(out)
    prepare(model, symmetric=False, learned=False)
    weights = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, FakeQuantLinear | FakeQuantEmbedding)
    }
    onnx_export.export(
        model,
        out,
        integers={name: integer_rows(w).numpy() for name, w in weights.items()},
        scales={name: row_scales(w).numpy() for name, w in weights.items()},
    )
    return INT8


def write_dynamic(model: BertForSequenceClassification, out: Path) -> dict[str, Any]:
    from hfcompress.formats.onnx import DynamicInt8

    (out / "work" / "onnx").mkdir(parents=True)
    write_onnx(model, out / "work" / "onnx")
    DynamicInt8()(out, model=out / "work" / "onnx", task=TextClassification())
    return INT8


@pytest.mark.parametrize(
    "shape", [SHAPES[1], Shape(2, 192, 3, 768, 4000, type_vocab_size=1), Shape(3, 256, 4, 512, 3000, num_labels=8)]
)
@pytest.mark.parametrize("write", [write_transformers, write_onnx, write_qat, write_dynamic])
def test_disk_is_predicted_within_3_percent_of_the_files(
    shape: Shape, write: Callable[[BertForSequenceClassification, Path], dict[str, Any]], tmp_path: Path
) -> None:
    made = replace(shape, tokenizer_bytes=0, **write(network(shape), tmp_path))
    assert close(disk_bytes(made), folder_bytes(tmp_path))


def test_a_prediction_that_is_wrong_is_seen(tmp_path: Path) -> None:
    shape = replace(SHAPES[2], tokenizer_bytes=0)
    write_transformers(network(shape), tmp_path)
    measured = folder_bytes(tmp_path)
    assert close(disk_bytes(shape), measured)
    for wrong in (
        replace(shape, num_hidden_layers=4),
        replace(shape, vocab_size=500),
        replace(shape, weight_bits=8),
        replace(shape, embedding_bits=8),
        replace(shape, tokenizer_bytes=None),
    ):
        assert not close(disk_bytes(wrong), measured)


def test_a_trimmed_vocabulary_is_predicted(tiny_model: Path, tiny_task: TextClassification, tmp_path: Path) -> None:
    TrimVocabulary()(tmp_path, model=tiny_model, task=tiny_task)
    before = Plan().base(str(tiny_model)).shape
    after = TrimVocabulary().predict(before, task=tiny_task)
    assert after.vocab_size == json.loads((tmp_path / "config.json").read_text())["vocab_size"] < before.vocab_size
    assert close(disk_bytes(after), folder_bytes(tmp_path))


def test_a_tokenizer_is_counted_as_it_will_be_saved(tiny_model: Path, tmp_path: Path) -> None:
    for file in tiny_model.iterdir():
        if file.suffix in (".json", ".txt"):  # transformers 5 saves special_tokens_map.json no more
            (tmp_path / file.name).write_bytes(file.read_bytes())
    compact = json.dumps(json.loads((tiny_model / "tokenizer.json").read_text()))
    (tmp_path / "tokenizer.json").write_text(compact)
    assert Plan().base(str(tmp_path)).shape.tokenizer_bytes == Plan().base(str(tiny_model)).shape.tokenizer_bytes


def test_a_folders_shape_is_read_with_its_labels_and_its_tokenizer(tiny_model: Path) -> None:
    shape = Plan().base(str(tiny_model)).shape
    assert parameters(shape) == sum(
        p.numel() for p in BertForSequenceClassification.from_pretrained(tiny_model).parameters()
    )
    assert close(disk_bytes(shape), folder_bytes(tiny_model))


# --- bigger is never predicted smaller

GROWN = {
    "num_hidden_layers": 5,
    "hidden_size": 128,
    "intermediate_size": 512,
    "vocab_size": 9000,
    "max_position_embeddings": 1024,
    "num_labels": 50,
    "weight_bits": 32,
    "embedding_bits": 32,
    "tokenizer_bytes": 10_000_000,
}


@pytest.mark.parametrize("field", GROWN)
@pytest.mark.parametrize("form", ["onnx", "transformers"])
def test_bigger_is_never_predicted_smaller(field: str, form: str, serving: Serving) -> None:
    small = Shape(2, 64, 4, 128, 200, weight_bits=8, embedding_bits=8, format=form, tokenizer_bytes=1000)
    large = replace(small, **{field: GROWN[field]})
    assert disk_bytes(large) > disk_bytes(small)
    assert parameters(large) >= parameters(small)
    assert ram_mb(large, 1, 128) > ram_mb(small, 1, 128)
    assert latency_ms(large, serving.machine, 1, 128) >= latency_ms(small, serving.machine, 1, 128)


def test_more_tokens_take_more_memory_and_time(serving: Serving) -> None:
    shape = replace(SHAPES[0], **INT8)
    assert ram_mb(shape, 1, 512) > ram_mb(shape, 1, 128)
    assert ram_mb(shape, 8, 128) > ram_mb(shape, 1, 128)
    assert latency_ms(shape, serving.machine, 8, 128) > latency_ms(shape, serving.machine, 1, 128)


def test_only_what_onnxruntime_serves_has_a_predicted_time(serving: Serving) -> None:
    found = prediction(SHAPES[0], serving)
    assert found["ram_mb"] is found["latency_ms"] is found["latency_ratio"] is None
    served = prediction(replace(SHAPES[0], format="onnx"), serving)
    assert served["latency_ratio"] == pytest.approx(served["latency_ms"] / 1000)


# --- budgets


def plan_full(budget: Budget) -> Plan:
    planned = Plan()
    options = legal_bert.arguments("full", Path()) | {"budget": budget, "measure": Measure(threads=1)}
    legal_bert.recipe(planned, **options)  # type: ignore[arg-type]
    return planned


@pytest.mark.usefixtures("counted")
def test_the_full_scale_says_that_no_number_of_bits_meets_150_mb() -> None:
    planned = plan_full(Budget(disk_mb=150, drop={"accuracy": 0.005}))
    assert planned.ok
    assert "335 MB in int8 and 168 MB in 4 bits: no number of bits meets 150 MB" in planned.advice[0]
    assert any("layers, hidden size" in line for line in planned.advice[1:])
    assert planned.advice[0] in render(planned)


@pytest.mark.usefixtures("counted")
def test_a_budget_that_the_teacher_keeps_in_4_bits_needs_no_advice() -> None:
    assert plan_full(Budget(disk_mb=500)).advice == []


@pytest.mark.parametrize(
    "budget",
    [
        Budget(disk_mb=150),
        Budget(disk_mb=20),
        Budget(ram_mb=120),
        Budget(latency_ms=20),
        Budget(latency_ratio=0.01, disk_mb=40),
    ],
)
def test_students_that_are_named_keep_the_budget_and_are_the_largest_first(budget: Budget, serving: Serving) -> None:
    candidate = replace(LARGE, **INT8)
    students = student_shapes(LARGE, candidate, budget, serving)
    assert students
    sizes = [parameters(student) for student in students]
    assert sizes == sorted(sizes, reverse=True)
    for student in students:
        found = prediction(student, serving)
        for limit in ("disk_mb", "ram_mb", "latency_ms", "latency_ratio"):
            allowed = getattr(budget, limit)
            assert allowed is None or found[limit] <= allowed
        assert student.hidden_size // student.num_attention_heads == 64  # what a stock class can express
        assert (student.weight_bits, student.vocab_size) == (8, LARGE.vocab_size)


def test_a_student_over_any_limit_is_refused(serving: Serving) -> None:
    shape = replace(LARGE, **INT8)
    found = prediction(shape, serving)
    for limit in ("disk_mb", "ram_mb", "latency_ms", "latency_ratio"):
        assert keeps(shape, Budget(**{limit: found[limit] * 1.01}), serving)
        assert not keeps(shape, Budget(**{limit: found[limit] * 0.99}), serving)


@pytest.mark.usefixtures("counted")
def test_a_budget_that_no_student_meets_says_how_small_the_smallest_is() -> None:
    planned = plan_full(Budget(disk_mb=1))
    assert not planned.ok
    assert "No student of the teacher's kind meets the budget" in planned.advice[1]
    assert "1 layers, hidden size 64" in planned.advice[2]


@pytest.mark.usefixtures("counted")
def test_a_limit_that_fails_is_told_and_a_drop_is_left_to_the_run() -> None:
    planned = plan_full(Budget(disk_mb=20, drop={"accuracy": 0.005}))
    rows = {row["limit"]: row for row in planned.verdicts}
    assert rows["disk_mb"]["ok"] is False
    assert (rows["drop:accuracy"]["predicted"], rows["drop:accuracy"]["ok"]) == (None, None)
    text = render(planned)
    assert "FAILS" in text
    assert "cannot be predicted" in text
    names = [line.split()[0] for line in text.splitlines()[1 : 1 + len(planned.rows)]]
    assert names == [row["name"] for row in planned.rows] == list(planned.predictions)


# --- the same calls as a Run


@pytest.mark.usefixtures("counted")
def test_a_plan_takes_a_runs_place_and_its_numbers_are_json(
    tiny_model: Path, tiny_task: TextClassification, tmp_path: Path
) -> None:
    planned = Plan()
    options = legal_bert.arguments("smoke", tmp_path) | {"base": str(tiny_model), "task": tiny_task}
    legal_bert.recipe(planned, **options)  # type: ignore[arg-type]
    found = json.loads(json.dumps(planned.as_dict(), allow_nan=False))
    shapes = {row["name"]: row["shape"] for row in found["models"]}
    assert shapes["student"]["num_hidden_layers"] == 2
    assert (shapes["slim"]["hidden_size"], shapes["slim"]["intermediate_size"]) == (32, 64)
    assert (shapes["int8"]["format"], shapes["int8"]["weight_bits"]) == ("onnx", 8)
    sizes = {row["name"]: row["disk_mb"] for row in found["models"]}
    assert sizes["int8"] < sizes["slim-onnx"] < sizes["teacher-onnx"]


def test_inputs_that_are_no_models_are_handed_to_the_stage_as_they_are() -> None:
    seen: dict[str, Any] = {}

    def predict(**inputs: Any) -> Shape:
        seen.update(inputs)
        return SHAPES[1]

    stage = SimpleNamespace(predict=predict, libraries=())
    base = Plan().base("any", SHAPES[0])
    made = Plan()(stage, model=base, task="the task", name="made")  # type: ignore[arg-type]
    assert seen == {"model": SHAPES[0], "task": "the task"}
    assert (made.name, made.shape) == ("made", SHAPES[1])
    assert Plan()(Finetune(), model=base, task=TextClassification(max_length=64)).name == "finetune"


def test_a_hub_base_of_unknown_shape_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"some-org/some-model.*config\.json"):
        Plan().base("some-org/some-model")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("{", "is damaged"),
        ('{"n_layers": 6}', "has no model_type"),
        ('{"model_type": "xlnet"}', "has no num_hidden_layers"),
    ],
)
def test_a_base_that_is_no_bert_is_refused_in_one_line(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"config\.json.*{words}") as refused:
        Plan().base(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_what_a_config_does_not_say_is_as_its_class_has_it(tmp_path: Path) -> None:
    """A DistilBERT whose config.json names its classes alone has the class's layers, width, heads and words."""
    (tmp_path / "config.json").write_text('{"model_type": "distilbert", "num_labels": 3}')
    config = DistilBertConfig(num_labels=3)
    with torch.device("meta"):
        network = DistilBertForSequenceClassification(config)
    shape = read_shape(tmp_path / "config.json")
    assert (shape.num_hidden_layers, shape.intermediate_size, shape.num_labels) == (6, 3072, 3)
    assert parameters(shape) == sum(p.numel() for p in network.parameters())


GUARDED = """
import socket, sys
def refused(*args, **kwargs): raise AssertionError("a plan needs no network")
socket.socket.connect = refused
sys.argv = ["hfcompress", "plan", *sys.argv[1:]]
from hfcompress.cli import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
assert "torch" not in sys.modules, "a plan needs no torch"
"""
WITHOUT_TORCH = (
    "scipy.stats",
    "onnx",
    "onnxruntime",
    "datasets",
    "tokenizers",
    "hfcompress.cli",
    "hfcompress.runs.run",
)


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Runs programs in forks of a process that has not imported torch."""
    with ForkServer(tmp_path_factory.mktemp("server"), WITHOUT_TORCH) as server:
        yield server


def planned(planner: ForkServer, *options: str) -> str:
    """What `plan` prints, where neither torch nor the network may be used."""
    done = planner.code(GUARDED, *options, timeout=300)
    assert done.code == 0, done.err
    return done.out


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("sys.modules['torch'] = sys", "a plan needs no torch"),
        ("socket.create_connection(('127.0.0.1', 9))", "a plan needs no network"),
    ],
)
def test_a_plan_with_torch_or_the_network_is_seen(planner: ForkServer, plan: str, said: str) -> None:
    other = f"import socket, sys, hfcompress.cli\ndef main():\n    {plan}\nhfcompress.cli.main = main\n"
    done = planner.code(other + GUARDED)
    assert done.code == 70
    assert said in done.err


@pytest.mark.parametrize("recipe", ["legal_bert", "legal_bert_structured"])
def test_plan_needs_neither_torch_nor_network(planner: ForkServer, recipe: str) -> None:
    options = [recipe, "--scale", "full", "--format", "json", "--measure.threads", "1"]
    options += ["--measure.sequence-length", "8"]
    found = json.loads(planned(planner, *options))
    assert found["models"][0]["parameters"] == parameters(LARGE)
    assert all(row["latency_ms"] for row in found["models"] if row["format"] == "onnx")


@pytest.mark.parametrize("recipe", ["ctr_embeddings", "iot_camera", "multilingual", "resnet_prune", "summarize_7b"])
def test_plan_of_what_a_recipe_begins_with_needs_no_torch(planner: ForkServer, recipe: str) -> None:
    assert json.loads(planned(planner, recipe, "--format", "json"))["models"][0]["parameters"] > 0


def test_plan_of_a_folder_of_an_image_model_needs_no_torch(planner: ForkServer, tmp_path: Path) -> None:
    NewResNet(side=16, widths=(8, 16), blocks=1)(tmp_path, task=ImageClassification())
    options = ["resnet_prune", "--base", str(tmp_path)]
    assert planned(planner, *options)


def test_plan_of_a_folder_with_a_trimmed_vocabulary_needs_no_torch(
    planner: ForkServer, tmp_path: Path, tiny_model: Path
) -> None:
    data = tiny.write_dataset(tmp_path / "data")
    options = ["legal_bert", "--base", str(tiny_model), "--task.dataset", str(data), "--budget.disk-mb", "10"]
    options += ["--measure.sequence-length", "8", "--budget.latency-ratio", "None", "--distill.num-hidden-layers", "2"]
    options += ["--prune.num-attention-heads", "2", "--prune.intermediate-size", "64"]
    assert planned(planner, *options)
