"""What a command line describes, built to be checked before a study runs anything."""

import logging
import os
import warnings

import yaml


def check_command(arguments: list[str]) -> None:
    """Build what the command line of a stage or arm of a study describes: `fit ...`, `sample ...` or `relabel ...`.

    Raises:
        UserError: the configuration is wrong.
    """
    quiet()
    from grpovi_lightning.run_settings import check_inside

    if arguments[0] == "fit":
        from grpovi_lightning.run import RunCLI

        config = RunCLI(arguments[1:]).config
        return check_inside(config, config.study_dir)
    if arguments[0] == "relabel":
        from grpovi_lightning.relabelling_command import build as build_relabelling

        built, _, settings = build_relabelling(arguments[1:])
    else:
        from grpovi_lightning.sampling_command import build

        built, _, settings = build("sample", arguments[1:])
    check_inside(yaml.safe_load(settings), built.study_dir)


def setting_names(arguments: list[str]) -> list[str]:
    """Return the dotted names of all settings that the command line `fit ...` of an arm resolves to.

    Raises:
        UserError: the configuration is wrong.
    """
    quiet()
    from grpovi_lightning.run import RunCLI

    return list(RunCLI(arguments[1:]).config.keys(branches=True))


def quiet() -> None:
    """Silence advice that does not apply here: batches are text, small and made in order."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        "does not have many workers",
        "dataloader is not resumable",
        "exists and is not empty",
        "Trying to infer the `batch_size`",
        "in eval mode at the start of training",
        "Using ModelCheckpoint with manual optimization",
        "isinstance\\(treespec, LeafSpec\\)",
    ):
        warnings.filterwarnings("ignore", message=f"(?s).*{message}.*")
