import math

import numpy as np
import pytest
import torch
from helpers.two_processes import run_in_two_processes

from grpovi_lightning.adjustment import FixedRange, GroupRange, RunningRange, SigmoidRange, increase_variance
from grpovi_lightning.errors import UserError

REWARDS = torch.tensor([[0.25, 0.5, 0.75], [-1.0, 0.0, 2.0]])
NAN = math.nan
UNSCORED = torch.tensor([[0.25, NAN, 0.75, NAN], [NAN, 0.0, 2.0, -1.0], [NAN, NAN, NAN, NAN]])


def test_a_fixed_range_gives_its_bounds_to_every_prompt_and_leaves_the_rewards():
    rewards, lower, upper = FixedRange(-1.0, 2.0)(REWARDS)
    assert torch.equal(rewards, REWARDS)
    assert lower.tolist() == [[-1.0], [-1.0]] and upper.tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        (0.0, 2.0, "reward -1 of prompt 1, completion 0 is outside the range [0.0, 2.0]"),
        (-1.0, 1.5, "reward 2 of prompt 1, completion 2 is outside the range [-1.0, 1.5]"),
        (-1.0, 0.5, "reward 0.75 of prompt 0, completion 2 is outside the range [-1.0, 0.5]"),
    ],
)
def test_a_reward_outside_a_fixed_range_is_an_error_that_names_it(lower, upper, message):
    with pytest.raises(UserError) as error:
        FixedRange(lower, upper)(REWARDS)
    assert message in str(error.value) and "clip" in str(error.value)


def test_a_reward_outside_a_fixed_range_is_clipped_only_when_asked():
    rewards, _, _ = FixedRange(0.0, 1.0, clip=True)(REWARDS)
    assert rewards.tolist() == [[0.25, 0.5, 0.75], [0.0, 0.0, 1.0]]
    assert REWARDS[1].tolist() == [-1.0, 0.0, 2.0]


@pytest.mark.parametrize(("lower", "upper"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_fixed_range_that_is_none_is_refused_when_it_is_made(lower, upper):
    with pytest.raises(UserError, match="expected finite numbers, lower < upper"):
        FixedRange(lower, upper)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rewards_at_bounds_that_float32_cannot_represent_are_inside(dtype):
    rewards = torch.tensor([[0.1, 0.2, 0.7]], dtype=dtype)
    bounded, lower, upper = FixedRange(0.1, 0.7)(rewards)
    found = increase_variance(bounded, lower=lower, upper=upper)
    assert found[0, 0] == rewards[0, 0] and found[0, 2] == rewards[0, 2]


def test_a_group_range_is_each_groups_own_smallest_and_largest_reward():
    _, lower, upper = GroupRange()(REWARDS)
    assert lower.tolist() == [[0.25], [-1.0]] and upper.tolist() == [[0.75], [2.0]]


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9, -3e10])
@pytest.mark.parametrize("range_class", [GroupRange, RunningRange])
def test_a_group_of_equal_rewards_gets_a_range_that_changes_nothing_however_large_they_are(value, range_class):
    rewards = torch.full((1, 4), value)
    bounded, lower, upper = range_class()(rewards)
    assert lower < rewards[0, 0] < upper
    assert torch.equal(increase_variance(bounded, lower=lower, upper=upper), rewards)


def test_a_running_range_only_widens():
    running = RunningRange()
    seen = []
    for batch in ([[0.0, 1.0]], [[0.25, 0.5]], [[-3.0, 0.0]], [[0.0, 5.0]], [[0.0, 0.0]]):
        rewards, lower, upper = running(torch.tensor(batch))
        assert rewards.tolist() == batch
        seen.append((lower.item(), upper.item()))
    assert seen == [(0.0, 1.0), (0.0, 1.0), (-3.0, 1.0), (-3.0, 5.0), (-3.0, 5.0)]


def test_a_running_range_covers_the_whole_batch_for_every_prompt():
    _, lower, upper = RunningRange()(REWARDS)
    assert lower.tolist() == [[-1.0], [-1.0]] and upper.tolist() == [[2.0], [2.0]]


def test_a_running_range_goes_on_from_its_checkpoint():
    before = RunningRange()
    before(torch.tensor([[-2.0, 7.0]]))
    after = RunningRange()
    after.load_state_dict(before.state_dict())
    _, lower, upper = after(torch.tensor([[0.0, 1.0]]))
    assert (lower.item(), upper.item()) == (-2.0, 7.0)


