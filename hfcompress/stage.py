"""Stage and Artifact, and the content key that decides whether a stage has to run at all."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypedDict, runtime_checkable

from hfcompress.errors import Reason
from hfcompress.folders.files import FOREIGN
from hfcompress.folders.inside import inside
from hfcompress.folders.record import Record, sha256

TENSORS = ("numpy", "safetensors", "tokenizers", "torch", "transformers")
TRAINING = (*TENSORS, "accelerate", "datasets")
GRAPHS = (*TENSORS, "onnx", "onnxruntime")
"""The libraries whose versions enter the key of a stage that computes with tensors, trains, or makes graphs."""

PLACE = {"place": True}
"""Metadata of the field of an option that says where a tool lies on this machine: it never enters the key."""

MODEL_FILES = {".json", ".txt", ".safetensors", ".onnx", ".model", ".bin", ".jinja", ".gguf"}
WEIGHTS = ("model.safetensors", "model.onnx", "pytorch_model.bin")


@runtime_checkable
class Stage(Protocol):
    """A frozen dataclass of options with one `__call__`: model folders in, model folder out.

    `__call__(out, *, model=..., task=..., ...)` writes a `save_pretrained` layout into the folder `out` and returns
    what it measured, for the record. `out` holds nothing but `out / "work"`, which is the stage's own: checkpoints and
    caches put there survive a kill, are found again when the stage is called again, and are removed when it has
    finished; what else a killed call wrote is removed before. The folders given as inputs are never written to.

    A stage with `training = True` runs on all ranks, every other one on the main rank alone.

    `version` is raised by one whenever the same options and inputs give another result than before: finished
    Artifacts of the version before are then made again. `libraries` are the distributions that compute the result;
    another version of one of them makes it again, too. A stage that calls another tool by an option has a property
    `engine_libraries` with that tool's; one that another Python computes has a property `foreign_versions` with the
    versions there. How the code is written, named or laid out has no part in it.
    """

    training: ClassVar[bool]
    version: ClassVar[int]
    libraries: ClassVar[tuple[str, ...]]

    # (*args: Any, **kwargs: Any) is how a type checker is told "some call": each stage names its own inputs.
    def __call__(self, *args: Any, **inputs: Any) -> dict[str, Any]: ...

    def predict(self, *args: Any, **inputs: Any) -> Any: ...


class Shown(TypedDict, total=False):
    """What `Run.compare` takes for its report and the Hub alone: nothing of it is planned or measured."""

    deliver: tuple[Any, ...]
    """The Artifacts that `push` uploads [the candidate]."""
    base: str | None
    """The name of the model that all began with, for the card [the reference's]."""
    notes: tuple[str, ...]
    """Sentences that a reader must see first."""
    sections: Mapping[str, Any]
    """Name -> the Artifact of a stage that wrote NAME.json, or None: shown by report/sections.py."""


def require_shown(shown: Shown) -> None:
    """Refuse what `Run.compare` does not take, also where a recipe is only planned.

    Raises:
        TypeError: with its name; it is a mistake in the recipe.
    """
    if unknown := shown.keys() - Shown.__annotations__.keys():
        raise TypeError(f"compare() got an unexpected keyword argument '{min(unknown)}'")


def added(default: Any) -> Any:
    """Return the field of an option that a stage did not have in an earlier release, when it did as with `default`.

    At its default it does not enter the stage's key: what was finished before the option was there is kept.
    """
    return dataclasses.field(default=default, metadata={"added": True})


def of_choice(option: str, value: str) -> dict[str, tuple[str, str]]:
    """Return metadata of the field of a group of options that an algorithm alone reads: a frozen dataclass.

    With another value the group has no effect, and help does not list it. In the stage's key its fields stand beside
    the stage's own, by their own names.

    Args:
        option: the field that chooses (algorithm).
        value: the choice that reads the group.
    """
    return {"of": (option, value)}


def chosen_by(options: Any) -> dict[str, tuple[str, str]]:
    """Return the groups of options in a stage (see `of_choice`): field -> the option that chooses, and its value."""
    fields: dict[str, dataclasses.Field[Any]] = getattr(options, "__dataclass_fields__", {})
    return {name: field.metadata["of"] for name, field in fields.items() if "of" in field.metadata}


def unused_options(options: Any, inputs: dict[str, Any]) -> dict[str, Reason]:
    """Return which options have no effect beside the others on these inputs, and why: Reason("with {algorithm} rtn").

    A group of options that is not chosen stands there as a whole.

    Args:
        options: a stage or a task; its method `unused`, where it has one, says so.
        inputs: as the stage is called with.
    """
    found = {
        name: Reason("with {" + option + "} {chosen}", chosen=getattr(options, option))
        for name, (option, value) in chosen_by(options).items()
        if getattr(options, option) != value
    }
    find = getattr(options, "unused", None)
    return found | dict(find(inputs)) if find else found


def parameter_of(stage: Stage, options: dict[str, Any]) -> str | None:
    """Return the recipe's parameter that holds a stage; None where the recipe made the stage of several options.

    A stage knows its options by its own fields alone (`OptionError`); what the recipe calls it is said here.
    """
    own = [name for name, value in options.items() if value is stage]
    like = [name for name, value in options.items() if value == stage]
    return next(iter(own + like), None)


@dataclass(frozen=True)
class Artifact:
    """A folder in `save_pretrained` layout with a record.json: the finished result of a stage."""

    path: Path

    @cached_property
    def record(self) -> Record:
        return Record.read(self.path)

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def key(self) -> str:
        return self.record.key

    def damage(self, *, hashed: bool = False) -> str | None:
        """What differs between the files here and the record: None, or a phrase that names the first such file.

        Names and sizes are compared; `hashed` says to read the files and to compare their bytes too.
        """
        if more := sorted(self._files() - {*self.record.files, "record.json"}):
            return f"{more[0]} is there, which the record does not name"
        for name, size in self.record.files.items():
            file = inside(self.path, name, f"{self.path / 'record.json'}")
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes where the record says {size}"
            if hashed and self.record.sha256.get(name, found := sha256(file)) != found:
                return f"{name} has other bytes than the record says"
        return None

    def _files(self) -> set[str]:
        """The names of all files here, but for those that desktops and network file systems put into any folder."""
        files = (file for file in self.path.rglob("*") if not file.is_dir() and not FOREIGN.fullmatch(file.name))
        return {file.relative_to(self.path).as_posix() for file in files}


def content_key(stage: Stage, inputs: dict[str, Any]) -> str:
    """Return sixteen hex digits over a stage's name, version and options, its inputs' keys and its libraries."""
    material = {
        "stage": type(stage).__qualname__,
        "version": stage.version,
        "options": {name: option_key(value) for name, value in options_of(stage).items()},
        "inputs": {name: fingerprint(value) for name, value in sorted(inputs.items())},
        "libraries": library_versions(libraries_of(stage)) | getattr(stage, "foreign_versions", {}),
    }
    return hashlib.sha256(json.dumps(material, sort_keys=True, default=str).encode()).hexdigest()[:16]


def options_of(stage: Stage) -> dict[str, Any]:
    """Return the options that enter a stage's key: no places, and none that was `added` and is at its default.

    Those of a group (`of_choice`) stand there by their own names, or with the group's where another has that name.
    """
    fields: dict[str, dataclasses.Field[Any]] = getattr(stage, "__dataclass_fields__", {})
    defaults = {name: field.default for name, field in fields.items() if field.metadata.get("added")}
    places = {name for name, field in fields.items() if field.metadata.get("place")}
    groups, found = chosen_by(stage), dict[str, Any]()
    for name, value in vars(stage).items():
        if name in groups:
            found |= {f"{name}.{field}" if field in fields | found else field: v for field, v in vars(value).items()}
        elif name not in places and (name not in defaults or value != defaults[name]):
            found[name] = value
    return found


def libraries_of(stage: Stage) -> tuple[str, ...]:
    """Return the distributions that compute a stage's result with its options: `libraries`, and an engine's."""
    return (*stage.libraries, *getattr(stage, "engine_libraries", ()))


def library_versions(names: tuple[str, ...]) -> dict[str, str | None]:
    """Return the installed version of each distribution, without its build ("+cpu"); None of one that is not here."""
    return {name: library_version(name) for name in names}


@cache
def library_version(name: str) -> str | None:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def option_key(value: Any) -> Any:
    """An option as it enters the key: a file that is named in it by what it says, not by its place."""
    if isinstance(value, Path) and value.is_file():
        return hashlib.sha256(value.read_bytes()).hexdigest()
    return value


def fingerprint(value: Any) -> Any:
    """What stands for an input in the key: an Artifact's key, a folder's bytes, a task's version and fingerprint."""
    if isinstance(value, Artifact):
        return value.key
    if isinstance(value, Path):
        return folder_hash(value)
    if isinstance(value, list | tuple):
        return [fingerprint(item) for item in value]
    if isinstance(value, dict):
        return {name: fingerprint(item) for name, item in value.items()}
    if hasattr(value, "fingerprint"):  # a task
        return [type(value).__qualname__, value.version, value.fingerprint()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


@cache
def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and bytes of the files that make a model, in sorted order."""
    digest = hashlib.sha256()
    for file in sorted([*folder.iterdir(), *folder.glob("*_Pooling/*")]):
        if file.is_file() and file.suffix in MODEL_FILES:
            digest.update(file.relative_to(folder).as_posix().encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def snake_case(name: str) -> str:
    """MovementPrune -> movement_prune, QAT -> qat."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
