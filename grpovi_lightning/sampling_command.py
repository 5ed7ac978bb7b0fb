"""The commands `grpovi sample` and `grpovi teach`, from YAML to the folder that they write."""

from dataclasses import fields
from pathlib import Path
from typing import Literal

import pandas as pd
from jsonargparse import ArgumentParser, Namespace

from grpovi_lightning.errors import UserError
from grpovi_lightning.folder_command import build_described, check_folder, folder_parser, keep_settings
from grpovi_lightning.scored_completions import CompletionRun
from grpovi_lightning.teaching import write_measure


def run(command: Literal["sample", "teach"], arguments: list[str]) -> tuple[Path, pd.DataFrame | None]:
    """Sample and score completions, and measure them for `teach`.

    Returns:
        the folder, and what `teach` measured.

    Raises:
        UserError: the request is wrong, or the folder has completions of other settings.
    """
    built, made, settings = build(command, arguments)
    folder = Path(built.output)
    check_folder(folder, settings)
    made.check(preferences=built.preferences, gold=built.get("gold"))
    keep_settings(folder, settings)
    completions = made.write(folder)
    if built.preferences is not None:
        written, cut_off = made.preferences(built.preferences, folder, built.ended_only)
        what = "left out" if built.ended_only else "among them"
        print(f"preferences: {written} pairs; {what} {cut_off} in which a completion was cut off")
    return folder, write_measure(completions, folder, built.gold) if command == "teach" else None


def build(command: Literal["sample", "teach"], arguments: list[str]) -> tuple[Namespace, CompletionRun, str]:
    """Build what the arguments describe; nothing is loaded yet.

    Returns:
        the arguments with objects in the place of their settings, what is sampled, and all settings as YAML.

    Raises:
        UserError: the settings are wrong.
    """
    built, settings = build_described(_parser(command), arguments)
    made = CompletionRun(**{field.name: built[field.name] for field in fields(CompletionRun)})
    if built.ended_only and built.preferences is None:
        raise UserError("ended_only has no effect without preferences: name the reward by which pairs are compared")
    if command == "teach" and made.completions < 2:
        raise UserError(f"completions: got {made.completions}, expected at least 2; one alone has no variance")
    return built, made, settings


def _parser(command: str) -> ArgumentParser:
    parser = folder_parser(command)
    parser.add_argument(
        "--preferences", type=str | None, default=None, help="Reward by which pairs of completions become preferences."
    )
    parser.add_argument(
        "--ended_only", type=bool, default=False, help="Leave out pairs in which a completion was cut off."
    )
    if command == "teach":
        parser.add_argument("--gold", type=str | None, default=None, help="Reward that the others should order as.")
    parser.add_class_arguments(CompletionRun)
    return parser