def test_a_running_range_that_saw_one_value_is_not_stuck_with_the_range_made_up_around_it():
    running = RunningRange()
    running(torch.tensor([[0.5, 0.5]]))
    _, lower, upper = running(torch.tensor([[0.5, 0.75]]))
    assert (lower.item(), upper.item()) == (0.5, 0.75)


def _widen(rank, folder):
    running = RunningRange()
    batches = ([[0.0, 1.0]], [[0.5, 0.5]]) if rank == 0 else ([[-4.0, 0.5]], [[0.0, 9.0]])
    found = []
    for batch in batches:
        _, lower, upper = running(torch.tensor(batch))
        found.append((lower.item(), upper.item()))
    torch.save(found, f"{folder}/{rank}.pt")


def test_two_ranks_share_one_running_range(tmp_path):
    run_in_two_processes(_widen, tmp_path)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == [(-4.0, 1.0), (-4.0, 9.0)]


def test_a_sigmoid_range_bends_into_0_and_1_and_keeps_the_order_of_distant_rewards():
    rewards = torch.tensor([[-30.0, 0.0, 2.0, 30.0]])
    bent, lower, upper = SigmoidRange(centre=0.0, scale=1.0)(rewards)
    assert bent.dtype == torch.float64 and (lower.item(), upper.item()) == (0.0, 1.0)
    expected = [1 / (1 + math.exp(-value)) for value in rewards[0].tolist()]
    assert bent[0].tolist() == pytest.approx(expected, rel=1e-14)
    assert 0.0 < bent[0, 0] < bent[0, 1] < bent[0, 2] < bent[0, 3] < 1.0


def test_a_sigmoid_range_is_fitted_to_the_first_batch_and_stays():
    sigmoid = SigmoidRange()
    sigmoid(REWARDS)
    assert sigmoid.centre.item() == pytest.approx(np.mean(REWARDS.numpy()))
    assert sigmoid.scale.item() == pytest.approx(np.std(REWARDS.numpy()))
    bent, _, _ = sigmoid(torch.tensor([[100.0, sigmoid.centre.item()]]))
    assert sigmoid.centre.item() == pytest.approx(np.mean(REWARDS.numpy()))
    assert bent[0, 1].item() == pytest.approx(0.5, abs=1e-7)


@pytest.mark.parametrize("value", [0.1, 1e9, -3e10])
def test_a_sigmoid_range_waits_for_a_batch_with_spread(value):
    sigmoid = SigmoidRange()
    bent, lower, upper = sigmoid(torch.full((3, 7), value))
    assert (bent == 0.5).all() and (lower < bent).all() and (bent < upper).all()
    assert sigmoid.scale.isnan()
    sigmoid(torch.tensor([[value, 2 * value]]))
    assert sigmoid.scale.item() == pytest.approx(abs(value) / 2, rel=1e-6)


def test_a_sigmoid_range_goes_on_from_its_checkpoint():
    before = SigmoidRange()
    before(REWARDS)
    after = SigmoidRange()
    after.load_state_dict(before.state_dict())
    batch = torch.tensor([[5.0, 7.0]])
    assert torch.equal(after(batch)[0], before(batch)[0])


@pytest.mark.parametrize(
    ("centre", "scale", "message"),
    [
        (1.0, None, "give both, or none"),
        (None, 1.0, "give both, or none"),
        (0.0, 0.0, "scale above 0"),
        (0.0, -1.0, "scale above 0"),
        (math.nan, 1.0, "expected finite numbers"),
        (0.0, math.inf, "expected finite numbers"),
    ],
)
def test_a_sigmoid_that_is_none_is_refused_when_it_is_made(centre, scale, message):
    with pytest.raises(UserError, match=message):
        SigmoidRange(centre, scale)


def _fit(rank, folder):
    sigmoid = SigmoidRange()
    sigmoid(REWARDS[rank : rank + 1])
    torch.save((sigmoid.centre.item(), sigmoid.scale.item()), f"{folder}/{rank}.pt")


def test_two_ranks_fit_one_sigmoid(tmp_path):
    run_in_two_processes(_fit, tmp_path)
    for rank in (0, 1):
        expected = np.mean(REWARDS.numpy()), np.std(REWARDS.numpy())
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected)


# Completions without a reward.


