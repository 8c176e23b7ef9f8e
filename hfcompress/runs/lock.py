"""The lock of a run: recipe, resolved options, versions and data, from which the same run can be made elsewhere."""

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError
from hfcompress.folders.fetch import pinned
from hfcompress.folders.record import environment, read_json, sha256

LOCK = "recipe.lock.json"
MOVED = {  # parameter and field in earlier locks -> the group of an algorithm that the field is in now
    ("weight_only", "activation_order"): "gptq",
    ("weight_only", "damping"): "gptq",
    ("weight_only", "steps"): "autoround",
    ("weight_only", "seed"): "autoround",
}
HUB_OPTIONS = {"base": "model", "teacher": "model", "dataset": "dataset"}  # options that may name a repository


def lock(recipe: str, scale: str, options: dict[str, Any], data: str) -> dict[str, Any]:
    """What `run --from-lock` reads; `data` is the task's identity.

    A folder or file of this machine stands there by its name and the hash of what it holds: whoever repeats the run
    gives his own copy. A model or data set of the Hub stands there with the commit that its name meant.
    """
    return {
        "schema_version": 1,
        "recipe": recipe,
        "scale": scale,
        "options": {name: plain(value, name) for name, value in options.items()},
        "data": data,
        "versions": environment()["versions"],
    }


def read_lock(file: Path, task: bool = False) -> dict[str, Any]:
    """The object of a lock: recipe and scale are texts, and its options an object.

    Args:
        task: whether the options must say of which data, as every recipe's with a `task` do.

    Raises:
        UserError: there is no such file, or it is no lock.
    """
    found: dict[str, Any] = read_json(file, "recipe", "scale", "options")
    options = found["options"]
    if not isinstance(options, dict):
        raise UserError(f"{file} is no recipe.lock.json: its options are none")
    of_task = options.get("task")
    if task and (not isinstance(of_task, dict) or "dataset" not in of_task):
        raise UserError(f"{file} is no recipe.lock.json: its options say nothing of the data")
    options = {name: regrouped(name, value) for name, value in options.items()}
    return found | {"recipe": str(found["recipe"]), "scale": str(found["scale"]), "options": options}


def regrouped(parameter: str, value: Any) -> Any:
    """Return an option of a lock with fields that are in groups now (`MOVED`) in these."""
    if not isinstance(value, dict):
        return value
    found = dict(value)
    for (name, field), group in MOVED.items():
        if name == parameter and field in found:
            found[group] = {**found.get(group, {}), field: found.pop(field)}
    return found


