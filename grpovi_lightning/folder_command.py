"""What the commands share that fill one folder by the settings in YAML files: `sample`, `teach` and `relabel`."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from grpovi_lightning.errors import UserError
from grpovi_lightning.overlays import own_defaults
from grpovi_lightning.parser_messages import check_objects, mistakes_in_one_line
from grpovi_lightning.paths import check_output, expanded
from grpovi_lightning.run import find_user_code
from grpovi_lightning.run_record.layout import CONFIG_FILE, replace_file
from grpovi_lightning.yaml_files import check_config_files


def folder_parser(command: str) -> ArgumentParser:
    """Return a parser of what all of them take: YAML files, the study's folder, and the folder that is filled."""
    parser = ArgumentParser(prog=f"grpovi {command}", exit_on_error=False, parser_mode="omegaconf+")
    parser.add_argument("--config", action="config")
    parser.add_argument("--study_dir", type=str, default="runs", help="What ${study_dir} stands for in the YAML.")
    parser.add_argument("--output", type=str, required=True, help="Folder that is filled; it goes on where it was.")
    return parser


def build_described(parser: ArgumentParser, arguments: list[str]) -> tuple[Namespace, str]:
    """Build what the arguments describe; nothing is loaded yet.

    Returns:
        the arguments with objects in the place of their settings, and all settings as YAML.

    Raises:
        UserError: the settings are wrong.
    """
    find_user_code()
    check_config_files(arguments)
    with mistakes_in_one_line():
        with own_defaults():
            config = expanded(parser.parse_args(arguments))
        check_objects(config)
        built: Any = parser.instantiate_classes(config)
    return built, parser.dump(config, skip_none=False)


def check_folder(folder: Path, settings: str) -> None:
    """Raise `UserError` for a folder that cannot be written to, or that was filled with other settings."""
    check_output(folder, "output")
    file = folder / CONFIG_FILE
    if file.exists() and file.read_text(encoding="utf-8") != settings:
        raise UserError(f"output {folder}: holds what other settings made ({file}); choose another folder")


def keep_settings(folder: Path, settings: str) -> None:
    """Write the settings into the folder, which is made where it is not there."""
    replace_file(folder / CONFIG_FILE, settings)
