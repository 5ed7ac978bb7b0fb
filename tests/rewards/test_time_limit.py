"""A reward function that hangs: it gets as many seconds as its time limit, and the run one line."""

import asyncio
import subprocess
import sys
import textwrap
import time

import pytest
from rewards.test_reward_functions import rollout  # noqa: F401  the fixture

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards import CompositeReward, RewardFunction


def hangs(completions):
    time.sleep(60)


async def waits(completions):
    await asyncio.sleep(60)


class Waits:
    async def __call__(self, completions):
        await asyncio.sleep(60)


def lengths(completions):
    return [float(len(text)) for text in completions]


async def later_lengths(completions):
    await asyncio.sleep(0.01)
    return lengths(completions)


def fails(completions):
    raise KeyError("digits")


@pytest.mark.parametrize("function", [hangs, waits, Waits()], ids=["a function", "an async one", "an async object"])
def test_a_function_that_hangs_ends_the_step_when_its_time_is_up(rollout, function):  # noqa: F811
    reward = RewardFunction(function, name="judge", time_limit=0.2)
    began = time.monotonic()
    with pytest.raises(
        TrainingError, match=r"^reward function judge gave no answer within its time_limit of 0.2 s; rows of step"
    ):
        reward.components(rollout)
    assert time.monotonic() - began < 5


def test_the_time_of_async_functions_runs_together(rollout):  # noqa: F811
    parts = [RewardFunction(waits, name=name, time_limit=0.5) for name in "abc"]
    began = time.monotonic()
    with pytest.raises(TrainingError, match="reward function a gave no answer"):
        CompositeReward(parts).components(rollout)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("function", [lengths, later_lengths])
def test_with_time_to_spare_nothing_changes(rollout, function):  # noqa: F811
    limited, free = (RewardFunction(function, time_limit=limit).components(rollout) for limit in (60.0, None))
    assert {name: values.tolist() for name, values in limited.items()} == {
        name: values.tolist() for name, values in free.items()
    }


def test_an_error_within_the_time_is_told_as_ever(rollout):  # noqa: F811
    with pytest.raises(TrainingError, match=r"raised KeyError: 'digits' \(.*test_time_limit.py, line \d+\)"):
        RewardFunction(fails, time_limit=60.0).components(rollout)


@pytest.mark.parametrize("limit", [0, -1.0, float("inf"), float("nan")])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(UserError, match=r"got time_limit .*, expected seconds above 0; leave it out for none"):
        RewardFunction(lengths, time_limit=limit)


def test_a_process_does_not_wait_for_a_function_that_hangs():
    code = """
        import time
        from grpovi_lightning import background
        try:
            background.result_of(background.started_thread(lambda: time.sleep(60)), 0.1)
        except background.TookTooLong:
            print("gave up")
    """
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=50)
    assert done.stdout == "gave up\n" and done.returncode == 0 and time.monotonic() - began < 50
