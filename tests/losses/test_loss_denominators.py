"""What each loss divides by, over micro-batches, optimiser steps and ranks."""

import pytest
import torch
from losses.loss_batches import LONGEST, LOSSES, random_batch, value_and_gradient

ROLLOUT = torch.arange(5) < torch.tensor([[5], [1], [2], [0], [4], [3]])
"""Six sequences with 15 tokens."""


@pytest.mark.parametrize(
    ("name", "step", "rollout", "expected"),
    [
        ("grpo", slice(0, 3), True, 3),
        ("gspo", slice(0, 3), True, 3),
        ("grpo", slice(0, 6), False, 6),
        ("bnpo", slice(0, 3), True, 5 + 1 + 2),
        ("bnpo", slice(0, 6), False, 15),
        ("dapo", slice(0, 3), True, 15 * 3 / 6),
        ("dapo", slice(0, 3), False, 8),
        ("dapo", slice(0, 6), True, 15),
        ("cispo", slice(3, 6), True, 15 * 3 / 6),
        ("cispo", slice(3, 6), False, 7),
        ("dr_grpo", slice(0, 3), True, 3 * LONGEST),
        ("dr_grpo", slice(0, 6), False, 6 * LONGEST),
    ],
)
def test_the_denominator_is_the_count_of_the_formula(name, step, rollout, expected):
    count = LOSSES[name]().denominator(ROLLOUT[step], ROLLOUT if rollout else None)
    assert count.item() == pytest.approx(expected)
    assert count.shape == () and count.dtype == torch.float32


@pytest.mark.parametrize("name", LOSSES)
def test_no_denominator_is_that_of_the_given_sequences(name):
    batch = random_batch(0)
    loss = LOSSES[name]()
    implied = value_and_gradient(loss, batch)
    given = value_and_gradient(loss, batch, denominator=loss.denominator(batch.completion_mask).item())
    assert implied[0] == given[0] and torch.equal(implied[1], given[1])


@pytest.mark.parametrize("name", LOSSES)
def test_more_padding_does_not_change_it(name):
    wide = torch.nn.functional.pad(ROLLOUT, (0, 7))
    loss = LOSSES[name]()
    assert loss.denominator(wide[:3], wide) == loss.denominator(ROLLOUT[:3], ROLLOUT)


@pytest.mark.parametrize("name", LOSSES)
def test_ranks_that_share_the_mean_denominator_average_to_one_process(name):
    # DDP averages gradients over ranks; one rank here has no token at all.
    batch = random_batch(1)
    batch.completion_mask[4:] = False
    loss = LOSSES[name](beta=0.1)
    whole = value_and_gradient(loss, batch)
    ranks = [batch.rows(slice(0, 2)), batch.rows(slice(2, 4)), batch.rows(slice(4, 6))]
    count = sum(loss.denominator(rank.completion_mask, rank.completion_mask) for rank in ranks) / 3
    parts = [value_and_gradient(loss, rank, denominator=count) for rank in ranks]
    assert sum(part[0] for part in parts) / 3 == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]) / 3, whole[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["dapo", "cispo"])
def test_a_token_weighs_the_same_in_every_optimiser_step_on_a_rollout(name):
    batch = random_batch(2)
    batch = batch._replace(old_logprobs=batch.logprobs, advantages=torch.ones_like(batch.advantages))
    loss = LOSSES[name]()
    gradients = []
    for step in (slice(0, 1), slice(1, 3), slice(3, 6)):
        part = batch.rows(step)
        count = loss.denominator(part.completion_mask, batch.completion_mask)
        share = len(part.logprobs) / 6
        gradients.append(value_and_gradient(loss, part, denominator=count)[1][part.completion_mask] * share)
    weights = torch.cat(gradients)
    torch.testing.assert_close(weights, torch.full_like(weights, -1 / len(weights)))


def test_a_denominator_may_be_a_number_or_a_tensor_of_any_type():
    batch = random_batch(3).to(torch.float32)
    loss = LOSSES["bnpo"]()
    values = [
        loss(*batch, denominator=count).loss
        for count in (8, 8.0, torch.tensor(8), torch.tensor(8.0), torch.tensor(8.0, dtype=torch.float64))
    ]
    assert len({value.item() for value in values}) == 1
    assert all(value.dtype == torch.float32 for value in values)


def test_a_denominator_below_1_is_taken_as_it_is():
    # Eight ranks, of which one has the only four tokens.
    batch = random_batch(4)
    loss = LOSSES["bnpo"]()
    assert loss(*batch, denominator=0.5).loss.item() == pytest.approx(2 * loss(*batch, denominator=1).loss.item())
