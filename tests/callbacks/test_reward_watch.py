import json
import warnings

import pytest
from modules.grpo_runs import binary, constant, graded, grpo, train

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.adjustment.ranges import FixedRange
from grpovi_lightning.adjustment.weights import UniformWeights
from grpovi_lightning.callbacks import RewardWatch, RunStatus


def increase():
    return VarianceIncrease(UniformWeights(), FixedRange(-5.0, 5.0))


def zero_one():
    return VarianceIncrease(UniformWeights(), FixedRange(0.0, 1.0))


def run(policy_folder, folder, reward, adjustment, steps=5, window=2, **settings):
    """The warnings on the terminal and those in the record."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = grpo(policy_folder, reward, adjustment=adjustment)
        train(module, folder, steps, RunStatus(folder, 1), RewardWatch(window), **settings)
    texts = [str(w.message) for w in caught if "over " in str(w.message)]
    shown = [text for text in texts if "group" in text or "completions" in text]
    return shown, json.loads((folder / "status.json").read_text())["warnings"]


def test_an_adjustment_that_finds_nothing_to_adjust_is_warned_about_once_and_in_the_record(policy_folder, tmp_path):
    shown, recorded = run(policy_folder, tmp_path, binary, zero_one())

    assert len(shown) == 1 and shown == recorded
    assert shown[0].startswith("adjustment without effect: VarianceIncrease changed none of 6 groups over 2 steps")
    assert "this run equals GRPO" in shown[0]


@pytest.mark.parametrize(
    ("reward", "adjustment"), [(graded, None), (graded, increase()), (binary, None)], ids=["grpo", "grpovi", "binary"]
)
def test_a_healthy_run_gets_no_warning(policy_folder, tmp_path, reward, adjustment):
    assert run(policy_folder, tmp_path, reward, adjustment) == ([], [])


def test_a_run_shorter_than_the_window_is_judged_at_its_end(policy_folder, tmp_path):
    shown, recorded = run(policy_folder, tmp_path, binary, zero_one(), steps=3, window=10)

    assert len(shown) == 1 and shown == recorded
    assert "changed none of 9 groups over 3 steps" in shown[0]


def test_a_resumed_run_does_not_repeat_the_warning(policy_folder, tmp_path):
    every = {"checkpoint_every": 3, "max_epochs": -1}
    first, _ = run(policy_folder, tmp_path, binary, zero_one(), steps=3, **every)
    last = tmp_path / "checkpoints" / "last.ckpt"

    second, recorded = run(policy_folder, tmp_path, binary, zero_one(), steps=6, ckpt_path=last, **every)

    assert len(first) == 1
    assert second == []
    assert recorded == first


# Completions without a reward: three groups of four a step.


def sometimes(missing):
    """The graded reward, with None at the given places among the twelve."""

    def reward(**arguments):
        return [None if i in missing else score for i, score in enumerate(graded(**arguments))]

    return reward


def test_many_completions_without_a_reward_are_warned_about_once_and_in_the_record(policy_folder, tmp_path):
    shown, recorded = run(policy_folder, tmp_path, sometimes({0, 5}), increase())

    assert len(shown) == 1 and shown == recorded
    assert shown[0].startswith("unscorable completions: 4 of 24 completions over 2 steps had no reward")


def test_a_few_completions_without_a_reward_are_normal_in_a_run_that_adjusts(policy_folder, tmp_path):
    assert run(policy_folder, tmp_path, sometimes({7}), increase()) == ([], [])


def test_an_adjustment_of_groups_without_variance_is_not_called_one_without_effect(policy_folder, tmp_path):
    assert run(policy_folder, tmp_path, constant, zero_one()) == ([], [])


def test_a_missing_reward_is_no_change_that_an_adjustment_made(policy_folder, tmp_path):
    def zero_one_or_none(completion_ids, **_):
        return [None if i == 7 else float(sum(ids) % 2) for i, ids in enumerate(completion_ids)]

    shown, _ = run(policy_folder, tmp_path, zero_one_or_none, zero_one())

    assert len(shown) == 1
    assert shown[0].startswith("adjustment without effect: VarianceIncrease changed none of 6 groups over 2 steps")
