"""Handing an exported folder to the Hugging Face hub: the whole folder as one commit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cl_lora.export.folder import Exported
from cl_lora.support.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_SHOWN = 300  # characters of an error of the hub's that are passed on


def check_push(repository: str) -> None:
    """Find what is wrong with a push before anything is exported; nothing is sent.

    Args:
        repository: ``NAME``, or ``OWNER/NAME``.

    Raises:
        UserError: if it cannot name a repository, or there is no token.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(
            f"Expected --push to be NAME or OWNER/NAME, of letters, digits, '-', '_' and '.', but "
            f"got {repository!r}; choose another name"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            "--push sends the folder to the hub but HF_HUB_OFFLINE is set; unset it, or leave "
            "--push out"
        )
    if not get_token():
        raise UserError(
            f"--push sends the folder to {constants.ENDPOINT} but there is no token; run `hf auth "
            "login`, or set HF_TOKEN, or leave --push out"
        )


def push(exported: Exported, repository: str, *, private: bool = False) -> str:
    """Send an exported folder to a model repository, which is made where there is none.

    All files go in one commit: whoever loads from the repository sees all of it or nothing. Files
    of the repository that the folder does not have stay.

    Args:
        exported: the folder, whole on disk.
        repository: ``NAME``, or ``OWNER/NAME``.
        private: make the repository private; one that is there and public is refused.

    Returns:
        The address of the repository.

    Raises:
        UserError: if the hub does not take it; the folder stays as it is.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    choice = exported.choice
    # Not upload_folder, which may send a folder in several commits, and so half of it.
    files = [path for path in sorted(exported.folder.rglob("*")) if path.is_file()]
    additions = [
        CommitOperationAdd(path.relative_to(exported.folder).as_posix(), path) for path in files
    ]
    try:
        made = api.create_repo(repository, private=private or None, exist_ok=True)
        if private:
            _check_private(api, made.repo_id, exported.folder)
        api.create_commit(
            made.repo_id,
            additions,
            commit_message=f"cl-lora export of {choice.row}, stage {choice.stage.name}, seed "
            f"{choice.seed} of {choice.run.name}",
        )
    except UserError:
        raise
    except Exception as error:  # the client's own, and those of the library that it sends with
        raise _refused(api.endpoint, repository, exported.folder, error) from error
    return str(made)


def _check_private(api: HfApi, repository: str, folder: Path) -> None:
    if not api.model_info(repository).private:
        raise UserError(
            f"--private was asked for but {repository} is there and public, so nothing was pushed; "
            f"the export itself is whole in {folder}: make the repository private, or push to "
            "another one"
        )


def _refused(endpoint: str, repository: str, folder: Path, error: Exception) -> UserError:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    remedies = {
        401: "the token is not accepted: run `hf auth login` again, or set another HF_TOKEN",
        403: "the token may not write there: use one that may, or another repository",
    }
    return UserError(
        f"{endpoint} did not take the folder for {repository} ({_said(error)}); the export itself "
        f"is whole in {folder}, and `hf upload {repository} {folder}` sends it; "
        f"{remedies.get(status, 'try again later')}"
    )


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:_SHOWN].rstrip(". ") or type(error).__name__
