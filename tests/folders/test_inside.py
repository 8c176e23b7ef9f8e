"""Names in records, reports, locks and indexes stay inside their folder, whatever they say."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfcompress.architectures.patches import resized
from hfcompress.errors import UserError
from hfcompress.folders.fetch import parts
from hfcompress.folders.inside import component, inside, relative
from hfcompress.folders.record import Record, read_json, write_json
from hfcompress.hub.candidate import candidate_of
from hfcompress.hub.release import release
from hfcompress.hub.verify import hash_claim
from hfcompress.runs.delivery import delivered_model
from hfcompress.runs.lock import options_from
from hfcompress.stage import Artifact


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


LEAVING = ["../secret", "a/../../secret", "..", ".", "", "/etc/hostname", "~/secret", "a//b", "./a", "C:\\secret",
           "C:secret", "..\\secret", "a\0b", "a\nb", "x" * 2000, "a/./b", "half \ud800", None, 7, ["a"]]  # fmt: skip


@pytest.mark.parametrize("name", LEAVING, ids=lambda name: repr(name)[:20])
def test_a_name_that_leaves_its_folder_is_refused_in_one_line(name: Any) -> None:
    with pytest.raises(UserError, match=r"^record\.json names") as refusal:
        relative(name, "record.json")
    assert "\n" not in str(refusal.value)


def test_ordinary_names_are_paths_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"1")
    for name in ("onnx/model.onnx", "onnx", "not there.json", "Größe..txt", "..name", "a.b-c_d"):
        assert inside(tmp_path, name) == tmp_path / name
    assert component("int8", "report.json") == "int8"
    with pytest.raises(UserError, match="no single name"):
        component("a/b", "report.json")


def test_links_devices_and_pipes_are_refused_and_links_within_are_not(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "folder"
    (folder / "real").mkdir(parents=True)
    (folder / "real" / "file").write_text("fine")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "above").symlink_to(tmp_path)
    (folder / "device").symlink_to("/dev/zero")
    (folder / "lost").symlink_to("nowhere")
    (folder / "round").symlink_to("round")
    (folder / "within").symlink_to("real")
    os.mkfifo(folder / "pipe")
    for name in ("link", "above/secret", "device", "lost", "round", "pipe"):
        with pytest.raises(UserError, match="it is not read"):
            inside(folder, name)
    assert inside(folder, "within/file").read_text() == "fine"


def test_the_hubs_cache_is_a_folder_of_links_to_its_own_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--small"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc").write_text("{}")
    (tmp_path / "secret").write_text("secret")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "other.json").symlink_to("../../../secret")
    assert inside(snapshot, "config.json").read_text() == "{}"
    with pytest.raises(UserError, match="leaves its folder"):
        inside(snapshot, "other.json")


Change = Callable[[Path], None]


def in_record(**changes: Any) -> Change:
    def change(run: Path) -> None:
        folder = next(run.glob("int8-*"))
        record = read_json(folder / "record.json")
        for name, value in changes.items():
            record[name] = record[name] | value if isinstance(value, dict) else value
        write_json(folder / "record.json", record)

    return change


def in_report(name: str, value: Any) -> Change:
    def change(run: Path) -> None:
        report = read_json(run / "report.json")
        for row in report["models"]:
            if row["name"] == "int8":
                row[name] = value
        write_json(run / "report.json", report)

    return change


def in_details(change_details: Callable[[dict[str, Any]], None]) -> Change:
    def change(run: Path) -> None:
        details = read_json(run / "details.json")
        change_details(details)
        write_json(run / "details.json", details)

    return change


def linked(place: str) -> Change:
    def change(run: Path) -> None:
        file = next(run.glob(place))
        copy = run.parent / "elsewhere"
        shutil.copyfile(file, copy)  # the same bytes, so that only its place is wrong
        file.unlink()
        file.symlink_to(copy)

    return change


def set_measured(details: dict[str, Any]) -> None:
    details["measured"] = "../elsewhere"


def set_record_name(details: dict[str, Any]) -> None:
    details["records"][0]["name"] = "../x"


@pytest.mark.parametrize(
    "change",
    [
        in_record(files={"../../secret": 6}),
        in_record(files={"/etc/hostname": 6}),
        in_record(sha256={"../../secret": "0"}),
        in_record(name="../x"),
        in_record(name="a/b"),
        in_record(files={"model.onnx": "all"}),
        in_report("path", "/etc"),
        in_report("path", "../other"),
        in_report("path", "teacher-x/../../other"),
        in_details(set_measured),
        in_details(set_record_name),
        linked("int8-*/tokenizer.json"),
        linked("report.html"),
        linked("details.json"),
        linked("recipe.lock.json"),
    ],
)
def test_nothing_from_outside_of_the_run_is_released(
    copied: Path, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the report were believed, which says otherwise than the records then."""
    change(copied)
    with pytest.raises(UserError):
        release(copied, "org/small", "mit")
    monkeypatch.setattr("hfcompress.hub.release.agreed_report", lambda _, claimed: claimed)
    with pytest.raises(UserError, match=r"names|corrupt"):
        release(copied, "org/small", "mit")


