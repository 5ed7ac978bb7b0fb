import numpy as np
import pytest
import torch
from helpers.rollouts import rollout_of_words
from helpers.tiny_checkpoints import save_reward_model

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards import (
    CompositeReward,
    MemberLowerBound,
    MemberMean,
    MemberMinimum,
    RewardFunction,
    RewardModel,
    RewardModelEnsemble,
)

GROUPS = [["the fox runs", "fox", "a cat"], ["a boat in the river", "red red boat", "ten words"]]


@pytest.fixture(scope="module")
def members(tmp_path_factory, tokenizer_folder):
    folder = tmp_path_factory.mktemp("members")
    return [str(save_reward_model(folder / str(seed), tokenizer_folder, seed=seed)) for seed in (2, 3, 4)]


@pytest.fixture
def rollout(tiny_tokenizer):
    return rollout_of_words(tiny_tokenizer, ["write about the fox", "write"], GROUPS)


def alone(path, tokenizer, rollout):
    reward = RewardModel(path)
    reward.load(tokenizer)
    return reward.components(rollout)["reward_model"].numpy()


@pytest.mark.parametrize(
    ("combination", "numpys"),
    [
        (MemberMean(), lambda s: s.mean(axis=0)),
        (MemberMinimum(), lambda s: s.min(axis=0)),
        (MemberLowerBound(k=0.7), lambda s: s.mean(axis=0) - 0.7 * s.std(axis=0, ddof=1)),
    ],
    ids=["mean", "minimum", "lower bound"],
)
def test_the_reward_is_the_combination_of_the_members_that_are_logged_beside_it(
    members, tiny_tokenizer, rollout, combination, numpys
):
    reward = RewardModelEnsemble(members, combination, name="rm")
    reward.load(tiny_tokenizer)
    found = reward.components(rollout)

    scores = np.stack([alone(path, tiny_tokenizer, rollout) for path in members])
    assert scores.std(axis=0).min() > 0.01
    np.testing.assert_allclose(found["rm"].numpy(), numpys(scores), rtol=1e-5, atol=1e-6)
    for i, score in enumerate(scores):
        np.testing.assert_array_equal(found[f"rm_{i}"].numpy(), score)
    np.testing.assert_allclose(found["rm_spread"].numpy(), scores.std(axis=0, ddof=1), rtol=1e-5)
    assert reward.weights() == {"rm": 1.0, "rm_0": 0.0, "rm_1": 0.0, "rm_2": 0.0, "rm_spread": 0.0}
    assert torch.equal(reward.total(found, group_size=3), found["rm"])


def test_it_can_stand_beside_other_rewards(members, tiny_tokenizer, rollout):
    whole = CompositeReward([RewardModelEnsemble(members[:2]), RewardFunction(lengths)], [2.0, 0.5])
    whole.load(tiny_tokenizer)
    found = whole.components(rollout)
    expected = 2.0 * found["ensemble"] + 0.5 * found["lengths"]
    torch.testing.assert_close(whole.total(found, group_size=3), expected)
    assert len(whole.readers()) == 2


def lengths(prompts, completions, completion_ids):
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("paths", [[], ["a"], ["a", "b", "a"]])
def test_fewer_than_two_different_members_are_refused(paths):
    with pytest.raises(UserError, match=r"ensemble paths: got .*, expected at least two different ones"):
        RewardModelEnsemble(paths)


@pytest.mark.parametrize("k", [0.0, -1.0, float("inf"), float("nan")])
def test_a_factor_of_the_spread_that_is_not_above_0_is_refused(k):
    with pytest.raises(UserError, match=r"MemberLowerBound\.k: got"):
        MemberLowerBound(k)


def test_a_member_that_is_not_there_is_refused_before_loading(members, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        RewardModelEnsemble([members[0], str(tmp_path / "nowhere")]).check()
