"""A study file opened: what it says, and every config file that it names, checked before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from grpovi_lightning.errors import UserError
from grpovi_lightning.paths import expanded
from grpovi_lightning.run_record import study as record
from grpovi_lightning.run_record.layout import STUDY_FILE, RecordError
from grpovi_lightning.run_record.study import StudyRecord, parse_seeds, parse_study, with_configs
from grpovi_lightning.study.reading import close_files
from grpovi_lightning.yaml_files import read_mapping


@dataclass(frozen=True)
class ConfigFile:
    """One YAML file that a process is given with `--config`."""

    name: str
    """As written in study.yaml: relative to the folder of study.yaml."""
    path: Path
    content: dict[str, Any] = field(repr=False)
    """The parsed file. Comments and layout are not part of what a study is."""


Stage: TypeAlias = record.Stage[ConfigFile]
Arm: TypeAlias = record.Arm[ConfigFile]
Study: TypeAlias = StudyRecord[ConfigFile]


def load_study(study_file: str | Path, *, seeds: str | Sequence[int] | None = None) -> Study:
    """Read and check a study file and every config file that it names.

    Args:
        study_file: path of `study.yaml`; config paths in it are relative to its folder.
        seeds: seeds to use instead of the file's: whole numbers, or text such as `1,2,3`.

    Raises:
        UserError: for anything in it that could not run as written.
    """
    path = Path(study_file)
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a study file such as {path / STUDY_FILE}")
    if not path.is_file():
        raise UserError(f"study file {path} does not exist{close_files(path)}; give the path of one")
    content = read_mapping(path)
    try:
        if seeds is not None:
            content |= {"seeds": list(parse_seeds(seeds, "--seeds"))}
        record = parse_study(content, str(path), resolved=False)
    except RecordError as error:
        raise UserError(str(error)) from None
    if not record.name:
        raise UserError(f"{path}: no name; add `name: ...`, it becomes the name of the output folder")
    if not record.seeds:
        raise UserError(f"{path}: no seeds; add `seeds: [1, 2, 3]` to it or give --seeds 1,2,3")
    if not record.arms:
        raise UserError(f"{path}: no arms; add `arms:` with at least one `<name>: {{configs: [...]}}`")
    return with_configs(record, lambda names, where: _open(names, f"{path}: {where}", path.parent))


def _open(names: tuple[str, ...], where: str, folder: Path) -> tuple[ConfigFile, ...]:
    if not names:
        raise UserError(f"{where}: configs is empty, expected a list of YAML files such as [grpo.yaml]")
    files = []
    for name in names:
        config = folder / expanded(name)
        if not config.is_file():
            raise UserError(
                f"{where}: config file '{config}' does not exist{close_files(config)}; paths in `configs` are relative "
                "to the study file"
            )
        files.append(ConfigFile(name, config, read_mapping(config)))
    return tuple(files)
