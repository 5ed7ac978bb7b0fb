"""A reward that fails while a policy is trained: what is said, what is kept, and that the run can go on."""

import json

import pytest
from grpo_runs import graded, grpo, identical, prompt_data, quiet, train, trainer

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.randomness import step_indices
from grpovi_lightning.rewards import CompositeReward, RewardFunction
from grpovi_lightning.rewards.base import RewardUpdate
from grpovi_lightning.rewards.user_code import call_user_code


class FailsAt:
    """The graded reward, but for one call."""

    def __init__(self, call, wrong=None):
        self.call, self.wrong, self.calls = call, wrong, 0

    def __call__(self, prompts, completions, completion_ids, answer=None):
        self.calls += 1
        if self.calls != self.call:
            return graded(prompts, completions, completion_ids)
        if self.wrong is None:
            raise KeyError("digits")
        return self.wrong


def test_the_batch_is_kept_and_the_run_goes_on_from_its_checkpoint(policy_folder, tmp_path):
    reward = FailsAt(3)
    rows = step_indices(1, 2, 8, 3)
    said = (
        r"reward function FailsAt raised KeyError: 'digits' \(.*test_failed_reward.py, line \d+\); rows of step 2: "
        rf"{', '.join(map(str, rows))}; its batch is in .*failed_reward_step_2_rank_0.json; .* --ckpt_path"
    )
    with pytest.raises(TrainingError, match=said) as error:
        train(grpo(policy_folder, reward), tmp_path, 4, checkpoint_every=1)
    assert "\n" not in str(error.value)
    kept = json.loads((tmp_path / "failed_reward_step_2_rank_0.json").read_text())
    assert kept["step"] == 2 and kept["error"].startswith("reward function FailsAt raised KeyError")
    assert [row["row"] for row in kept["rows"]] == rows
    assert [row["columns"] for row in kept["rows"]] == [{"answer": str(i)} for i in rows]
    assert all(len(row["completions"]) == 4 and row["prompt"] for row in kept["rows"])

    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    resumed = train(grpo(policy_folder, reward), tmp_path, 4, ckpt_path=checkpoint)
    whole = train(grpo(policy_folder), tmp_path / "whole", 4)
    assert len(resumed.weights) == 2 and identical(resumed.weights[-1], whole.weights[-1])


class FailsToLearn(RewardFunction):
    def learn(self, rollout, seed, stopping=lambda: False):
        return call_user_code("oracle Mine", rollout, lambda: RewardUpdate(1 / 0))


FAILURES = {
    "too few values": (lambda: RewardFunction(FailsAt(1, [0.5])), "FailsAt returned 1 values, expected 12"),
    "an infinite sum": (
        lambda: CompositeReward([RewardFunction(lambda **_: [3e38] * 12, name) for name in "ab"]),
        "reward: got inf for completion 0 of prompt 0",
    ),
    "an oracle": (lambda: FailsToLearn(graded), "oracle Mine raised ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_whatever_fails_in_a_reward_keeps_the_batch(policy_folder, tmp_path, name):
    reward, said = FAILURES[name]
    with pytest.raises(TrainingError, match=f"{said}.*; its batch is in"):
        train(grpo(policy_folder, reward()), tmp_path)
    assert (tmp_path / "failed_reward_step_0_rank_0.json").exists()


def test_a_batch_that_cannot_be_written_does_not_hide_the_error(policy_folder, tmp_path):
    (tmp_path / "failed_reward_step_0_rank_0.json").mkdir()
    with pytest.raises(TrainingError, match=r"FailsAt raised KeyError: 'digits'.*; its batch could not be written"):
        train(grpo(policy_folder, FailsAt(1)), tmp_path)


def test_a_failure_on_held_out_prompts_is_told_apart(policy_folder, tmp_path):
    with pytest.raises(TrainingError, match=r"rows of the evaluation: 0, 1; .*failed_reward_held_out_rank_0.json"):
        train(grpo(policy_folder, FailsAt(1)), tmp_path, validate_every=1)


def test_an_evaluation_that_fails_writes_nothing(policy_folder, tmp_path):
    data = prompt_data(tmp_path / "data", validation=True)
    with quiet(), pytest.raises(TrainingError, match=r"rows of the evaluation: 0, 1$"):
        trainer(tmp_path / "run", 1, logger=False).validate(grpo(policy_folder, FailsAt(1)), data, verbose=False)
    assert not (tmp_path / "run").exists()


def test_columns_are_compared_before_anything_is_loaded(policy_folder, tmp_path):
    """The held-out table has no answers."""

    def needs(completions, answer):
        return [float(len(text)) for text in completions]

    module = grpo(policy_folder, needs)
    with pytest.raises(
        UserError, match=r"function needs needs the argument 'answer', but .* validation table are none"
    ):
        train(module, tmp_path, validate_every=1)
    assert not hasattr(module, "policy")
    train(grpo(policy_folder, needs), tmp_path, 1)
