"""Completions that have ended are scored while others are still drawn."""

import copy
import threading
import time

import pytest
import torch
from helpers.threads import two_threads  # noqa: F401  applies to all tests here
from modules.grpo_runs import PROMPTS, graded, grpo, identical, scalars, train

from grpovi_lightning.errors import TrainingError
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.rewards import CompositeReward, NormalisedReward, RewardFunction
from grpovi_lightning.rollout import (
    GroupDecoder,
    PlainDecoder,
    RolloutEngine,
    SamplingConfig,
    StaticDecoder,
)
from grpovi_lightning.structures import PromptBatch

ENDS = [1, 5, 11, 20]


@pytest.fixture(scope="module")
def policy(policy_folder):
    policy = PretrainedCausalLM(str(policy_folder)).load()
    policy.end_token_ids = ENDS
    return policy


class Judge:
    """A reward function that tells when it is called, and for what."""

    __name__ = "judge"

    def __init__(self, seconds=0.0):
        self.seconds, self.lock = seconds, threading.Condition()
        self.calls, self.running, self.most = [], 0, 0

    def __call__(self, prompts, completions, completion_ids, answer):
        with self.lock:
            self.calls.append((prompts[0], tuple(completion_ids[0])))
            self.running += 1
            self.most = max(self.most, self.running)
            self.lock.notify_all()
        time.sleep(self.seconds)
        with self.lock:
            self.running -= 1
        return [len(completions[0]) + float(answer[0]) / 100 for _ in completions]

    def was_called(self, times):
        with self.lock:
            return self.lock.wait_for(lambda: len(self.calls) >= times, 20)


class StaysOpen(GroupDecoder):
    """Is not done before all completions that have ended are being scored."""

    def __init__(self, judge):
        super().__init__()
        self.judge = judge

    def run(self, policy, prompt_ids, prompt_mask, sampler):
        super().run(policy, prompt_ids, prompt_mask, sampler)
        self.n_ended = int(sampler.ended.sum())
        self.all_were_scored = self.judge.was_called(self.n_ended)


def prompts(numbers=(0, 1, 2, 3)):
    return PromptBatch([PROMPTS[n] for n in numbers], torch.tensor(numbers), {"answer": list(numbers)})


def sample(policy, reward, decoder=None, batch=None, group_size=4):
    engine = RolloutEngine(SamplingConfig(max_completion_length=7), decoder, on_completion=reward.on_completion())
    return engine.generate(policy, batch or prompts(), group_size, seed=3, step=2)


def test_completions_are_scored_while_others_are_drawn(policy):
    judge = Judge()
    decoder, reward = StaysOpen(judge), RewardFunction(judge, max_concurrency=4)
    rollout = sample(policy, reward, decoder)

    assert decoder.all_were_scored and 0 < decoder.n_ended < 16  # others never end
    components = reward.components(rollout)
    assert len(judge.calls) == 16 == len(set(judge.calls))
    expected = RewardFunction(Judge(), max_concurrency=4).components(rollout)
    assert torch.equal(components["judge"], expected["judge"])


DECODERS = {"group": GroupDecoder(), "plain": PlainDecoder(), "static": StaticDecoder()}


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_every_decoder_of_ours_has_them_scored_and_draws_the_same(policy, decoder):
    early, late = RewardFunction(Judge(), max_concurrency=3), RewardFunction(Judge(), max_concurrency=3)
    first = sample(policy, early, decoder)
    second = RolloutEngine(SamplingConfig(max_completion_length=7), decoder).generate(policy, prompts(), 4, 3, 2)
    assert early.function.was_called(int((~first.truncated).sum())) and late.function.calls == []
    assert torch.equal(first.completion_ids, second.completion_ids) and first.texts == second.texts
    assert torch.equal(early.components(first)["judge"], late.components(second)["judge"])
    assert sorted(early.function.calls) == sorted(late.function.calls)


def test_no_more_calls_than_are_allowed_run_at_a_time_whenever_they_began(policy):
    judge = Judge(seconds=0.02)
    reward = RewardFunction(judge, name="three_at_a_time", max_concurrency=3)
    reward.components(sample(policy, reward))
    assert judge.most == 3


