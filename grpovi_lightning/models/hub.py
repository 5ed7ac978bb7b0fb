"""Hugging Face hub names: what can be told about one before anything is loaded."""

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from grpovi_lightning.errors import UserError


def looks_local(path: str) -> bool:
    """Return whether this is the name of a folder rather than a hub name, `owner/name`."""
    return path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).exists()


def check_hub(name: str, role: str, file: str, revision: str | None = None) -> None:
    """Get a file of a repository, by which it is known whether its others can be had.

    Raises:
        UserError: it cannot be had; says why, and how to get it.
    """
    try:
        hf_hub_download(name, file, revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, EntryNotFoundError) as error:
        raise UserError(f"{role} {name}: {_reason(error, name, file, revision)}") from error


def adapter_folder(name: str) -> Path:
    """Return the folder in the hub's cache where an adapter is, and put it there if it is not yet."""
    return Path(snapshot_download(name, allow_patterns=["adapter_config.json", "*.safetensors"]))


def _reason(error: Exception, name: str, file: str, revision: str | None) -> str:
    at = f" --revision {revision}" if revision else ""
    # The kinds are each other's parents: a gated repository is one that is not found.
    if isinstance(error, GatedRepoError):
        return (
            f"the model is gated; accept its terms at https://huggingface.co/{name} and log in (hf auth login, or "
            "the variable HF_TOKEN)"
        )
    if isinstance(error, RepositoryNotFoundError):
        return "no such folder, nor a public repository of the hub; check its spelling, or log in (hf auth login)"
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no revision {revision!r}; name a branch, a tag or a commit of it"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{file} is not in the cache, and the hub is off (HF_HUB_OFFLINE) or cannot be reached; run hf download "
            f"{name}{at} where there is a network, or give a folder"
        )
    if isinstance(error, EntryNotFoundError):
        return f"the repository has no {file}"
    return f"the hub answers: {(str(error).strip().splitlines() or [type(error).__name__])[0][:200]}"
