"""What a run that stopped can go on from, and whether a checkpoint belongs to it."""

import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.checkpoint_folder import read_checkpoint, without_numbers
from grpovi_lightning.run_record.checkpoints import flaw, last_checkpoint
from grpovi_lightning.run_record.layout import (
    CHECKPOINTS_FOLDER,
    COMPLETIONS_FOLDER,
    CONFIG_FILE,
    STATUS_FILE,
    RecordError,
)
from grpovi_lightning.run_record.lock import LOCK_FILE, held_lock
from grpovi_lightning.run_record.status import State, read_status


def check_unused(folder: Path, checkpoints: Path, restart: bool) -> None:
    """Check that a run may begin in `folder`.

    Args:
        folder: the run's folder, which need not exist.
        checkpoints: where the run keeps its checkpoints.
        restart: whether a run that left no checkpoint may be begun anew.

    Raises:
        UserError: it holds a run; the message says how that can go on.
    """
    try:
        status = read_status(folder)
    except RecordError as error:
        raise UserError(str(error)) from error
    last = last_checkpoint(checkpoints)
    if not (folder / STATUS_FILE).exists() or (restart and last is None):
        return
    holds = f"run folder {folder} holds a {status.state if status else 'damaged'} run already"
    another = "choose another trainer.default_root_dir"
    if last is None:
        raise UserError(f"{holds}, without a checkpoint to continue from; {another}, or begin it anew with --restart")
    longer = " and a larger trainer.max_steps" if status and status.state == State.FINISHED else ""
    raise UserError(f"{holds}; {another}, or continue it with --ckpt_path {last}{longer}")


def clear_attempt(folder: Path) -> None:
    """Remove what a run that left no checkpoint has logged and sampled, which the new attempt does again."""
    shutil.rmtree(folder / COMPLETIONS_FOLDER, ignore_errors=True)
    csv_logs = folder.glob("*/version_*/metrics.csv")
    for path in (folder / STATUS_FILE, *folder.glob("events.out.tfevents.*"), *csv_logs):
        path.unlink(missing_ok=True)


@contextmanager
def folder_to_itself(folder: Path, keep: Callable[[], bool]) -> Iterator[None]:
    """Hold the folder of a run, and leave nothing there if the run is refused before its first step.

    Some reasons are seen only when models are loaded. The same command can then be given again, mended. What was in the
    folder before stays.

    Args:
        folder: of the run.
        keep: says whether a run that is refused keeps what it wrote, such as one that has made a step.

    Raises:
        RecordError: another process works in the folder.
    """
    before = {path for path in _run_files(folder) if path.exists()}
    with held_lock(folder):
        try:
            yield
        except UserError:
            if not keep():
                _remove_all_but(before, folder)
            raise


def _run_files(folder: Path) -> list[Path]:
    """Return what a run that made no step may have written, files before the folders that they are in."""
    inner = [folder / name for name in (COMPLETIONS_FOLDER, CHECKPOINTS_FOLDER)]
    logs = [*folder.glob("events.out.tfevents.*"), *folder.glob("*/version_*/*"), *folder.glob("*/version_*")]
    files = [folder / name for name in (STATUS_FILE, CONFIG_FILE, "hparams.yaml", LOCK_FILE)]
    files += [path for place in inner for path in place.glob("*")] + logs
    return [*files, *inner, *{log.parent.parent for log in logs if log.parent.parent.parent == folder}, folder]


def _remove_all_but(before: set[Path], folder: Path) -> None:
    for path in _run_files(folder):
        if path not in before:
            with suppress(OSError):  # it is not there, or holds something else
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def check_checkpoint(path: Path, module: L.LightningModule, max_steps: int | None) -> None:
    """Check that a run can go on from a checkpoint; what can be told before `module` has loaded its models comes first.

    Args:
        path: the file or folder.
        module: of the run that goes on; afterwards its models are loaded.
        max_steps: of the run; None for an evaluation, which needs the weights alone.

    Raises:
        UserError: it is not there, not whole, no checkpoint of a run, or of another run.
    """
    content = _read(path, training=max_steps is not None)
    if max_steps is not None and content["global_step"] > max_steps:
        raise UserError(
            f"checkpoint {path}: it is of step {content['global_step']}, beyond trainer.max_steps {max_steps}; raise it"
        )
    other_run = f"checkpoint {path} is not of this run: "
    expected = f"; expected one of a {type(module).__name__} with the same models"
    own = [name for name, _ in module.named_buffers(recurse=False) if name not in module._non_persistent_buffers_set]
    missing = [name for name in own if name not in content["state_dict"]]
    if missing:
        raise UserError(f"{other_run}it has no {missing[0]}{expected}")
    module.configure_model()  # Lightning does this again, without effect
    module.on_load_checkpoint(content)
    try:
        module.load_state_dict(without_numbers(content["state_dict"], module))
    except RuntimeError as error:
        found = " ".join(str(error).splitlines()[1].split())[:200]
        raise UserError(f"{other_run}{found}{expected}") from error


def _read(path: Path, training: bool) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"checkpoint {path}: no such file; expected one of <run>/checkpoints/*.ckpt")
    if found := flaw(path):
        rest = last_checkpoint(path.parent)
        remedy = f"continue from {rest}" if rest else "expected one of <run>/checkpoints/*.ckpt"
        raise UserError(f"checkpoint {path}: got {found}; {remedy}")
    try:
        content = read_checkpoint(path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:  # torch would say how to load it nevertheless
        raise UserError(
            f"checkpoint {path}: cannot be read: it is damaged, or holds objects that could run code; give one of "
            "<run>/checkpoints/*.ckpt"
        ) from error
    except Exception as error:  # torch raises errors of many types for a damaged or foreign file
        raise UserError(f"checkpoint {path}: cannot be read: {str(error).splitlines()[0]}; give another one") from error
    needed: dict[str, type] = {"state_dict": dict, "global_step": int}
    if training:
        needed |= {"loops": dict, "optimizer_states": list}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in needed.items()):
        raise UserError(f"checkpoint {path}: holds no run to continue; expected one of <run>/checkpoints/*.ckpt")
    return content
