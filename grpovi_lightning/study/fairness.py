"""Whether the arms of one seed began from the same completions, as a paired comparison needs."""

from collections.abc import Sequence

from grpovi_lightning.study.process import Run
from grpovi_lightning.study.status import read_status


def check_first_rollouts(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Compare the hashes of the step-0 completions over the arms of each seed.

    Args:
        runs: all arms x seeds of a study. Runs that have no status yet are left out, and so are runs that ended
            before their first rollout.

    Returns:
        Errors, one line a seed whose arms differ; and notes, one line a seed where nothing could be compared although
        several arms finished.
    """
    errors, notes = [], []
    for seed in dict.fromkeys(run.seed for run in runs):
        hashes: dict[str, str] = {}
        without = []
        for run in (run for run in runs if run.seed == seed):
            status = read_status(run.folder)
            if status is not None and status.first_rollout is not None:
                hashes[run.owner] = status.first_rollout
            elif status is not None and status.state == "finished":
                without.append(run.owner)
        if len(set(hashes.values())) > 1 or (hashes and without):
            found = [f"{arm} {digest[:12]}" for arm, digest in hashes.items()] + [f"{arm} none" for arm in without]
            errors.append(
                f"seed {seed}: the rollouts of step 0 differ between arms ({', '.join(found)}); arms of one seed must "
                "begin with the same completions, or their difference is not paired: give them the same policy, data, "
                "sampling and batch settings"
            )
        elif len(without) > 1:
            notes.append(f"seed {seed}: no arm recorded a rollout of step 0, so there was nothing to compare")
    return errors, notes
