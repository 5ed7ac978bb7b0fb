"""What the settings of a run have to say, whatever it trains: its parts, seed, length and folder."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from grpovi_lightning.errors import UserError, shown
from grpovi_lightning.run_record.study import MAX_SEED

_WRITTEN = ("default_root_dir", "dirpath", "save_dir", "log_dir", "folder", "cache")
"""Names of settings that say where something is written."""


def check_inside(settings: Any, folder: str, where: str = "") -> None:
    """Check that all that a stage or arm of a study writes goes into the study's folder, links followed.

    Args:
        settings: of the stage or arm, or a value in them.
        folder: of the study.
        where: dotted name of the value.

    Raises:
        UserError: names the first setting that leads elsewhere.
    """
    if isinstance(settings, Namespace):
        settings = vars(settings)
    if isinstance(settings, dict | list):
        for name, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
            check_inside(value, folder, f"{where}.{name}".lstrip("."))
        return
    writes = isinstance(settings, str) and settings and where.rpartition(".")[2] in _WRITTEN
    if writes and not Path(settings).resolve().is_relative_to(Path(folder).resolve()):
        raise UserError(
            f"{where}: got {settings}, expected a place in the study's folder {folder}; leave it out, or begin it with "
            "${study_dir} or ${trainer.default_root_dir}"
        )


def check_run(config: Namespace) -> None:
    """Check the parsed settings of `grpovi fit`, before anything is built.

    Raises:
        UserError: one that every run needs is missing, or none that a run can have.
    """
    for name in ("trainer", "checkpoint", "samples", "completions", "ranks"):
        if not isinstance(given := config[name], Namespace):
            raise UserError(f"{name}: got {shown(given)}, expected settings, a line each below it; or leave it out")
    seed = config.seed_everything
    if seed is None or isinstance(seed, bool):
        raise UserError(
            f"no seed: got seed_everything {seed}, expected an integer; add `seed_everything: 1` to the YAML"
        )
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed_everything: got {seed}, expected a whole number from 0 to {MAX_SEED}")
    for name in ("model.init_args.seed", "data.init_args.seed"):
        if isinstance(own := config.get(name), int) and own < 0:
            raise UserError(f"{name}: got {own}, expected a whole number of at least 0")
    if config.trainer.max_steps is None or config.trainer.max_steps < 1:
        raise UserError(
            f"no length: got trainer.max_steps {config.trainer.max_steps}, expected at least 1; "
            "add `max_steps: 100` under `trainer`"
        )
    if config.ckpt_path == "":
        raise UserError("ckpt_path: got no name, expected <run>/checkpoints/last.ckpt; or leave --ckpt_path out")
    if not config.trainer.default_root_dir:
        raise UserError(
            f"no run folder: got trainer.default_root_dir {config.trainer.default_root_dir!r}, expected where "
            "the run is written; add `default_root_dir: runs/my-run/seed_1` under `trainer`"
        )
    if ".." in Path(name := config.checkpoint.filename or "").parts or name.startswith("/"):
        raise UserError(f"checkpoint.filename: got {name!r}, expected a name within checkpoint.dirpath")
