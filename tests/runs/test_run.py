"""Run: a stage is called once, what is done is kept, what was cut off is resumed, what is damaged is named."""

import hashlib
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hfcompress import stage as stages
from hfcompress.compress.embeddings.trim_vocabulary import TrimVocabulary
from hfcompress.errors import Reason, UserError
from hfcompress.folders.record import Record, sha256
from hfcompress.runs.run import Run
from hfcompress.stage import Artifact, content_key, library_version, snake_case
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.adopt import Adopt
from hfcompress.training.finetune import Finetune

WORKED = "34dfc3c7487884df"  # computed once; see the test of the key
CALLS: list[str] = []


@dataclass(frozen=True)
class Note:
    """A stage that writes one file."""

    text: str = "hello"
    fail: str = ""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __call__(self, out: Path, **inputs: Any) -> dict[str, Any]:
        CALLS.append(self.text)
        (out / "note.txt").write_text(self.text)
        if self.fail == "user":
            raise UserError(Reason("lower {learning_rate}"))
        if self.fail == "disk":
            raise OSError(28, "No space left on device")
        return {"length": len(self.text)}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    CALLS.clear()
    made = Run(tmp_path / "run", "test", "small")
    yield made
    made.close()


def test_a_stage_that_refuses_is_named_as_the_recipe_calls_its_options(tmp_path: Path) -> None:
    option = Note(fail="user")
    made = Run(tmp_path / "run", "test", "small", options={"word_table": Note(fail="user"), "my_note": option})
    with pytest.raises(UserError, match=r"^lower my_note\.learning_rate$"):
        made(option, name="a")
    with pytest.raises(UserError, match=r"^lower learning_rate$"):
        made(Note("of several options", fail="user"), name="b")
    made.close()


def test_a_finished_stage_is_not_called_again(run: Run) -> None:
    first = run(Note(), name="a")
    again = run(Note(), name="a")
    assert CALLS == ["hello"]
    assert first.path == again.path
    assert first.record.measured == {"length": 5}


def test_other_options_make_another_artifact(run: Run) -> None:
    assert run(Note("x"), name="a").path != run(Note("y"), name="a").path
    assert CALLS == ["x", "y"]


def test_a_changed_parent_makes_its_children_anew(run: Run) -> None:
    one, other = run(Note("x"), name="a"), run(Note("y"), name="a")
    assert content_key(Note(), {"model": one}) != content_key(Note(), {"model": other})
    assert content_key(Note(), {"model": one}) == content_key(Note(), {"model": one})


def test_the_record_names_stage_options_inputs_files_and_environment(run: Run) -> None:
    parent = run(Note("x"), name="parent")
    record = run(Note(), name="child", model=parent).record
    assert (record.stage, record.options) == ("Note", {"text": "hello", "fail": ""})
    assert record.inputs == {"model": parent.path.name}
    assert record.files == {"note.txt": 5}
    assert "torch" in record.environment["versions"]
    assert str(run.folder) not in json.dumps(record.__dict__)


def test_a_file_among_the_options_is_recorded_by_name_and_hash(
    run: Run, tiny_model: Path, tiny_task: TextClassification, tmp_path: Path
) -> None:
    text = tmp_path / "more.txt"
    text.write_text("apple steel\n", encoding="utf-8")
    made = run(TrimVocabulary(extra_text=text), model=tiny_model, task=tiny_task)
    recorded = made.record.options["extra_text"]
    assert recorded == {"local": "more.txt", "sha256": hashlib.sha256(text.read_bytes()).hexdigest()}
    assert str(tmp_path) not in (made.path / "record.json").read_text()


def test_a_full_disk_leaves_no_half_artifact_and_one_clear_line(run: Run) -> None:
    with pytest.raises(UserError, match=r"disk .* is full .* run the same command again"):
        run(Note(fail="disk"), name="a")
    assert [p.name for p in run.folder.iterdir() if p.is_dir()] == [f"a-{content_key(Note(fail='disk'), {})}.part"]


def test_a_corrupt_record_is_named_with_what_to_do(run: Run) -> None:
    path = run(Note(), name="a").path
    (path / "record.json").write_text("{ half")
    with pytest.raises(UserError, match=r"record\.json is corrupt .* delete the folder"):
        run(Note(), name="a")


def test_a_file_of_another_size_than_recorded_is_named(run: Run) -> None:
    path = run(Note(), name="a").path
    (path / "note.txt").write_text("hell")
    with pytest.raises(UserError, match=r"note\.txt has 4 bytes where the record says 5"):
        run(Note(), name="a")
    (path / "note.txt").unlink()
    assert Artifact(path).damage() == "note.txt is missing"