def test_a_fixed_range_takes_no_notice_of_missing_rewards_whether_it_clips_or_not():
    for clip in (False, True):
        rewards, lower, upper = FixedRange(-1.0, 2.0, clip)(UNSCORED)
        assert torch.equal(rewards.isnan(), UNSCORED.isnan())
        assert lower.tolist() == [[-1.0]] * 3 and upper.tolist() == [[2.0]] * 3
    with pytest.raises(UserError, match="reward 2 of prompt 1, completion 2 is outside"):
        FixedRange(-1.0, 1.0)(UNSCORED)


def test_a_group_range_is_that_of_the_members_that_have_a_reward():
    rewards, lower, upper = GroupRange()(UNSCORED)
    assert torch.equal(rewards.isnan(), UNSCORED.isnan())
    assert lower[:2].tolist() == [[0.25], [-1.0]] and upper[:2].tolist() == [[0.75], [2.0]]
    assert -math.inf < lower[2] < upper[2] < math.inf


def test_a_running_range_does_not_see_missing_rewards():
    running = RunningRange()
    for batch, expected in [
        ([[NAN, NAN], [NAN, NAN]], None),
        ([[NAN, 0.5], [NAN, NAN]], None),  # a single value, and a range made up around it
        ([[NAN, 0.5], [NAN, 1.0]], (0.5, 1.0)),
        ([[NAN, NAN], [NAN, NAN]], (0.5, 1.0)),
        ([[-3.0, NAN], [NAN, NAN]], (-3.0, 1.0)),
    ]:
        _, lower, upper = running(torch.tensor(batch))
        assert lower.shape == upper.shape == (2, 1) and lower.isfinite().all() and (lower < upper).all()
        assert expected is None or (lower[0].item(), upper[0].item()) == expected


def test_a_sigmoid_range_is_fitted_to_the_rewards_that_there_are():
    sigmoid = SigmoidRange()
    bent, _, _ = sigmoid(torch.full((2, 2), NAN))
    assert bent.isnan().all() and sigmoid.scale.isnan()
    bent, _, _ = sigmoid(torch.tensor([[0.5, NAN], [NAN, 0.5]]))
    assert bent.flatten().tolist() == pytest.approx([0.5, NAN, NAN, 0.5], nan_ok=True) and sigmoid.scale.isnan()
    bent, _, _ = sigmoid(UNSCORED)
    known = [0.25, 0.75, 0.0, 2.0, -1.0]
    assert sigmoid.centre.item() == pytest.approx(np.mean(known))
    assert sigmoid.scale.item() == pytest.approx(np.std(known))
    assert torch.equal(bent.isnan(), UNSCORED.isnan())


def _half_scored(rank, folder):
    batches = [UNSCORED[2:], UNSCORED[:1]] if rank == 0 else [UNSCORED[1:2], UNSCORED[2:]]
    running, sigmoid = RunningRange(), SigmoidRange()
    found = []
    for batch in batches:
        _, lower, upper = running(batch)
        sigmoid(batch)
        found.append((lower.item(), upper.item(), sigmoid.centre.item(), sigmoid.scale.item()))
    torch.save(found, f"{folder}/{rank}.pt")


def test_a_rank_without_any_reward_takes_the_range_of_the_others(tmp_path):
    run_in_two_processes(_half_scored, tmp_path)
    first, second = torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt")
    assert first == second
    fitted = np.mean([0.0, 2.0, -1.0]), np.std([0.0, 2.0, -1.0])
    assert [found[:2] for found in first] == [(-1.0, 2.0), (-1.0, 2.0)]
    assert [found[2:] for found in first] == [pytest.approx(fitted)] * 2


class TestARewardThatChanges:
    def test_a_running_range_forgets_the_reward_before(self):
        seen = RunningRange()
        seen(REWARDS * 10)
        seen.reward_changed()
        _, lower, upper = seen(REWARDS)
        assert lower.unique().tolist() == [-1.0] and upper.unique().tolist() == [2.0]

    def test_a_sigmoid_range_that_was_fitted_is_fitted_anew_and_one_that_was_given_stays(self):
        fitted, given = SigmoidRange(), SigmoidRange(0.5, 2.0)
        for one in (fitted, given):
            one(REWARDS * 10)
            one.reward_changed()
            one(REWARDS)
        assert float(fitted.centre) == pytest.approx(float(REWARDS.double().mean()))
        assert (float(given.centre), float(given.scale)) == (0.5, 2.0)

    def test_bounds_that_do_not_come_from_rewards_stay(self):
        for one in (FixedRange(-1.0, 2.0), GroupRange()):
            before = one(REWARDS)
            one.reward_changed()
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(one(REWARDS), before, strict=True))
