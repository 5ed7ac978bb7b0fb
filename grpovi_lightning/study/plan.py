"""From a study to its processes: what each is called, where it writes, and its command line."""

from pathlib import Path

from grpovi_lightning.run_record.layout import PREPARE_FOLDER, run_folder
from grpovi_lightning.study.process import Run
from grpovi_lightning.study.specification import ConfigFile, Stage, Study

LOCKS = ".locks"


def plan_prepare(study: Study, folder: Path) -> list[Run]:
    """Plan the prepare stages, in order; `folder` is the study's output folder."""
    runs = []
    for stage in study.prepare:
        target = folder / PREPARE_FOLDER / stage.name
        runs.append(
            Run(
                owner=stage.name,
                folder=target,
                arguments=_stage_arguments(stage, folder, target),
                configs=stage.configs,
                lock=folder / LOCKS / f"prepare-{stage.name}",
                command=stage.command,
                threads=study.threads_per_stage,
            )
        )
    return runs


def plan_arms(study: Study, folder: Path) -> list[Run]:
    """Plan arms x seeds; `folder` is the study's output folder."""
    runs = []
    # Seed by seed, so that a study stopped halfway holds whole pairs.
    for seed in study.seeds:
        for arm in study.arms:
            target = folder / run_folder(arm.name, seed)
            arguments = (*_fit_arguments(arm.configs, folder, target), "--seed_everything", str(seed))
            lock = folder / LOCKS / f"arm-{arm.name}-seed_{seed}"
            runs.append(Run(arm.name, target, arguments, arm.configs, lock, seed=seed, threads=study.threads_per_run))
    return runs


def _stage_arguments(stage: Stage, folder: Path, target: Path) -> tuple[str, ...]:
    if stage.command == "task":
        return ("task", *_config_arguments(stage.configs), "--output", str(target))
    return _fit_arguments(stage.configs, folder, target)


def _fit_arguments(configs: tuple[ConfigFile, ...], folder: Path, target: Path) -> tuple[str, ...]:
    places = ("--study_dir", str(folder), "--trainer.default_root_dir", str(target))
    return ("fit", *_config_arguments(configs), *places)


def _config_arguments(configs: tuple[ConfigFile, ...]) -> tuple[str, ...]:
    return tuple(argument for config in configs for argument in ("--config", str(config.path)))
