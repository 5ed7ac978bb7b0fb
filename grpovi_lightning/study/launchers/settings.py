"""From `--launcher` and its YAML file to the object that starts runs."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.checking import check_keys, check_mapping
from grpovi_lightning.run_record.layout import RecordError
from grpovi_lightning.study.launchers.interface import Launcher
from grpovi_lightning.study.launchers.local import LocalLauncher
from grpovi_lightning.study.launchers.needs import Needs, NeedsOfRuns
from grpovi_lightning.study.launchers.on_ray import RayLauncher
from grpovi_lightning.study.launchers.on_slurm import SlurmLauncher
from grpovi_lightning.study.reading import close_files
from grpovi_lightning.yaml_files import read_mapping

LAUNCHERS = ("local", "ray", "slurm")
_REMOTE: dict[str, Any] = {"ray": RayLauncher, "slurm": SlurmLauncher}
_NEEDS = tuple(each.name for each in fields(Needs))


def make_launcher(name: str, settings: Path | None = None, ray_address: str | None = None) -> Launcher:
    """Return the launcher of a name.

    Args:
        name: one of `LAUNCHERS`.
        settings: YAML file with the fields of the launcher, of `Needs`, and `runs`: what single arms and stages need.
        ray_address: address of a Ray cluster, in place of the file's.

    Raises:
        UserError: the settings do not fit the launcher.
    """
    if ray_address is not None and name != "ray":
        raise UserError(f"--ray-address goes with --launcher ray; got --launcher {name}")
    if name == "local":
        if settings is not None:
            raise UserError("--launcher-settings are for --launcher ray and slurm; --launcher local has none")
        return LocalLauncher()
    if settings is not None and not settings.is_file():
        raise UserError(
            f"launcher settings {settings} do not exist{close_files(settings)}; give the path of a YAML file"
        )
    content = {} if settings is None else read_mapping(settings)
    if ray_address is not None:
        content["address"] = ray_address
    try:
        return _made(_REMOTE[name], content)
    except (RecordError, UserError) as error:
        raise UserError(f"{settings or '--launcher ' + name}: {error}") from None


def _made(kind: Any, content: dict[str, Any]) -> Launcher:
    own = {each.name: each for each in fields(kind) if each.name != "needs"}
    check_mapping(content, "launcher settings")
    check_keys(content, (*own, *_NEEDS, "runs"), "launcher settings")
    instead = check_mapping(content.get("runs", {}), "runs")
    for name, needs in instead.items():
        check_keys(check_mapping(needs, f"runs: {name}"), _NEEDS, f"runs: {name}")
        Needs(**needs)
    needs = NeedsOfRuns(Needs(**{key: value for key, value in content.items() if key in _NEEDS}), instead)
    for key, value in content.items():
        _check_type(key, value, own[key].default) if key in own else None
    return kind(**{key: value for key, value in content.items() if key in own}, needs=needs)


def _check_type(key: str, value: Any, default: Any) -> None:
    if isinstance(default, int) and (type(value) is not int or value < 0):
        raise UserError(f"{key} is {value!r}, expected a whole number of at least 0")
    if (isinstance(default, str) or default is None) and not isinstance(value, str):
        raise UserError(f"{key} is {value!r}, expected text")
    if key == "parameters":
        check_mapping(value, key)
