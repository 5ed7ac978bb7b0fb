"""From a study to its processes: what each is called, where it writes, and its command line."""

from pathlib import Path

from grpovi_lightning.run_record.choice import Choice, judged_arms
from grpovi_lightning.run_record.layout import PREPARE_FOLDER, run_folder
from grpovi_lightning.study.process import Run
from grpovi_lightning.study.specification import Arm, ConfigFile, Study

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


def plan_tuning(study: Study, folder: Path) -> list[Run]:
    """Plan points x tuning seeds, on which the best point of each arm is chosen."""
    points = [arm for arm in study.arms if arm.point is not None]
    return [_plan_arm(study, arm, seed, folder) for seed in study.tuning_seeds for arm in points]


def plan_arms(study: Study, folder: Path, choice: Choice | None = None) -> list[Run]:
    """Plan arms x seeds; `folder` is the study's output folder.

    With tuning seeds, only the points that are judged are among them; none before there is a choice.
    """
    names = set(judged_arms(study, choice))
    # Seed by seed, so that a study stopped halfway holds whole pairs.
    return [_plan_arm(study, arm, seed, folder) for seed in study.seeds for arm in study.arms if arm.name in names]


def _plan_arm(study: Study, arm: Arm, seed: int, folder: Path) -> Run:
    target = folder / run_folder(arm.name, seed)
    values = () if arm.point is None else arm.point.arguments
    arguments = (*_arguments("fit", arm.configs, folder, target), *values, "--seed_everything", str(seed))
    lock = folder / LOCKS / f"arm-{arm.name}-seed_{seed}"
    return Run(
        owner=arm.name,
        folder=target,
        arguments=arguments,
        configs=arm.configs,
        lock=lock,
        seed=seed,
        threads=study.threads_per_run,
        point=arm.point,
        task=arm.task,
    )


def _arguments(command: str, configs: tuple[ConfigFile, ...], folder: Path, target: Path) -> tuple[str, ...]:
    files = [argument for config in configs for argument in ("--config", str(config.path))]
    if command == "task":
        return ("task", *files, "--output", str(target))
    if command in ("sample", "relabel"):
        return (command, *files, "--study_dir", str(folder), "--output", str(target))
    return ("fit", *files, "--study_dir", str(folder), "--trainer.default_root_dir", str(target))
