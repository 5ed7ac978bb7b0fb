from math import nan

import numpy as np
import pytest
import torch
from helpers.rollouts import rollout_of_words

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards import CompositeReward, NormalisedReward, Reward, RewardFunction

SAMPLE = [["fox", "the fox runs"], ["a cat", "ten words in the river"]], [["dog", "red"], ["it", "a b c"]]


def letters(prompts, completions, completion_ids):
    return [None if text == "it" else float(len(text)) for text in completions]


def vowels(prompts, completions, completion_ids):
    return [float(sum(text.count(v) for v in "aeiou")) for text in completions]


def rollouts(tokenizer):
    return [rollout_of_words(tokenizer, ["write", "ten"], groups) for groups in SAMPLE]


def test_over_the_sample_its_mean_is_0_and_its_variance_1_whatever_it_is_made_of(tiny_tokenizer):
    inner = CompositeReward([RewardFunction(letters), RewardFunction(vowels)], [2.0, 1.0])
    reward = NormalisedReward(inner)
    reward.fit(rollouts(tiny_tokenizer))

    texts = [text for groups in SAMPLE for group in groups for text in group if text != "it"]
    totals = [2.0 * len(text) + sum(text.count(v) for v in "aeiou") for text in texts]
    assert reward.scale == pytest.approx((np.mean(totals), np.std(totals, ddof=1)))
    found = torch.cat([reward.components(part)["normalised_reward"] for part in rollouts(tiny_tokenizer)])
    known = found[~found.isnan()].numpy()
    assert len(known) == 7 and known.mean() == pytest.approx(0.0, abs=1e-6)
    assert known.std(ddof=1) == pytest.approx(1.0, abs=1e-6)


def test_what_it_is_made_of_is_logged_as_it_is_and_not_trained_on(tiny_tokenizer):
    reward = NormalisedReward(RewardFunction(vowels), name="proxy")
    reward.fit(rollouts(tiny_tokenizer))
    found = reward.components(rollouts(tiny_tokenizer)[0])
    assert found["vowels"].tolist() == [1.0, 3.0, 2.0, 6.0]
    assert reward.weights() == {"proxy": 1.0, "vowels": 0.0}
    torch.testing.assert_close(reward.total(found, group_size=2), found["proxy"])


def test_completions_without_a_reward_have_none(tiny_tokenizer):
    reward = NormalisedReward(RewardFunction(letters))
    reward.fit(rollouts(tiny_tokenizer))
    found = reward.components(rollouts(tiny_tokenizer)[1])["normalised_reward"]
    assert found.isnan().tolist() == [False, False, True, False]


def test_its_numbers_go_through_a_state_dict_unchanged(tiny_tokenizer):
    reward, again = (CompositeReward([NormalisedReward(RewardFunction(vowels))]) for _ in range(2))
    reward.parts[0].fit(rollouts(tiny_tokenizer))
    again.load_state_dict(reward.state_dict())
    assert again.parts[0].scale == reward.parts[0].scale


def constant(prompts, completions, completion_ids):
    return [3.0] * len(completions)


def nothing(prompts, completions, completion_ids):
    return [nan] * len(completions)


@pytest.mark.parametrize("function", [constant, nothing])
def test_a_sample_without_variance_is_refused(tiny_tokenizer, function):
    with pytest.raises(UserError, match="without variance over 500 x 10 completions of the initial policy"):
        NormalisedReward(RewardFunction(function)).fit(rollouts(tiny_tokenizer))


class Learning(Reward):
    learns = True

    def components(self, rollout):
        return {}

    def weights(self):
        return {"learned": 1.0}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NormalisedReward(RewardFunction(vowels), prompts=0), "prompts: got 0, expected at least 1"),
        (lambda: NormalisedReward(RewardFunction(vowels), completions=0), "completions: got 0, expected at least 1"),
        (lambda: NormalisedReward(RewardFunction(vowels), name="vowels"), "two rewards are named 'vowels'"),
        (lambda: NormalisedReward(Learning()), "got a reward that learns"),
    ],
)
def test_settings_that_cannot_work_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()
