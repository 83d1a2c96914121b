"""Pushing a checkpoint folder to the Hugging Face hub."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from futurel1.errors import ConfigError, MissingFileError
from futurel1.models.model_card import CARD_FILE, is_generated, renamed

logger = logging.getLogger(__name__)


def require_online(repo_id: str) -> None:
    """Raise a `ConfigError` where the hub may not be reached."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"{repo_id} cannot be pushed: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, so nothing goes to the "
            "network; unset it, or save a folder with save_pretrained and push it elsewhere with push_folder"
        )


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a latent reasoner",
) -> str:
    """Push a checkpoint folder, such as `huggingface/` of a run, to a model repository in one commit.

    Files of the same name are replaced; weights and `system_prompt.txt` that only an older checkpoint has are deleted.
    A generated model card does not replace a `README.md` that somebody wrote or edited; one's own `README.md` does.

    Args:
        folder: what `save_pretrained` or the export of a run wrote.
        repo_id: repository, such as ``me/my-model``; made if it is not there.
        private: whether a new repository is private; None: as the account says. An existing one stays as it is.
        token: access token; None: that of `hf auth login` or of HF_TOKEN.
        revision: branch, made if it is not there; None: the main one.
        commit_message: first line of the commit.

    Returns:
        Address of the repository, with its branch.

    Raises:
        MissingFileError: no checkpoint in the folder.
        ConfigError: offline mode, a name that the hub does not allow, or a request that it refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        raise MissingFileError(f"{folder} has no config.json; give the folder of a checkpoint, in a run huggingface/")
    require_online(repo_id)
    files = _files(folder)
    api = HfApi(token=token)
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        name = repository.repo_id
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        there = api.list_repo_files(name, revision=revision)
        operations: list[Any] = [
            CommitOperationDelete(path_in_repo=path) for path in there if _is_loaded(path) and path not in files
        ]
        text = files.pop(CARD_FILE).read_text(encoding="utf-8") if CARD_FILE in files else None
        operations += [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()]
        if text is not None and (CARD_FILE not in there or _may_replace_card(api, name, revision, text)):
            content = renamed(text, name).encode()
            operations.append(CommitOperationAdd(path_in_repo=CARD_FILE, path_or_fileobj=content))
        api.create_commit(name, operations, commit_message=commit_message, revision=revision)
    except (HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{repo_id} cannot be pushed: {reason}; check the name, and that `hf auth login` or token=... gives an "
            "account that may write there"
        ) from error
    return str(repository) if revision is None else f"{repository}/tree/{revision}"


def _files(folder: Path) -> dict[str, Path]:
    """Files by their paths in the repository; hidden ones are left out."""
    return {
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    }


def _is_loaded(path: str) -> bool:
    """Whether a file of a repository would be loaded with the checkpoint that is pushed."""
    return "/" not in path and (
        path.endswith((".safetensors", ".safetensors.index.json")) or path == "system_prompt.txt"
    )


def _may_replace_card(api: Any, name: str, revision: str | None, text: str) -> bool:
    """Whether a card may take the place of the repository's."""
    if not is_generated(text):
        return True  # written by hand, to be pushed
    with TemporaryDirectory() as scratch:
        file = api.hf_hub_download(name, CARD_FILE, revision=revision, local_dir=scratch)
        generated = is_generated(Path(file).read_text(encoding="utf-8", errors="replace"))
    if not generated:
        logger.warning("%s of %s was not written by futurel1, or was edited: it is kept", CARD_FILE, name)
    return generated
