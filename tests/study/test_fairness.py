import json
from dataclasses import replace
from pathlib import Path

import pytest

from grpovi_lightning.study.fairness import check_first_rollouts, check_held_out_rows
from grpovi_lightning.study.process import Run


@pytest.fixture
def runs(tmp_path):
    """Make arms x seeds with the given first rollouts: (arm, seed) -> hash, None, or "absent"."""

    def make(rollouts, state="finished", what="first_rollout"):
        made = []
        for (arm, seed), digest in rollouts.items():
            folder = tmp_path / arm / f"seed_{seed}"
            if digest != "absent":
                folder.mkdir(parents=True)
                (folder / "status.json").write_text(json.dumps({"state": state, what: digest}))
            made.append(Run(arm, folder, (), (), Path("lock"), seed=seed))
        return made

    return make


def test_equal_rollouts_within_each_seed_pass(runs):
    assert check_first_rollouts(runs({("a", 1): "x", ("b", 1): "x", ("a", 2): "y", ("b", 2): "y"})) == ([], [])


def test_a_difference_names_the_seed_and_every_arm(runs):
    errors, _ = check_first_rollouts(runs({("a", 1): "x", ("b", 1): "x", ("a", 2): "y", ("b", 2): "z" * 64}))
    (error,) = errors
    assert error.startswith(f"seed 2: the rollouts of step 0 differ between arms (a y, b {'z' * 12})")


def test_a_finished_arm_without_a_rollout_beside_one_with_a_rollout_is_a_difference(runs):
    errors, _ = check_first_rollouts(runs({("a", 1): "x", ("b", 1): None}))
    assert "(a x, b none)" in errors[0]


def test_a_failed_run_counts_when_it_got_as_far_as_its_first_rollout(runs):
    assert check_first_rollouts(runs({("a", 1): "x", ("b", 1): None}, state="failed")) == ([], [])
    assert len(check_first_rollouts(runs({("c", 1): "x", ("d", 1): "y"}, state="failed"))[0]) == 1


def test_runs_that_were_never_started_are_left_out(runs):
    assert check_first_rollouts(runs({("a", 1): "x", ("b", 1): "absent"})) == ([], [])


def test_arms_that_sample_nothing_are_noted(runs):
    errors, notes = check_first_rollouts(runs({("a", 1): None, ("b", 1): None}))
    assert errors == []
    assert notes == ["seed 1: no arm recorded a rollout of step 0, so there was nothing to compare"]


def test_arms_that_are_evaluated_on_different_rows_are_named_with_their_seed(runs):
    recorded = {("a", 1): "x", ("b", 1): "x", ("a", 2): "y", ("b", 2): "z" * 64, ("c", 2): None, ("d", 2): "absent"}
    (error,) = check_held_out_rows(runs(recorded, what="held_out"))
    assert error.startswith(f"seed 2: the arms were evaluated on different held-out rows (a y, b {'z' * 12}), so")


def test_arms_of_different_tasks_may_begin_and_be_evaluated_differently_and_arms_of_one_may_not(runs):
    def of_tasks(*tasks, **what):
        made = runs({(f"{task}-{i}", 1): digest for i, (task, digest) in enumerate(tasks)}, **what)
        return [replace(run, task=run.owner.partition("-")[0]) for run in made]

    apart = [("a", "x"), ("a", "x"), ("b", "y"), ("b", "y")]
    assert check_first_rollouts(of_tasks(*apart)) == ([], [])
    (error,), _ = check_first_rollouts(of_tasks(("c", "x"), ("d", "y"), ("d", "z")))
    assert "(d-1 y, d-2 z)" in error
    assert check_held_out_rows(of_tasks(("e", "x"), ("f", "y"), what="held_out")) == []
    (error,) = check_held_out_rows(of_tasks(("g", "x"), ("g", "y"), what="held_out"))
    assert "(g-0 x, g-1 y)" in error
