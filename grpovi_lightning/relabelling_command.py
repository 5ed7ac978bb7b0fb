"""The command `grpovi relabel`, from YAML to the folder that it writes."""

from dataclasses import fields
from pathlib import Path

from jsonargparse import Namespace

from grpovi_lightning.folder_command import build_described, check_folder, folder_parser, keep_settings
from grpovi_lightning.relabelling import Relabelling


def run(arguments: list[str]) -> tuple[Path, dict[str, int]]:
    """Score the answers of a table and write its preferences anew.

    Returns:
        the folder, and how many rows there are, were swapped and were left out, as `Relabelling.write` says.

    Raises:
        UserError: the request is wrong, or the folder has scores of other settings.
    """
    built, made, settings = build(arguments)
    folder = Path(built.output)
    check_folder(folder, settings)
    made.check()
    keep_settings(folder, settings)
    return folder, made.write(folder)


def build(arguments: list[str]) -> tuple[Namespace, Relabelling, str]:
    """Build what the arguments describe; nothing is loaded yet.

    Returns:
        the arguments with objects in the place of their settings, what is relabelled, and all settings as YAML.

    Raises:
        UserError: the settings are wrong.
    """
    parser = folder_parser("relabel")
    parser.add_class_arguments(Relabelling)
    built, settings = build_described(parser, arguments)
    return built, Relabelling(**{field.name: built[field.name] for field in fields(Relabelling)}), settings
