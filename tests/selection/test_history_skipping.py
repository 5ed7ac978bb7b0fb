"""GRESO: which prompts are skipped, and what takes their places."""

import pytest
from selection.scripted import NAN, Script, batch_of, numbers_of

from grpovi_lightning.errors import UserError
from grpovi_lightning.randomness import skipping_uniforms
from grpovi_lightning.selection import DynamicResampling, HistorySkipping, StepSampling

VARIED, EQUAL = [0.0, 1.0], [1.0, 1.0]


def test_rounds_without_variance_in_a_row_are_counted():
    script = Script({0: EQUAL, 1: VARIED, 2: [NAN, 1.0]})
    skipping = HistorySkipping(exploration=1.0, least=1.0)
    for _ in range(3):
        script.run(skipping, [0, 1, 2], spare=[7])
    assert skipping.rounds.values == {0: 3, 1: 0, 2: 3}
    script.rewards[0] = VARIED
    script.run(skipping, [0, 1, 2], spare=[7])
    assert skipping.rounds.values == {0: 0, 1: 0, 2: 4}


@pytest.mark.parametrize(("rounds", "expected"), [(0, 1.0), (1, 0.5), (2, 0.25), (3, 0.2), (9, 0.2)])
def test_a_prompt_is_sampled_with_the_probability_of_its_rounds_and_never_less_than_the_least(rounds, expected):
    skipping = HistorySkipping(exploration=0.5, least=0.2)
    n = 4000
    skipping.rounds.values = dict.fromkeys(range(n), rounds)
    sampling = StepSampling(None, None, seed=3, step=11)
    share = 1 - len(skipping._skipped(list(range(n)), sampling)) / n
    assert abs(share - expected) <= 3.3 * (expected * (1 - expected) / n) ** 0.5


def skipped_at(step, numbers, exploration):
    """What is skipped of prompts with one round without variance, by the formula."""
    return [n for n, draw in zip(numbers, skipping_uniforms(1, step, numbers), strict=True) if draw >= exploration]


def test_spare_prompts_that_are_not_skipped_take_the_places_and_nobody_is_sampled_twice():
    script = Script(dict.fromkeys(range(30), EQUAL))
    skipping = HistorySkipping(exploration=0.5, least=0.1)
    skipping.rounds.values = dict.fromkeys(range(30), 1)
    own, spare = list(range(6)), list(range(10, 30))
    skipped = skipped_at(0, own + spare, 0.5)
    free = [number for number in spare if number not in skipped]
    n_skipped = sum(number in skipped for number in own)
    assert 0 < n_skipped < len(free), "the seed gives something to test"

    found = script.run(skipping, own, spare)

    expected = [free.pop(0) if number in skipped else number for number in own]
    assert script.calls == [expected] and numbers_of(found) == expected
    assert found.n_replaced == n_skipped and found.rollout.prompts.columns["answer"] == [f"a{n}" for n in expected]
    assert skipping.shares(found)["frac_groups_resampled"] == n_skipped / 6
    assert [skipping.rounds.values[n] for n in expected] == [2] * 6
    assert all(skipping.rounds.values[n] == 1 for n in own if n in skipped), "a prompt that was skipped has no round"


def test_where_spare_prompts_do_not_suffice_the_skipped_are_sampled_after_all():
    script = Script(dict.fromkeys(range(40), EQUAL))
    skipping = HistorySkipping(exploration=1e-9, least=1e-9)
    skipping.rounds.values = dict.fromkeys(range(8), 1)
    found = script.run(skipping, range(4), spare=[4, 20, 5])  # 20 has no history
    assert numbers_of(found) == [20, 1, 2, 3] and found.n_replaced == 1


def test_with_exploration_1_nothing_is_skipped():
    script = Script(dict.fromkeys(range(40), EQUAL))
    skipping = HistorySkipping(exploration=1.0, least=0.5)
    for _ in range(4):
        found = script.run(skipping, range(4), spare=[4, 20, 5])
        assert numbers_of(found) == [0, 1, 2, 3] and found.n_replaced == 0


def test_what_it_remembers_is_its_state_and_a_reward_that_changed_clears_it():
    script = Script({n: EQUAL if n % 2 else VARIED for n in range(20)})
    skipping, resumed = (HistorySkipping(exploration=0.5, least=0.1) for _ in range(2))
    for _ in range(3):
        script.run(skipping, range(8), spare=range(8, 12))
    resumed.load_state_dict(skipping.state_dict())
    assert resumed.rounds.values == skipping.rounds.values
    step, found = script.step, script.run(skipping, range(8), spare=range(8, 12))
    script.step = step
    assert numbers_of(script.run(resumed, range(8), spare=range(8, 12))) == numbers_of(found)
    assert resumed.rounds.values == skipping.rounds.values
    resumed.reward_changed()
    assert resumed.rounds.values == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((1.5, 0.5), r"history skipping exploration: got 1\.5, expected a number from 0 to 1"),
        ((float("nan"), 0.5), "history skipping exploration: got nan, expected"),
        ((0.5, 0.0), r"history skipping least: got 0\.0, expected above 0, at most exploration 0\.5"),
        ((0.5, 0.6), r"history skipping least: got 0\.6, expected above 0, at most exploration 0\.5"),
        ((0.0, 0.0), r"history skipping least: got 0\.0"),
    ],
)
def test_settings_outside_their_domains_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        HistorySkipping(*settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("selection", [HistorySkipping(0.5, 0.1), DynamicResampling()], ids=["skipping", "dynamic"])
def test_without_spare_prompts_the_setting_is_named(selection):
    script = Script({0: VARIED})
    with pytest.raises(UserError, match=r"got no spare prompts; set the data's `spare_prompts_per_step`"):
        selection(batch_of([0]), StepSampling(script.roll_out, script, 1, 0))
