"""VCRL: which prompts stay, which come back, and which are left out."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from selection.scripted import NAN, Script, numbers_of

from grpovi_lightning.errors import UserError
from grpovi_lightning.selection import VarianceCurriculum
from grpovi_lightning.selection.spread import RunningSpread, normalised_variance


def of_successes(k, size):
    """The paper's formula: unbiased variance of k successes over the largest, in exact arithmetic."""
    variance = Fraction(k * (size - k), size * (size - 1))
    largest = Fraction(size, 4 * (size - 1)) if size % 2 == 0 else Fraction(size + 1, 4 * size)
    return variance / largest


@pytest.mark.parametrize("size", range(2, 10))
def test_the_variance_of_successes_is_that_of_the_paper_to_the_last_bit(size):
    rewards = torch.tensor([[1.0] * k + [0.0] * (size - k) for k in range(size + 1)])
    expected = [float(of_successes(k, size)) for k in range(size + 1)]
    assert normalised_variance(rewards, 1.0).tolist() == expected and max(expected) == 1.0


@given(
    st.lists(st.floats(-3, 5, width=32), min_size=2, max_size=6),
    st.integers(0, 3),
    st.floats(0.5, 20),
)
def test_the_variance_of_any_rewards_is_that_of_their_numbers_over_that_of_half_at_either_end(rewards, missing, span):
    values = torch.tensor(rewards, dtype=torch.float64)
    n = len(rewards)
    ends = torch.tensor([0.0] * (n // 2) + [span] * (n - n // 2), dtype=torch.float64)
    found = normalised_variance(torch.tensor([[NAN] * missing + rewards]), span)
    assert found.item() == pytest.approx((values.var() / ends.var()).item(), rel=1e-9, abs=1e-12)


def test_groups_with_fewer_than_two_rewards_or_without_a_range_have_no_variance():
    rewards = torch.tensor([[NAN, NAN], [1.0, NAN], [1.0, 1.0]])
    assert normalised_variance(rewards, 2.0).tolist() == normalised_variance(rewards, 0.0).tolist() == [0.0] * 3


def test_the_range_grows_over_the_run():
    spread = RunningSpread()
    assert spread(torch.tensor([[NAN, NAN]])) == [0.0]
    assert spread(torch.tensor([[1.0, 1.0]])) == [0.0]
    assert spread(torch.tensor([[1.0, 3.0]])) == [1.0]
    assert spread(torch.tensor([[1.0, 3.0], [1.0, 5.0]])) == [0.25, 1.0]
    assert spread(torch.tensor([[1.0, 3.0]])) == [0.25]
    spread.clear()
    assert spread(torch.tensor([[1.0, 3.0]])) == [1.0]


HALF, ONE, NONE, ALL = [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0] * 4, [1.0] * 4  # p 1, 0.75, 0, 0


def test_prompts_below_the_threshold_give_way_to_those_of_the_bank_and_else_are_left_out():
    script = Script({0: HALF, 1: NONE, 2: ALL, 3: ONE, 4: NONE, 5: NONE, 6: NONE})
    curriculum = VarianceCurriculum(threshold=0.5, capacity=10, momentum=0.0)

    found = script.run(curriculum, [0, 1, 2, 3])
    assert script.calls == [[0, 1, 2, 3]], "the bank is empty"
    assert numbers_of(found) == [0, 1, 2, 3] and found.left_out.tolist() == [False, True, True, False]
    assert curriculum.bank.values == {0: 1.0, 3: 0.75}

    found = script.run(curriculum, [1, 4, 5, 6])
    assert script.calls == [[1, 4, 5, 6], [0, 3]], "the one with the higher priority first"
    assert numbers_of(found) == [0, 3, 5, 6] and found.left_out.tolist() == [False, False, True, True]
    assert found.rewards.tolist() == [HALF, ONE, NONE, NONE] and found.n_replaced == 2
    assert found.sampled.prompts.indices.tolist() == [1, 4, 5, 6]
    assert int(found.n_tokens) == (4 + 2) * (1 + 2 + 3 + 4)
    assert curriculum.shares(found) == {"frac_groups_resampled": 0.5, "frac_groups_left_out": 0.5}


def test_a_prompt_that_is_replayed_or_sampled_below_the_threshold_leaves_the_bank():
    script = Script({0: HALF, 1: ONE, 2: NONE, 3: NONE})
    curriculum = VarianceCurriculum(threshold=0.5, capacity=10, momentum=0.0)
    script.run(curriculum, [0, 1])
    script.rewards |= {0: ALL, 1: ALL}
    found = script.run(curriculum, [1, 2])
    assert numbers_of(found) == [0, 2], "1 is of this step already"
    assert found.left_out.tolist() == [True, True] and curriculum.bank.values == {}


def test_priorities_move_by_the_momentum_and_the_lowest_leave_a_full_bank():
    script = Script({0: HALF, 1: HALF, 2: ONE, 3: ONE})
    curriculum = VarianceCurriculum(threshold=0.5, capacity=3, momentum=0.75)
    script.run(curriculum, [3, 2, 1, 0])
    assert curriculum.bank.values == {0: 1.0, 1: 1.0, 2: 0.75}, "of equal ones the first number stays"
    script.rewards[0] = ONE
    script.run(curriculum, [0])
    assert curriculum.bank.values == {0: 0.75 * 1.0 + 0.25 * 0.75, 1: 1.0, 2: 0.75}


def test_at_threshold_0_every_prompt_stays_and_at_1_only_the_largest_variance():
    script = Script({0: HALF, 1: NONE, 2: ONE})
    found = script.run(VarianceCurriculum(0.0, 10, 0.0), [0, 1, 2])
    assert script.calls == [[0, 1, 2]] and found.left_out.tolist() == [False] * 3
    found = script.run(VarianceCurriculum(1.0, 10, 0.0), [0, 1, 2])
    assert found.left_out.tolist() == [False, True, True]


def test_a_reward_that_changed_is_another_one():
    script = Script({0: HALF, 1: NONE})
    curriculum = VarianceCurriculum(0.5, 10, 0.0)
    script.run(curriculum, [0, 1])
    curriculum.reward_changed()
    assert curriculum.bank.values == {} and float(curriculum.spread.highest) == -torch.inf


def test_what_it_remembers_is_its_state():
    script = Script({0: HALF, 1: [0.0, 0.0, 5.0, 1.0], 2: ONE, 3: NONE})
    curriculum, resumed = (VarianceCurriculum(0.1, 10, 0.5) for _ in range(2))
    script.run(curriculum, [0, 1, 2])
    resumed.load_state_dict(curriculum.state_dict())
    assert resumed.bank.values == curriculum.bank.values and len(resumed.bank.values) >= 1
    first, second = (script.run(each, [2, 3]) for each in (curriculum, resumed))
    assert numbers_of(first) == numbers_of(second) and first.left_out.tolist() == second.left_out.tolist()
    assert resumed.bank.values == curriculum.bank.values
    assert (float(resumed.spread.lowest), float(resumed.spread.highest)) == (0.0, 5.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((1.5, 8, 0.5), r"variance curriculum threshold: got 1\.5, expected a number from 0 to 1"),
        ((-0.1, 8, 0.5), r"variance curriculum threshold: got -0\.1, expected"),
        ((float("nan"), 8, 0.5), "variance curriculum threshold: got nan, expected"),
        ((0.5, 0, 0.5), "variance curriculum capacity: got 0, expected at least 1"),
        ((0.5, 8, 1.01), r"variance curriculum momentum: got 1\.01, expected a number from 0 to 1"),
    ],
)
def test_settings_outside_their_domains_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        VarianceCurriculum(*settings)
    assert "\n" not in str(error.value)
