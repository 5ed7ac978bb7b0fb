"""The commands `grpovi sample` and `grpovi teach`, from YAML to the folder that they write."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from jsonargparse import ArgumentParser, Namespace

from grpovi_lightning.errors import UserError
from grpovi_lightning.overlays import own_defaults
from grpovi_lightning.parser_messages import one_line
from grpovi_lightning.paths import check_output, expanded
from grpovi_lightning.run import find_user_code, user_error
from grpovi_lightning.scored_completions import CompletionRun
from grpovi_lightning.teaching import write_measure

SETTINGS_FILE = "config.yaml"


def run(command: Literal["sample", "teach"], arguments: list[str]) -> tuple[Path, pd.DataFrame | None]:
    """Sample and score completions, and measure them for `teach`.

    Returns:
        the folder, and what `teach` measured.

    Raises:
        UserError: the request is wrong, or the folder has completions of other settings.
    """
    built, made, settings = build(command, arguments)
    folder = Path(built.output)
    check_output(folder, "output")
    _check_settings(folder, settings)
    made.check(preferences=built.preferences, gold=built.get("gold"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS_FILE).write_text(settings, encoding="utf-8")
    completions = made.write(folder)
    if built.preferences is not None:
        print(f"preferences: {made.preferences(built.preferences, folder)} pairs")
    return folder, write_measure(completions, folder, built.gold) if command == "teach" else None


def build(command: Literal["sample", "teach"], arguments: list[str]) -> tuple[Namespace, CompletionRun, str]:
    """Build what the arguments describe; nothing is loaded yet.

    Returns:
        the arguments with objects in the place of their settings, what is sampled, and all settings as YAML.

    Raises:
        UserError: the settings are wrong.
    """
    find_user_code()
    parser = _parser(command)
    try:
        with own_defaults():
            config = expanded(parser.parse_args(arguments))
        built: Any = parser.instantiate_classes(config)
    except argparse.ArgumentError as error:
        raise UserError(one_line(str(error))) from error
    except ValueError as error:
        raise (user_error(error) or error) from None
    made = CompletionRun(**{field.name: built[field.name] for field in fields(CompletionRun)})
    if command == "teach" and made.completions < 2:
        raise UserError(f"completions: got {made.completions}, expected at least 2; one alone has no variance")
    return built, made, parser.dump(config, skip_none=False)


def _parser(command: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"grpovi {command}", exit_on_error=False, parser_mode="omegaconf+")
    parser.add_argument("--config", action="config")
    parser.add_argument("--study_dir", type=str, default="runs", help="What ${study_dir} stands for in the YAML.")
    parser.add_argument("--output", type=str, required=True, help="Folder of the completions; it goes on where it was.")
    parser.add_argument(
        "--preferences", type=str | None, default=None, help="Reward by which pairs of completions become preferences."
    )
    if command == "teach":
        parser.add_argument("--gold", type=str | None, default=None, help="Reward that the others should order as.")
    parser.add_class_arguments(CompletionRun)
    return parser


def _check_settings(folder: Path, settings: str) -> None:
    """Refuse a folder whose completions were made with other settings."""
    file = folder / SETTINGS_FILE
    if file.exists() and file.read_text(encoding="utf-8") != settings:
        raise UserError(f"output {folder}: holds completions of other settings ({file}); choose another folder")
