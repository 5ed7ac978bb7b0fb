"""Reward functions that wait for answers."""

import asyncio
import functools
import threading

import pytest
import torch
from helpers.rollouts import rollout_of_words

from grpovi_lightning.errors import TrainingError
from grpovi_lightning.rewards import CompositeReward, RewardFunction

SECONDS = 20.0
"""Long enough for a machine that is busy; a test that would take so long fails."""


@pytest.fixture
def rollout(tiny_tokenizer):
    return rollout_of_words(tiny_tokenizer, ["the fox"], [["fox runs", "the fox sleeps ."]], {"answer": [7]})


async def words(completions, answer, bonus=0):
    await asyncio.sleep(0)
    return [len(text.split()) + bonus for text in completions]


class Words:
    async def __call__(self, completions):
        return await words(completions, None)


def plain_wrapper(completions):
    return words(completions, None)


def future(completions):
    async def soon():
        return await asyncio.ensure_future(words(completions, None))

    return soon()


FUNCTIONS = {
    "a function": words,
    "an object": Words(),
    "a method": Words().__call__,
    "partial": functools.partial(words, bonus=0),
    "a wrapper that is not async": plain_wrapper,
    "a task inside": future,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_an_async_function_returns_is_awaited(rollout, name):
    assert RewardFunction(FUNCTIONS[name], name="f").components(rollout)["f"].tolist() == [2.0, 4.0]


def test_settings_reach_an_async_function(rollout):
    assert RewardFunction(words, kwargs={"bonus": 10}).components(rollout)["words"].tolist() == [12.0, 14.0]


@pytest.mark.parametrize(
    "returned", [[1.0, None], torch.tensor([1.0, torch.nan])], ids=lambda values: type(values).__name__
)
def test_it_may_return_what_others_return(rollout, returned):
    async def f(completions):
        return returned

    assert RewardFunction(f).components(rollout)["f"].tolist() == pytest.approx([1.0, torch.nan], nan_ok=True)


def test_all_async_functions_of_a_reward_run_at_the_same_time(rollout):
    """Each waits until all three are there, the one in a nested sum included."""
    barrier = asyncio.Barrier(3)

    def waiting(value):
        async def f(completions):
            async with asyncio.timeout(SECONDS):
                await barrier.wait()
            return [value] * len(completions)

        return RewardFunction(f, name=f"f{value}")

    reward = CompositeReward([waiting(1.0), CompositeReward([waiting(2.0), waiting(3.0)])])
    components = reward.components(rollout)
    assert {name: scores.tolist() for name, scores in components.items()} == {
        "f1.0": [1.0, 1.0],
        "f2.0": [2.0, 2.0],
        "f3.0": [3.0, 3.0],
    }


def test_they_run_beside_functions_that_compute(rollout):
    computed = threading.Event()

    async def waits(completions):
        await asyncio.to_thread(computed.wait, SECONDS)
        return [float(computed.is_set())] * len(completions)

    def computes(completions):
        computed.set()
        return [0.0] * len(completions)

    components = CompositeReward([RewardFunction(waits), RewardFunction(computes)]).components(rollout)
    assert components["waits"].tolist() == [1.0, 1.0]


def test_functions_that_compute_stay_in_the_main_thread(rollout):
    """Some libraries use signals, which only that thread may set."""
    seen = []

    def computes(completions):
        seen.append(threading.current_thread())
        return [0.0] * len(completions)

    CompositeReward([RewardFunction(words), RewardFunction(computes)]).components(rollout)
    assert seen == [threading.main_thread()]


def test_a_running_loop_of_the_caller_is_no_obstacle(rollout):
    async def notebook():
        return RewardFunction(words).components(rollout)["words"].tolist()

    assert asyncio.run(notebook()) == [2.0, 4.0]


def test_what_is_kept_between_calls_stays_in_its_loop(rollout):
    loops = []

    async def f(completions):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    reward = RewardFunction(f)
    for _ in range(2):
        reward.components(rollout)
    assert loops[0] is loops[1]


async def broken(completions):
    await asyncio.sleep(0)
    raise ConnectionError("the judge\nis away")


async def cancelled(completions):
    raise asyncio.CancelledError


async def late(completions):
    async with asyncio.timeout(0.01):
        await asyncio.sleep(SECONDS)


async def few(completions):
    return [1.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (broken, r"broken raised ConnectionError: the judge is away \(.*_async.py, line \d+\); rows of step 0: 0"),
        (late, r"late raised TimeoutError \(.*test_reward_functions_async.py, line \d+\); rows of step 0: 0"),
        (cancelled, r"cancelled raised CancelledError \(.*test_reward_functions_async.py, line \d+\)"),
        (few, "few returned 1 values, expected 2, one per completion"),
    ],
)
def test_an_error_is_one_line_as_that_of_any_function(rollout, function, message):
    for reward in (RewardFunction(function), CompositeReward([RewardFunction(words), RewardFunction(function)])):
        with pytest.raises(TrainingError, match=f"^reward function {message}") as error:
            reward.components(rollout)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_a_process_passes_through_and_the_next_call_works(rollout, error):
    async def ends(completions):
        raise error

    with pytest.raises(error):
        RewardFunction(ends).components(rollout)
    assert RewardFunction(words).components(rollout)["words"].tolist() == [2.0, 4.0]
