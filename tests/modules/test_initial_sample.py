"""A reward that is normalised over completions of the initial policy: taken once, kept with the run."""

import json

import numpy as np
import pytest
import torch
from helpers.threads import two_threads  # noqa: F401  applies to all tests here
from modules.grpo_runs import PROMPTS, graded, grpo, identical, prompt_data, quiet, scalars, train, trainer

from grpovi_lightning.errors import UserError
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.randomness import INITIAL_STEP, initial_indices
from grpovi_lightning.rewards import NormalisedReward, RewardFunction
from grpovi_lightning.rollout import RolloutEngine, SamplingConfig
from grpovi_lightning.structures import PromptBatch


def normalised(prompts=6, completions=5):
    return NormalisedReward(RewardFunction(graded), prompts, completions)


@pytest.fixture(scope="module")
def straight(policy_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    module = grpo(policy_folder, normalised())
    record = train(module, folder, 4, validate_every=2, checkpoint_every=2, max_epochs=-1)
    return folder, module, record


def test_mean_and_spread_are_those_of_the_initial_policys_completions_of_drawn_prompts(straight, policy_folder):
    rows = initial_indices(1, len(PROMPTS), 6)
    assert len(set(rows)) == 6 and rows != sorted(rows)
    engine = RolloutEngine(SamplingConfig(max_completion_length=9, temperature=0.9))
    prompts = PromptBatch([PROMPTS[row] for row in rows], torch.tensor(rows), {})
    rollout = engine.generate(PretrainedCausalLM(str(policy_folder)).load(), prompts, 5, 1, INITIAL_STEP)
    ids = [row[kept].tolist() for row, kept in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]
    scores = graded([], rollout.texts, ids)

    folder, module, _ = straight
    expected = np.mean(scores), np.std(scores, ddof=1)
    assert module.reward.scale == pytest.approx(expected, rel=1e-6)
    kept = json.loads((folder / "reward_normalisation.json").read_text())["normalised_reward"]
    assert (kept["mean"], kept["std"]) == module.reward.scale
    assert (kept["prompts"], kept["completions"]) == (6, 5)


def test_the_policy_is_trained_on_the_normalised_reward_from_the_first_evaluation_on(straight):
    folder, module, record = straight
    mean, std = module.reward.scale
    for outcome in record.outputs:
        raw = outcome.rollout.grouped(outcome.scored.components["graded"])
        torch.testing.assert_close(outcome.rewards, (raw - mean) / std)
    logged = scalars(folder)
    raw = logged["eval/rewards/graded/mean"]
    assert sorted(raw) == [0, 2, 4]
    assert logged["eval/reward"] == pytest.approx({step: (value - mean) / std for step, value in raw.items()}, abs=1e-5)


def test_a_resumed_run_takes_it_from_the_checkpoint_and_is_the_run_that_was_never_stopped(
    straight, policy_folder, tmp_path, monkeypatch
):
    folder, module, record = straight
    every = {"validate_every": 2, "checkpoint_every": 2, "max_epochs": -1}
    train(grpo(policy_folder, normalised()), tmp_path, 2, **every)
    monkeypatch.setattr(NormalisedReward, "fit", lambda *_: pytest.fail("it was taken again"))

    resumed = grpo(policy_folder, normalised())
    later = train(resumed, tmp_path, 4, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", **every)

    assert resumed.reward.scale == module.reward.scale
    assert identical(later.weights[-1], record.weights[-1])
    assert scalars(tmp_path) == scalars(folder)


def test_without_a_held_out_table_it_is_taken_before_the_first_step(policy_folder, tmp_path, straight):
    module = grpo(policy_folder, normalised())
    record = train(module, tmp_path, 1)
    assert module.reward.scale == straight[1].reward.scale
    assert torch.equal(record.outputs[0].rewards, straight[2].outputs[0].rewards)


def test_an_evaluation_alone_takes_it_too_and_writes_nothing(policy_folder, tmp_path):
    module = grpo(policy_folder, normalised())
    with quiet():
        trainer(tmp_path, 1, logger=False).validate(
            module, prompt_data(tmp_path / "data", validation=True), verbose=False
        )
    assert module.reward.scale is not None
    assert not (tmp_path / "reward_normalisation.json").exists()


def test_more_prompts_than_the_table_has_are_refused_before_the_first_step(policy_folder, tmp_path):
    with pytest.raises(UserError, match="normalised_reward: got prompts 500, but the train table has 8 rows"):
        train(grpo(policy_folder, normalised(500)), tmp_path, 1)
