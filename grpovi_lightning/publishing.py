"""Pushing what a run trained to the Hugging Face hub, with its model card."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from grpovi_lightning.errors import UserError
from grpovi_lightning.paths import check_output
from grpovi_lightning.run_record.layout import (
    ADAPTER_FOLDER,
    MODEL_FOLDER,
    STATUS_FILE,
    STUDY_FILE,
    replace_file,
)
from grpovi_lightning.run_record.publication import public

CARD_FILE = "README.md"
KINDS = {MODEL_FOLDER: "config.json", ADAPTER_FOLDER: "adapter_config.json"}
"""Folder of a run -> the file by which its kind is known, in the folder and on the hub."""

_MARK = re.compile(r"\n<!-- grpovi push wrote this card: (\w+) -->\n\Z")
_BRANCH = re.compile(r"\w[\w./-]{0,199}")
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_NO_ANSWER = cast(tuple[type[Exception], ...], (HfHubHTTPError.__bases__[0], EntryNotFoundError))
"""What the client raises without an answer: `HTTPError` of whichever httpx it uses, or what it makes of that."""


@dataclass(frozen=True)
class Target:
    """Where on the hub something goes.

    Attributes:
        repo: `user/name`.
        revision: the branch, made where it does not exist; None: the main one.
        private: whether the repository has to be private; False: what the account makes new ones.
    """

    repo: str
    revision: str | None = None
    private: bool = False

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repo)
            is_name = self.repo.count("/") == 1
        except HFValidationError:
            is_name = False
        if not is_name:
            raise UserError(f"got repository {self.repo!r}, expected user/name, such as ada/my-policy")
        if self.revision is not None and not _BRANCH.fullmatch(self.revision):
            raise UserError(f"--revision: got {self.revision!r}, expected the name of a branch, such as seed-1")


def trained_folder(run: Path, kind: str) -> Path:
    """Return the folder of a run that is to be pushed, where all is well with it.

    Args:
        run: the run's folder.
        kind: one of `KINDS`.

    Raises:
        UserError: it is no run, nothing of that kind was trained, or there is a card that this command did not write.
    """
    if not (run / STATUS_FILE).is_file():
        state = f"no {STATUS_FILE} in it" if run.is_dir() else "no such folder"
        hint = "; it is a study: name one of its runs, arms/ARM/seed_N" if (run / STUDY_FILE).is_file() else ""
        raise UserError(f"{run} is no run: {state}, expected the folder of a run, as grpovi fit writes it{hint}")
    folder = run / kind
    if not folder.is_dir():
        there = [name for name in KINDS if (run / name).is_dir()]
        found = f"it has {there[0]}: say --what {there[0]}" if there else "a run writes it when training ends"
        raise UserError(f"{run}: no {kind} was trained there; {found}")
    if not (folder / KINDS[kind]).is_file():
        raise UserError(
            f"{folder}: no {KINDS[kind]} in it, expected what transformers or peft can load; a linear reward is read "
            "by LinearReward alone"
        )
    card = folder / CARD_FILE
    if card.is_file():
        _check_own(card.read_text(encoding="utf-8", errors="replace"), str(card), "move it away")
    check_output(folder, "the card")
    return folder


def signed(card: str) -> str:
    """Return a card with the mark by which the command knows it again, as long as nobody changes it."""
    return f"{card}\n<!-- grpovi push wrote this card: {_digest(card)} -->\n"


def write_card(folder: Path, card: str) -> None:
    """Write a signed card into the folder that it describes."""
    replace_file(folder / CARD_FILE, card)


def check_connection() -> None:
    """Ask the hub who the user is.

    Raises:
        UserError: the hub is switched off or cannot be reached, or the user is not logged in.
    """
    if constants.HF_HUB_OFFLINE:
        raise UserError("the hub is off (HF_HUB_OFFLINE); set it to 0, or write the card alone with --card_only")
    if get_token() is None:
        raise UserError("not logged in to the hub: log in with hf auth login, or set the variable HF_TOKEN")
    with _answers_of_the_hub("whoami"):
        HfApi().whoami()


def push(folder: Path, card: str, target: Target) -> tuple[str, list[str]]:
    """Upload a folder and its signed card in one commit, and then write the card into the folder.

    Weights that the repository has from an earlier push, under names that are not used now, are removed. Settings files
    (`*config.json`) are uploaded as `public` shows them; those on disk stay.

    Returns:
        where it is now, and the names of the files that differ from those on disk.

    Raises:
        UserError: the hub refuses, or the repository holds something else. Nothing is written then.
    """
    api = HfApi(library_name="grpovi-lightning")
    contents = _contents(folder)
    with _answers_of_the_hub(target.repo):
        api.create_repo(target.repo, private=True if target.private else None, exist_ok=True)
        if target.revision is not None:
            api.create_branch(target.repo, branch=target.revision, exist_ok=True)
        found = api.model_info(target.repo, revision=target.revision)
        there = {sibling.rfilename for sibling in found.siblings or ()}
        _check_repository(target, folder.name, there, is_private=bool(found.private))
        if CARD_FILE in there:
            _check_own(_card_on_hub(api, target), f"{target.repo}: its {CARD_FILE}", "remove it there")
        names = {*contents, CARD_FILE}
        operations = [
            CommitOperationAdd(CARD_FILE, card.encode()),
            *(CommitOperationAdd(name, content) for name, content in contents.items()),
            *(CommitOperationDelete(name) for name in sorted(there - names) if name.endswith(_WEIGHTS)),
        ]
        try:
            api.create_commit(
                target.repo,
                operations,
                commit_message=f"Trained {folder.name} with its card, by grpovi push",
                revision=target.revision,
                parent_commit=found.sha,  # what was checked above is still so
            )
        except (ValueError, RuntimeError) as error:  # a card that the hub does not take, a file that did not arrive
            raise UserError(f"{target.repo}: the upload failed: {_first_line(str(error))}") from error
    write_card(folder, card)
    branch = f"/tree/{target.revision}" if target.revision else ""
    changed = [name for name, content in contents.items() if isinstance(content, bytes)]
    return f"{api.endpoint}/{target.repo}{branch}", changed


def _contents(folder: Path) -> dict[str, str | bytes]:
    """Return name in the repository -> path of each file; or its content, where that is not what is on disk."""
    contents: dict[str, str | bytes] = {}
    for file in sorted(folder.rglob("*")):
        place = file.relative_to(folder)
        if not file.is_file() or any(part.startswith(".") for part in place.parts) or str(place) == CARD_FILE:
            continue
        contents[place.as_posix()] = str(file)
        if file.name.endswith("config.json"):
            try:
                settings = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{file} cannot be read: {error}; export the model again") from error
            if public(settings) != settings:
                contents[place.as_posix()] = (json.dumps(public(settings), indent=2) + "\n").encode()
    return contents


def _check_repository(target: Target, kind: str, there: set[str], *, is_private: bool) -> None:
    """Refuse a repository that is not what the user takes it for."""
    if target.private and not is_private:
        raise UserError(f"{target.repo} exists and is public; make it private there, or leave --private out")
    for other, mark in KINDS.items():
        if other != kind and mark in there:
            raise UserError(
                f"{target.repo} holds {other} files ({mark}), with which {kind} files would be taken for one thing; "
                "choose another repository or another --revision"
            )


def _card_on_hub(api: HfApi, target: Target) -> str:
    with tempfile.TemporaryDirectory() as place:
        file = api.hf_hub_download(target.repo, CARD_FILE, revision=target.revision, local_dir=place)
        return Path(file).read_text(encoding="utf-8", errors="replace")


def _digest(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:32]


def _check_own(text: str, where: str, remedy: str) -> None:
    """Refuse to overwrite a card that somebody else wrote, or changed."""
    mark = _MARK.search(text)
    if mark is None:
        raise UserError(f"{where} was not written by grpovi push, and is not overwritten; {remedy}")
    if mark[1] != _digest(text[: mark.start()]):
        raise UserError(
            f"{where} was changed since grpovi push wrote it, and is not overwritten; {remedy}, or upload the folder "
            "as it is with hf upload"
        )


@contextmanager
def _answers_of_the_hub(what: str) -> Iterator[None]:
    """Turn refusals of the hub, and no answer at all, into one line."""
    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        hints = {401: "log in with hf auth login", 403: "use a token that may write there"}
        reason = _first_line(error.server_message or str(error))
        hint = f"; {hints[status]}" if status in hints else ""
        raise UserError(f"{what}: the hub refuses ({status}): {reason}{hint}") from error
    except _NO_ANSWER as error:
        raise UserError(
            f"{what}: the hub cannot be reached at {constants.ENDPOINT} ({_first_line(str(error))}); try again where "
            "there is a network, or write the card alone with --card_only"
        ) from error


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["it does not say why"])[0][:200]