def plain(value: Any, option: str = "") -> Any:
    """An option as JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path) or (isinstance(value, str) and names_a_place(value)):
        place = Path(value).expanduser()
        return {"local": place.resolve().name, "sha256": place_hash(place)}
    if option in HUB_OPTIONS and isinstance(value, str) and value.count("/") == 1:
        return pinned(value, HUB_OPTIONS[option])
    return value


def place_hash(place: Path) -> str | None:
    """SHA-256 of a file, or of the names and bytes of all files in a folder; None where there is nothing."""
    if place.is_file():
        return sha256(place)
    if not place.is_dir():
        return None
    names = [f"{file.relative_to(place)} {sha256(file)}" for file in sorted(place.rglob("*")) if file.is_file()]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def names_a_place(value: str) -> bool:
    """Whether a text option is a path of this machine, and not a Hub id."""
    return value.startswith((".", "/", "~")) or ("/" in value and Path(value).exists())


def options_from(locked: dict[str, Any], defaults: dict[str, Any], given: list[str]) -> dict[str, Any]:
    """The recipe's options as the lock says.

    Args:
        locked: see `lock`.
        defaults: the recipe's options as this version has them at the lock's scale, all of them.
        given: the arguments of the command line, which must name what was local elsewhere.

    Raises:
        UserError: the lock has an option that this version does not know, or one that was a local file elsewhere is
            not given, nor made by the recipe itself.
    """
    try:
        options = locked["options"]
        if unknown := sorted(set(options) - set(defaults)):
            raise UserError(f"--from-lock: this version of {locked['recipe']} has no option --{unknown[0]}")
        return defaults | {name: restored(defaults[name], value, name, given) for name, value in options.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--from-lock: not a lock of this version ({type(error).__name__}: {error})") from None


def locked_task(locked: dict[str, Any], default: Any, data: str | None) -> Any:
    """The task that the run was measured on, or the same on other data.

    Raises:
        UserError: the data was local elsewhere and none is given, or the lock says nothing of a task.
    """
    try:
        options = locked["options"]["task"]
        if isinstance(options["dataset"], dict) and data is None:
            raise UserError(f"the run's data was the local {options['dataset']['local']}; give yours with --data")
        task = restored(default, options, "task", ["--task.dataset"])
    except (KeyError, TypeError):
        raise UserError("its recipe.lock.json says nothing of the data; push the model again") from None
    return dataclasses.replace(task, dataset=data) if data else task


def restored(default: Any, value: Any, name: str, given: list[str]) -> Any:
    """One option: a dataclass with the fields that the lock gives, or the value itself."""
    if isinstance(value, dict) and "local" in value:
        option = "--" + name.replace("_", "-")
        is_given = any(argument.partition("=")[0] == option for argument in given)
        if not is_given and not holds_the_same(default, value):
            raise UserError(f"--from-lock: {option} was the local {value['local']}; give your copy: {option} PATH")
        return default
    if isinstance(value, str) and value.startswith((".", "/", "~")):
        # A run writes the name and hash of what was local, never its path: this one stands for somebody's own file.
        raise UserError(f"--from-lock: --{name.replace('_', '-')} is the path {value[:80]!r}: give your copy instead")
    if not dataclasses.is_dataclass(default) or isinstance(default, type):
        return value
    if unknown := sorted(set(value) - {field.name for field in dataclasses.fields(default)}):
        raise UserError(f"--from-lock: this version has no option --{name}.{unknown[0]}".replace("_", "-"))
    return dataclasses.replace(
        default,
        **{key: restored(getattr(default, key), entry, f"{name}.{key}", given) for key, entry in value.items()},
    )


def holds_the_same(default: Any, value: dict[str, Any]) -> bool:
    """Whether what an option is here without being given holds what the run's did: a recipe writes some itself."""
    if not isinstance(default, str | Path) or value["sha256"] is None:
        return False
    return place_hash(Path(default).expanduser()) == value["sha256"]


def say_what_differs(locked: dict[str, Any]) -> None:
    """Name the packages that have another version here than the lock says."""
    here = environment()["versions"]
    changed = [
        f"{package} {version} there, {here.get(package, 'none')} here"
        for package, version in locked.get("versions", {}).items()
        if here.get(package) != version
    ]
    if changed:
        print(f"--from-lock: other versions: {'; '.join(changed)}", file=sys.stderr)


def require_same_data(locked: dict[str, Any], options: dict[str, Any]) -> None:
    """Refuse to call it the same run when the data is another, or what was local elsewhere holds something else.

    Raises:
        UserError: with both names.
    """
    here, there = options["task"].identity, str(locked.get("data"))
    if here.rpartition("@")[2] != there.rpartition("@")[2]:
        raise UserError(
            f"--from-lock: the run was made with {there}, and the data here is {here}; "
            "give the same data, or run the recipe without --from-lock"
        )
    for name, value in locked["options"].items():
        require_same_place(value, plain(options[name]), name)


def require_same_place(there: Any, here: Any, name: str) -> None:
    """The same for one option; the data itself was compared before."""
    if not isinstance(there, dict) or name == "task.dataset":
        return
    if "local" not in there:
        for key, value in there.items():
            require_same_place(value, here[key], f"{name}.{key}")
    elif not isinstance(here, dict) or here.get("sha256") != there["sha256"]:
        option = "--" + name.replace("_", "-")
        raise UserError(f"{option}: holds something else than the {there['local']} that the run was made with")