def test_a_bit_that_flipped_in_a_finished_stage_is_found_before_it_is_used(run: Run) -> None:
    path = run(Note(), name="a").path
    (path / "note.txt").write_text("jello")
    run(Note(), name="a")  # made by this run: its bytes are not read twice
    run.close()
    again = Run(run.folder, "test", "small")
    with pytest.raises(UserError, match=r"a-\w+: note\.txt has other bytes than the record says; delete this folder"):
        again(Note(), name="a")
    again.close()
    assert CALLS == ["hello"]


def test_finished_stages_are_hashed_once_a_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(Note(), name="a")
    run.close()
    read = list[Path]()
    again = Run(run.folder, "test", "small")
    monkeypatch.setattr("hfcompress.stage.sha256", lambda file: read.append(file) or sha256(file))
    for _ in range(2):
        made = again(Note(), name="a")
    again.close()
    assert read == [made.path / "note.txt"]


def test_a_file_too_many_is_named_but_for_those_of_desktops(run: Run) -> None:
    made = run(Note(), name="a")
    for name in (".DS_Store", "Thumbs.db", "._note.txt"):
        (made.path / name).touch()
    assert run(Note(), name="a").damage() is None
    (made.path / "model.safetensors.index.json").touch()
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json is there, which the record does not name"):
        run(Note(), name="a")


def test_a_folder_without_its_record_is_named_before_anything_is_made(run: Run) -> None:
    path = run(Note(), name="a").path
    (path / "record.json").unlink()
    with pytest.raises(UserError, match=r"record\.json is missing; delete this folder to have the stage made again"):
        run(Note(), name="a")
    assert CALLS == ["hello"]


def test_what_a_killed_call_left_is_not_recorded(run: Run) -> None:
    part = run.folder / f"a-{content_key(Note(), {})}.part"
    (part / "work").mkdir(parents=True)
    for name in ("record.json.part", ".tmpA1b2C3", "model-00001-of-00007.safetensors", "work/.tmpA1b2C3"):
        (part / name).write_text("half")
    made = run(Note(), name="a")
    assert made.record.files == {"note.txt": 5}
    assert {file.name for file in made.path.iterdir()} == {"note.txt", "record.json"}


@dataclass(frozen=True)
class Looks:
    """A stage that says what it finds in its folder."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __call__(self, out: Path) -> dict[str, Any]:
        found = sorted(file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file())
        (out / "note.txt").write_text("x")
        return {"found": found}


def test_a_stage_begins_with_nothing_but_what_is_whole_in_its_work(run: Run) -> None:
    part = run.folder / f"looks-{content_key(Looks(), {})}.part"
    (part / "work").mkdir(parents=True)
    for name in ("config.json", "work/cache.part", "work/.tmpA1b2C3", "work/checkpoint"):
        (part / name).touch()
    assert run(Looks()).record.measured == {"found": ["work/checkpoint"]}


def test_a_stage_that_was_killed_before_its_folder_was_renamed_is_kept(run: Run) -> None:
    path = run(Note(), name="a").path
    part = path.rename(path.with_name(path.name + ".part"))
    (part / "work").mkdir()
    assert run(Note(), name="a").path == path
    assert CALLS == ["hello"]
    assert {file.name for file in path.iterdir()} == {"note.txt", "record.json"}


def test_a_stage_that_was_damaged_before_its_folder_was_renamed_is_made_again(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(Note(), name="a").path
    part = path.rename(path.with_name(path.name + ".part"))
    (part / "note.txt").write_text("jello")
    assert (run(Note(), name="a").path / "note.txt").read_text() == "hello"
    assert "note.txt has other bytes than the record says): made again" in capsys.readouterr().err
    assert CALLS == ["hello", "hello"]


def test_a_full_disk_amid_the_record_is_one_line_and_the_same_command_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("hfcompress.folders.record.json.dump", full)
        with pytest.raises(UserError, match=r"a: the disk that holds .*record\.json is full .* run the same command"):
            run(Note(), name="a")
    assert run(Note(), name="a").damage(hashed=True) is None


def test_two_runs_in_one_folder_at_once_are_refused(run: Run) -> None:
    with pytest.raises(UserError, match=r"another run works in"):
        Run(run.folder, "test", "small")


def test_the_key_is_of_version_options_and_libraries_and_of_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worked key: it must stay when code is renamed or moved, or everybody's finished models are made again."""
    assert content_key(Note(), {}) == WORKED
    moved = type("Note", (Note,), {"__module__": "elsewhere", "__qualname__": "Note"})
    assert content_key(moved(), {}) == WORKED
    newer = type("Note", (Note,), {"version": 2, "__qualname__": "Note"})
    assert content_key(newer(), {}) != WORKED
    keys = []
    for version in ("2.13.0+cpu", "2.13.0", "2.13.1"):
        monkeypatch.setattr(stages.metadata, "version", lambda name, version=version: version)
        library_version.cache_clear()
        keys.append(content_key(type("Note", (Note,), {"libraries": ("torch",)})(), {}))
    library_version.cache_clear()
    assert keys[0] == keys[1] != keys[2]


