"""From a study to its processes: what each is called, where it writes, and its command line."""

from pathlib import Path

from grpovi_lightning.run_record.layout import PREPARE_FOLDER, run_folder
from grpovi_lightning.study.process import Run
from grpovi_lightning.study.specification import ConfigFile, Study

LOCKS = ".locks"


def plan_prepare(study: Study, folder: Path) -> list[Run]:
    """Plan the prepare stages, in order; `folder` is the study's output folder."""
    runs = []
    for stage in study.prepare:
        target = folder / PREPARE_FOLDER / stage.name
        arguments = _arguments(stage.command, stage.configs, folder, target)
        lock = folder / LOCKS / f"prepare-{stage.name}"
        threads = study.threads_per_stage
        runs.append(Run(stage.name, target, arguments, stage.configs, lock, stage.command, threads=threads))
    return runs


def plan_arms(study: Study, folder: Path) -> list[Run]:
    """Plan arms x seeds; `folder` is the study's output folder."""
    runs = []
    # Seed by seed, so that a study stopped halfway holds whole pairs.
    for seed in study.seeds:
        for arm in study.arms:
            target = folder / run_folder(arm.name, seed)
            arguments = (*_arguments("fit", arm.configs, folder, target), "--seed_everything", str(seed))
            lock = folder / LOCKS / f"arm-{arm.name}-seed_{seed}"
            runs.append(Run(arm.name, target, arguments, arm.configs, lock, seed=seed, threads=study.threads_per_run))
    return runs


def _arguments(command: str, configs: tuple[ConfigFile, ...], folder: Path, target: Path) -> tuple[str, ...]:
    files = [argument for config in configs for argument in ("--config", str(config.path))]
    if command == "task":
        return ("task", *files, "--output", str(target))
    if command in ("sample", "relabel"):
        return (command, *files, "--study_dir", str(folder), "--output", str(target))
    return ("fit", *files, "--study_dir", str(folder), "--trainer.default_root_dir", str(target))
