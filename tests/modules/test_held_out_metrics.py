"""Held-out statistics over batches and ranks, where completions lack a reward."""

import math
import warnings
from statistics import fmean, stdev

import pytest
import torch
from helpers.advantage_reference import present
from helpers.rollouts import rollout_of_logprobs
from helpers.two_processes import run_in_two_processes

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.modules.held_out_metrics import HeldOutMetrics
from grpovi_lightning.ops import TokenStatistics
from grpovi_lightning.selection import ScoredRollout

NAN = math.nan
TOTALS = [[1.0, NAN, 3.0], [NAN], [5.0, NAN, NAN, 6.0], [NAN, NAN]]
PARTS = [[0.0, 1.0, NAN], [NAN], [4.0, NAN, NAN, NAN], [NAN, NAN]]


def evaluated(batches):
    """What `HeldOutMetrics` finds over batches of (totals, part)."""
    metrics = HeldOutMetrics()
    for totals, part in batches:
        rollout = rollout_of_logprobs([[-1.0, -2.0]] * len(totals), 1)
        statistics = TokenStatistics(torch.full((len(totals), 2), -1.0), torch.ones(len(totals), 2))
        components = {"part": torch.tensor(part), "silent": torch.full((len(totals),), NAN)}
        rewards = torch.tensor(totals)[:, None]
        scored = ScoredRollout(rollout, components, rewards, rollout.lengths.sum())
        metrics.update(scored, {})
        metrics.update_policy(scored, statistics)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return metrics.compute()


def expected(totals, parts):
    """The same from all completions at once."""
    totals, parts = ([value for batch in values for value in batch] for values in (totals, parts))
    return {
        keys.REWARD: fmean(present(totals)),
        keys.FRAC_UNSCORABLE: 1 - len(present(totals)) / len(totals),
        keys.rewards_mean("part"): fmean(present(parts)),
        keys.rewards_std("part"): stdev(present(parts)),
        keys.rewards_mean("silent"): NAN,
        keys.rewards_std("silent"): NAN,
    }


def test_means_are_over_all_completions_that_have_a_reward_and_no_means_of_means():
    found = evaluated(zip(TOTALS, PARTS, strict=True))
    assert {name: found[name] for name in expected(TOTALS, PARTS)} == pytest.approx(
        expected(TOTALS, PARTS), nan_ok=True
    )
    assert found[keys.ENTROPY] == 1.0


def test_an_evaluation_without_any_reward_says_so_without_a_warning():
    found = evaluated([([NAN, NAN], [NAN, NAN])])
    assert math.isnan(found[keys.REWARD]) and found[keys.FRAC_UNSCORABLE] == 1.0
    assert math.isnan(found[keys.rewards_mean("part")]) and math.isnan(found[keys.rewards_std("part")])


def test_after_a_reset_nothing_is_left():
    metrics = HeldOutMetrics()
    for value in (1.0, NAN, 3.0):
        metrics.reset()
        rollout = rollout_of_logprobs([[0.0]], 1)
        metrics.update(ScoredRollout(rollout, {}, torch.tensor([[value]]), rollout.lengths.sum()), {})
    assert metrics.compute()[keys.REWARD] == 3.0


def _evaluated(rank, folder, order):
    mine = order[rank]
    torch.save(evaluated([(TOTALS[i], PARTS[i]) for i in mine]), f"{folder}/{rank}.pt")


@pytest.mark.parametrize("order", [[[0, 1], [2, 3]], [[0, 2], [1, 3]]], ids=["both", "one_rank_without_any_reward"])
def test_two_ranks_find_the_means_over_the_completions_of_both(tmp_path, order):
    run_in_two_processes(_evaluated, tmp_path, order)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert {name: found[name] for name in expected(TOTALS, PARTS)} == pytest.approx(
            expected(TOTALS, PARTS), nan_ok=True
        )
