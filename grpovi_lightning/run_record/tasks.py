"""The tasks of a study: the same methods on several of them, each an arm that is named `<method>-<task>`."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpovi_lightning.run_record.arms import Arm
from grpovi_lightning.run_record.layout import RecordError


def method_of(arm: str, task: str) -> str:
    """Return the method that an arm runs on a task, or "" for an arm whose name does not end with the task.

    >>> method_of("grpo-summary", "summary"), method_of("grpo", "summary")
    ('grpo', '')
    """
    return arm.removesuffix(f"-{task}") if arm.endswith(f"-{task}") else ""


def arms_by_method(arms: Sequence[Arm[Any]]) -> dict[str, dict[str, str]]:
    """Return method -> task -> the arm of the study file, in the order of the study; empty without tasks."""
    found: dict[str, dict[str, str]] = {}
    for arm in arms:
        if arm.task is not None:
            found.setdefault(method_of(arm.written, arm.task), {})[arm.task] = arm.written
    return found


def check_tasks(arms: Sequence[Arm[Any]], tuned: bool, where: str) -> None:
    """Refuse tasks over which methods cannot be compared.

    Args:
        arms: all arms of the study.
        tuned: whether the study has tuning seeds.
        where: begins every message.

    Raises:
        RecordError: the first mistake.
    """
    with_task = [arm for arm in arms if arm.task is not None]
    if not with_task:
        return
    example = f"such as {{configs: [...], task: {with_task[0].task}}}"
    for arm in arms:
        if arm.task is None:
            raise RecordError(
                f"{where}: arm {arm.written!r} has no task and arm {with_task[0].written!r} has one; give every arm a "
                f"task, {example}, or none"
            )
        if not method_of(arm.written, arm.task):
            raise RecordError(
                f"{where}: arm {arm.written!r} has the task {arm.task!r}; expected a name of method and task, such as "
                f"grpo-{arm.task}, so that the arms of one method are known"
            )
        if arm.point is not None and not tuned:
            raise RecordError(
                f"{where}: arm {arm.written!r} has a task and `values`; add tuning_seeds, so that one point of each "
                "arm is compared over the tasks"
            )
    _check_complete(arms_by_method(arms), where)
    _check_baselines({arm.written: arm for arm in arms}, where)


def _check_complete(methods: Mapping[str, Mapping[str, str]], where: str) -> None:
    tasks = list(dict.fromkeys(task for of_task in methods.values() for task in of_task))
    if len(tasks) < 2:
        raise RecordError(f"{where}: all arms have the task {tasks[0]!r}; several tasks are compared, or none is named")
    if len(methods) < 2:
        raise RecordError(
            f"{where}: every task has one arm, of the method {next(iter(methods))!r}; expected two methods to compare"
        )
    for method, of_task in methods.items():
        if missing := [task for task in tasks if task not in of_task]:
            raise RecordError(
                f"{where}: the method {method!r} has no arm for the task {missing[0]!r}; every method needs one for "
                f"every task: add an arm {method}-{missing[0]}"
            )


def _check_baselines(arms: Mapping[str, Arm[Any]], where: str) -> None:
    for arm in arms.values():
        other = None if arm.written_baseline is None else arms[arm.written_baseline].task
        if other not in (None, arm.task):
            raise RecordError(
                f"{where}: arm {arm.written!r} has the task {arm.task!r} and its baseline {arm.written_baseline!r} the "
                f"task {other!r}; compare arms of one task"
            )
    alone = {method_of(arm.written, arm.task): arm for arm in arms.values() if arm.task and not arm.written_baseline}
    of_method = [method_of(arm.written, arm.task) for arm in arms.values() if arm.task and arm.written_baseline]
    if len(alone) != 1 or set(alone) & set(of_method):
        raise RecordError(
            f"{where}: the methods without a baseline are {', '.join(alone) or 'none'}; with tasks expected exactly "
            "one, the baseline of all others on every task, by which scores are scaled"
        )