def test_a_hidden_file_is_not_released_even_with_a_record(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcompress.hub.release.agreed_report", lambda _, claimed: claimed)
    folder = next(copied.glob("int8-*"))
    (folder / ".env").write_text("KEY=1\n")
    with pytest.raises(UserError, match=r"\.env is there, which the record does not name"):
        release(copied, "org/small", "mit")
    in_record(files={".env": 6})(copied)
    with pytest.raises(UserError, match="hidden file"):
        release(copied, "org/small", "mit")


def test_a_record_with_a_name_that_leaves_is_no_record(tmp_path: Path) -> None:
    fields = {"name": "a", "stage": "S", "key": "k", "options": {}, "inputs": {}, "seconds": 1, "peak_rss_mb": 1,
              "format": "onnx", "parameters": 1, "bytes": 1, "dtypes": {}, "files": {}}  # fmt: skip
    (tmp_path / "record.json").write_text(json.dumps(fields))
    assert Record.read(tmp_path).name == "a"
    for change in ({"name": "../a"}, {"files": {"../b": 1}}, {"bytes": -1}, {"bytes": "many"}, {"files": []}):
        (tmp_path / "record.json").write_text(json.dumps(fields | change))
        with pytest.raises(UserError):
            Artifact(tmp_path).damage()


def test_other_readers_ask_the_same(tmp_path: Path) -> None:
    row = {"name": "int8", "path": "../other", "format": "onnx"}
    report = {"models": [row], "verdicts": [{"candidate": "int8"}]}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "report.json", report)
    write_json(run / "details.json", {"max_length": 8})
    with pytest.raises(UserError, match="leaves its folder"), candidate_of(str(run)):
        pass
    with pytest.raises(UserError, match="leaves its folder"):
        delivered_model(str(run))
    write_json(run / "report.json", report | {"delivered": {"../../secret": "int8"}})
    with pytest.raises(UserError, match="leaves its folder"):
        parts(run, None)
    with pytest.raises(UserError, match=r"no single name|leaves its folder"):
        hash_claim(run, "model.onnx", "../int8")


def test_a_lock_does_not_say_which_of_your_files_is_read() -> None:
    locked = {"recipe": "legal_bert", "options": {"base": "/home/somebody/model"}}
    with pytest.raises(UserError, match=r"--base is the path .*: give your copy"):
        options_from(locked, {"base": "org/name"}, [])
    assert options_from({"recipe": "x", "options": {"base": "org/name@1"}}, {"base": "a"}, []) == {
        "base": "org/name@1"
    }


def test_an_edit_gives_a_module_its_sizes_and_nothing_else() -> None:
    from torch import nn

    assert resized(nn.Linear(4, 4), {"out_features": 2}).out_features == 2  # type: ignore[comparison-overlap]
    for to in ({"device": "meta"}, {"out_features": -1}, {"out_features": 10**12}, {"out_features": "../../secret"}):
        with pytest.raises(TypeError, match="is no size"):
            resized(nn.Linear(4, 4), to)