def test_the_time_limit_is_that_of_a_call_and_not_of_the_wait_for_its_turn(policy):
    reward = RewardFunction(Judge(seconds=0.05), name="one_at_a_time", max_concurrency=1, time_limit=0.3)
    assert len(reward.components(sample(policy, reward))["one_at_a_time"]) == 16  # 0.8 s in all
    slow = RewardFunction(Judge(seconds=0.5), name="slow", max_concurrency=1, time_limit=0.1)
    with pytest.raises(TrainingError, match=r"slow gave no answer within its time_limit of 0.1 s; rows of step 2: \d$"):
        slow.components(sample(policy, slow))


def test_a_prompt_that_is_there_twice_has_its_scores_twice(policy):
    judge = Judge()
    reward = RewardFunction(judge, max_concurrency=4)
    twice = reward.components(sample(policy, reward, batch=prompts((1, 3, 1))))["judge"].view(3, 4)
    assert torch.equal(twice[0], twice[2])


def test_what_was_begun_for_another_rollout_is_not_taken(policy):
    reward = RewardFunction(Judge(), max_concurrency=4)
    sample(policy, reward)  # and never scored
    other = sample(policy, RewardFunction(Judge()), batch=prompts((4, 5)))
    assert torch.equal(
        reward.components(other)["judge"], RewardFunction(Judge(), max_concurrency=4).components(other)["judge"]
    )


def test_an_answer_about_another_completion_at_the_same_place_is_not_taken(policy_folder):
    policy = PretrainedCausalLM(str(policy_folder)).load()
    policy.end_token_ids = ENDS
    reward = RewardFunction(Judge(), max_concurrency=4)
    sample(policy, reward)  # and never scored
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)
    other = sample(policy, RewardFunction(Judge()))
    expected = RewardFunction(Judge(), max_concurrency=4).components(other)["judge"]
    assert torch.equal(reward.components(other)["judge"], expected)


def test_a_module_that_has_asked_can_be_copied(policy, policy_folder):
    module = grpo(policy_folder, RewardFunction(graded, max_concurrency=2))
    sample(policy, module.reward)
    copied = copy.deepcopy(module)
    assert module.reward._early and not copied.reward._early
    assert copied.engine.on_completion.__self__ is copied.reward


def test_nobody_else_is_asked_about_the_sample_that_a_reward_is_normalised_over(policy_folder, tmp_path):
    judge = Judge()
    normalised = NormalisedReward(RewardFunction(graded), prompts=6, completions=4)
    reward = CompositeReward([normalised, RewardFunction(judge, max_concurrency=2)])
    train(grpo(policy_folder, reward), tmp_path, 1)
    assert len(judge.calls) == 12


def one_list(completions):
    return [1.0] * len(completions)


def with_state(completions, trainer_state):
    return [float(trainer_state.step)] * len(completions)


def test_only_functions_that_are_called_for_each_completion_are_asked_early():
    assert RewardFunction(one_list).on_completion() is None
    assert RewardFunction(with_state, max_concurrency=2).on_completion() is None  # how far the run is comes later
    asked = RewardFunction(one_list, max_concurrency=2)
    assert asked.on_completion() is not None
    assert CompositeReward([RewardFunction(with_state), RewardFunction(graded)]).on_completion() is None
    assert CompositeReward([RewardFunction(with_state), asked]).on_completion() is not None
    assert NormalisedReward(asked).on_completion() is not None


def test_a_run_has_the_bits_that_it_has_without(policy_folder, tmp_path):
    def weights(name, **settings):
        parts = [RewardFunction(graded, **settings), RewardFunction(one_list)]
        reward = CompositeReward(parts, [1.0, 0.5])
        recorded = train(grpo(policy_folder, reward), tmp_path / name, 3, validate_every=2, max_epochs=-1)
        return recorded.weights[-1]

    assert identical(weights("early", max_concurrency=4), weights("late"))
    assert scalars(tmp_path / "early") == scalars(tmp_path / "late")


def fails_once_it_has_scored(prompts, completions, completion_ids, **columns):
    raise KeyError("digits")


def test_a_failure_is_one_line_and_the_batch_of_the_step_is_kept(policy_folder, tmp_path):
    reward = RewardFunction(fails_once_it_has_scored, max_concurrency=4)
    with pytest.raises(TrainingError, match=r"raised KeyError.*rows of step 0: .*its batch is in .*failed_reward"):
        train(grpo(policy_folder, reward), tmp_path, 2)
    assert list(tmp_path.glob("failed_reward_step_0*.json"))
