"""Whether the arms of one seed began from the same completions and were evaluated on the same rows."""

from collections.abc import Sequence

from grpovi_lightning.run_record.pairing import by_seed
from grpovi_lightning.run_record.status import State, read_status
from grpovi_lightning.study.process import Run


def check_first_rollouts(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Compare the hashes of the step-0 completions over the arms of each seed.

    Arms of different tasks are not compared, because their prompts may differ. Points of a grid must agree with the
    points that have equal values. Others may differ: a value can change what is sampled, such as a temperature. Then a
    note says so.

    Args:
        runs: all arms x seeds of a study. Runs that have no status yet are left out, and so are runs that ended
            before their first rollout.

    Returns:
        Errors, one line a seed whose arms differ; and notes, one line a seed where nothing could be compared although
        several arms finished, or whose points differ by their values.
    """
    errors, notes = [], []
    for of_task in _by_task(runs):
        found = _check_first_rollouts(of_task)
        errors += found[0]
        notes += found[1]
    return errors, notes


def _by_task(runs: Sequence[Run]) -> list[list[Run]]:
    return [[run for run in runs if run.task == task] for task in dict.fromkeys(run.task for run in runs)]


def _check_first_rollouts(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    begun: dict[tuple[str, ...], list[tuple[int, str, str | None]]] = {}
    for run in runs:
        status = read_status(run.folder)
        # A run that finished has sampled whatever it samples; one that did not may have ended before.
        if run.seed is not None and status and (status.first_rollout is not None or status.state == State.FINISHED):
            values = () if run.point is None else tuple(sorted(run.point.arguments))
            begun.setdefault(values, []).append((run.seed, run.owner, status.first_rollout))
    errors, notes = [], []
    for check in [check for equal in begun.values() for check in by_seed(equal)]:
        if check.differs or (check.hashes and check.unknown):
            found = [f"{arm} {digest[:12]}" for arm, digest in check.hashes.items()]
            found += [f"{arm} none" for arm in check.unknown]
            errors.append(
                f"seed {check.seed}: the rollouts of step 0 differ between arms ({', '.join(found)}); arms of one seed "
                "must begin with the same completions, or their difference is not paired: give them the same policy, "
                "data, sampling and batch settings"
            )
        elif len(check.unknown) > 1:
            notes.append(f"seed {check.seed}: no arm recorded a rollout of step 0, so there was nothing to compare")
    if not errors and len(begun) > 1:
        notes += [
            f"seed {check.seed}: points of different values begin with different completions, so only points of equal "
            "values are paired"
            for check in by_seed(run for equal in begun.values() for run in equal)
            if check.differs
        ]
    return errors, notes


def check_held_out_rows(runs: Sequence[Run]) -> list[str]:
    """Compare the hashes of the held-out rows over the arms of each seed; return one line a seed whose arms differ.

    Runs that recorded none are left out. Arms of different tasks are not compared.
    """
    return [line for of_task in _by_task(runs) for line in _check_held_out_rows(of_task)]


def _check_held_out_rows(runs: Sequence[Run]) -> list[str]:
    recorded = []
    for run in runs:
        status = read_status(run.folder)
        if run.seed is not None and status and status.held_out is not None:
            recorded.append((run.seed, run.owner, status.held_out))
    return [
        f"seed {check.seed}: the arms were evaluated on different held-out rows "
        f"({', '.join(f'{arm} {digest[:12]}' for arm, digest in check.hashes.items())}), so their held-out metrics do "
        "not compare; give them the same held-out data and run them again"
        for check in by_seed(recorded)
        if check.differs
    ]