def test_the_key_holds_the_version_of_the_task(tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_key(Note(), {"task": tiny_task})
    monkeypatch.setattr(TextClassification, "version", 2)
    assert content_key(Note(), {"task": tiny_task}) != before


def test_every_stage_says_its_version_and_libraries() -> None:
    import hfcompress

    found = set()
    for module in pkgutil.walk_packages(hfcompress.__path__, "hfcompress."):
        if module.name.endswith(("__main__", "litert_convert", "chat_render", "harness")) or ".recipes" in module.name:
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and value.__module__.startswith("hfcompress.") and hasattr(value, "training"):
                found.add(value.__name__)
                assert value.version >= 1
                for name in value.libraries:
                    assert library_version(name) or name in {"llama-cpp-python", "gguf", "optimum-onnx"}, (
                        f"{value.__name__}: {name}"
                    )
    assert len(found) > 35


def test_inputs_are_left_as_they_were(run: Run, tiny_teacher: Path, tiny_task: TextClassification) -> None:
    before = {file.name: file.read_bytes() for file in tiny_teacher.iterdir() if file.is_file()}
    made = run(Adopt(), model=tiny_teacher, task=tiny_task, name="teacher")
    assert {file.name: file.read_bytes() for file in tiny_teacher.iterdir() if file.is_file()} == before
    assert made.record.measured["difference_from_parent"]["label_agreement"] == 1.0
    assert made.record.dtypes == {"float32": 4 * made.record.parameters}


KILLED = """
import sys
from pathlib import Path
from hfcompress.runs.run import Run
from hfcompress.training.finetune import Finetune
from hfcompress.tasks.text_classification import TextClassification
folder, model, data = sys.argv[1:]
task = TextClassification(dataset=data, group_column="group", max_length=32)
stage = Finetune(num_train_epochs=60, learning_rate=1e-4, per_device_train_batch_size=16, bf16="no")
made = Run(Path(folder), "test", "small")(stage, model=Path(model), task=task, name="teacher")
print(made.record.measured["steps"])
"""


@pytest.mark.slow
def test_sigkill_in_training_loses_only_what_came_after_the_last_checkpoint(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run"), str(tiny_model), tiny_task.dataset]
    victim = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/teacher-*.part/work/checkpoints/checkpoint-*/trainer_state.json")):
        assert victim.poll() is None, "the run ended before it wrote a checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not list(tmp_path.glob("run/teacher-*[!.part]/record.json"))
    checkpoints = tmp_path.glob("run/teacher-*.part/work/checkpoints/checkpoint-*")
    reached = max(int(path.name.split("-")[1]) for path in checkpoints)

    task = TextClassification(dataset=tiny_task.dataset, group_column="group", max_length=32)
    stage = Finetune(num_train_epochs=60, learning_rate=1e-4, per_device_train_batch_size=16, bf16="no")
    run = Run(tmp_path / "run", "test", "small")
    seen: list[str] = []
    run._say = seen.append  # type: ignore[method-assign]
    record = run(stage, model=tiny_model, task=task, name="teacher").record
    run.close()
    assert any("resuming" in line for line in seen)
    assert record.measured["steps"] == 60 * 15
    assert record.measured["resumed_at_step"] >= reached - 15 > -15


def test_a_checkpoint_cut_off_while_it_was_written_is_not_taken(tmp_path: Path) -> None:
    from hfcompress.training.trainer import last_whole_checkpoint

    for step, state in ((8, "{}"), (16, '{"half'), (24, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    found = last_whole_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-8"


def test_a_loss_that_is_not_finite_stops_with_a_hint(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    out = tmp_path / "out"
    (out / "work").mkdir(parents=True)
    with pytest.raises(UserError, match=r"the loss is nan.*learning_rate"):
        Finetune(num_train_epochs=20, learning_rate=1e30, bf16="no")(out, model=tiny_model, task=tiny_task)


def test_names_are_those_of_the_stages() -> None:
    assert [snake_case(name) for name in ("MovementPrune", "QAT", "DynamicInt8")] == [
        "movement_prune",
        "qat",
        "dynamic_int8",
    ]


def test_a_record_with_other_fields_is_refused(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"name": "a"}')
    with pytest.raises(UserError, match=r"corrupt"):
        Record.read(tmp_path)
