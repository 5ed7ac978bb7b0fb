"""What is not learned from."""

from dataclasses import replace

import pytest
import torch
from selection.scripted import NAN, scored_of

from grpovi_lightning.errors import TrainingError
from grpovi_lightning.selection import EveryCompletion, MaxVarianceSelection


def left_out(*flags):
    whole = scored_of([[1.0, 2.0, NAN]] * len(flags))
    return replace(whole, left_out=torch.tensor(flags))


def test_groups_that_are_left_out_have_no_reward_and_the_others_theirs():
    pool = left_out(True, False, True)
    assert str(pool.learnable().rewards.tolist()) == str([[NAN] * 3, [1.0, 2.0, NAN], [NAN] * 3])
    assert str(pool.rewards.tolist()) == str([[1.0, 2.0, NAN]] * 3), "what is logged keeps them"
    kept = MaxVarianceSelection(2)(pool, seed=1)
    assert str(kept.rewards.tolist()) == str([[NAN] * 2, [1.0, 2.0], [NAN] * 2])


def test_a_selection_of_prompts_that_leaves_nothing_is_told_in_one_line():
    with pytest.raises(TrainingError, match=r"step 0: no prompt to learn from: .* left all 2 of them out") as error:
        EveryCompletion()(left_out(True, True), seed=1)
    assert "\n" not in str(error.value)


def test_flags_go_with_their_groups():
    pool = left_out(True, False, True)
    assert pool.select([1, 2]).left_out.tolist() == [False, True]


def test_the_first_completions_stay_known_where_others_take_their_places():
    begun, fresh, more = scored_of([[1.0, 1.0]]), scored_of([[2.0, 2.0]], [5]), scored_of([[2.0, 3.0]], [6])
    assert begun.sampled is begun.rollout
    found = begun.replaced([0], fresh, [0]).replaced([0], more)
    assert found.sampled is begun.rollout and found.rollout.prompts.indices.tolist() == [6]
    assert found.n_replaced == 2
