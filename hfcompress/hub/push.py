"""A release pushed to the Hub, in one commit."""

from pathlib import Path
from typing import TYPE_CHECKING

from hfcompress.errors import UserError
from hfcompress.folders.fetch import told
from hfcompress.runs.lock import LOCK
from hfcompress.tasks.vocabulary import TOKENIZER_FILES

if TYPE_CHECKING:
    from hfcompress.hub.release import Release

PUSHING = ("detect_secrets", "matplotlib")  # the search for secrets, and the card's plots
OURS = ("onnx/", "genai/", "gguf/", "records/", "plot.svg", "bits.svg")  # what a push puts beside the root's model


def push(
    found: "Release",
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a release in one commit, so that no reader sees half a model; files that are there already stay.

    A push that was cut off is repeated: large files that had arrived are not sent again. Without any change nothing
    is committed.

    Returns: the address of the commit, or of the pull request.

    Raises:
        UserError: no token, no right to the repository, a name that cannot be had, or no network.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    require_token()
    api = HfApi()
    with told(repository):
        if not api.repo_exists(repository):  # or nobody may see it: then its name is refused here
            api.create_repo(repository, private=private)
        if private and not api.model_info(repository).private:
            raise UserError(f"--private: {repository} is there already, and public; make it private on its page first")
        if revision and not create_pr:
            api.create_branch(repository, branch=revision, exist_ok=True)
        old = api.list_repo_files(repository, revision=revision)
        if LOCK not in old and any(is_model(file) for file in old):
            raise UserError(f"{repository} holds another model, which hfcompress did not push; give another name")
        places: dict[str, Path | bytes] = {**found.models, **found.rendered}
        additions = [
            CommitOperationAdd(path_in_repo=place, path_or_fileobj=content) for place, content in places.items()
        ]
        # Of an earlier push: what this one does not have.
        gone = [
            CommitOperationDelete(file)
            for file in old
            if file not in places and (file.startswith(OURS) or is_model(file))
        ]
        commit = api.create_commit(
            repository,
            [*additions, *gone],
            commit_message="Model and evidence, by hfcompress",
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit.pr_url or commit.commit_url)


def is_model(file: str) -> bool:
    """Whether a file at the root of a repository is a part of a model: weights, config or tokenizer."""
    return "/" not in file and (
        file in TOKENIZER_FILES
        or file.endswith((".safetensors", ".bin", ".onnx", ".index.json"))
        or file.startswith(("config.", "tokenizer", "vocab.", "merges.", "special_tokens_map."))
    )


def require_repository(name: str) -> None:
    """Refuse a name that no repository can have, before anything is made or sent.

    Raises:
        UserError: it is not org/name, or not as the Hub wants names.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--hub-model-id {name}: not a Hub id, which is written org/name ({error})") from None
    if "/" not in name:
        raise UserError(f"--hub-model-id {name}: whose? A Hub id is written org/name")


def require_token() -> None:
    """Refuse to begin what ends with a push when there is nothing to push with.

    Raises:
        UserError: no token, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, and a push needs the Hub: unset it")
    if not get_token():
        raise UserError("there is no token to push with: `hf auth login`, or set HF_TOKEN")
