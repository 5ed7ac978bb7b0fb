"""What the processes of a run tell each other: over one, and over two joined by gloo."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers.two_processes import run_in_two_processes
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.modules.ranks import (
    _statistic,
    max_over_ranks,
    metrics_over_ranks,
    share_of_rank,
    sum_over_ranks,
)

EXTREMES = {
    keys.COMPLETIONS_MIN_LENGTH: "min",
    keys.COMPLETIONS_MAX_LENGTH: "max",
    keys.COMPLETIONS_MIN_TERMINATED_LENGTH: "min",
    keys.COMPLETIONS_MAX_TERMINATED_LENGTH: "max",
    keys.CLIP_RATIO_LOW_MIN: "min",
    keys.CLIP_RATIO_HIGH_MAX: "max",
    keys.SAMPLING_LOGP_DIFFERENCE_MAX: "max",
    keys.SAMPLING_RATIO_MIN: "min",
    keys.SAMPLING_RATIO_MAX: "max",
    keys.ADJUSTMENT_RESIDUAL_MEAN: "max",  # the largest violation of the constraint on the mean
    keys.ADJUSTMENT_RESIDUAL_BOUNDS: "max",
    keys.ADJUSTMENT_RESIDUAL_ORDER: "max",
}
ALL_KEYS = [value for name, value in vars(keys).items() if name.isupper() and not name.endswith(("_PREFIX", "_PHASES"))]
MEANS = [key for key in ALL_KEYS if key not in EXTREMES]
FIRST = {**{key: float(i) for i, key in enumerate(ALL_KEYS)}, keys.rewards_mean("max_words"): 1.0}
SECOND = {**{key: 3.0 * i - 20.0 for i, key in enumerate(ALL_KEYS)}, keys.rewards_mean("max_words"): -4.0}


FIRST[keys.NUM_TOKENS] = SECOND[keys.NUM_TOKENS] = 2.0**40 + 1  # float32 has no such number


def module(strategy, world_size):
    """As much of a Lightning module as these functions read; the strategy is Lightning's own."""
    trainer = SimpleNamespace(world_size=world_size, strategy=strategy)
    return SimpleNamespace(trainer=trainer, device=torch.device("cpu"))


@pytest.fixture
def alone():
    return module(SingleDeviceStrategy(device="cpu"), 1)


@pytest.mark.parametrize(("key", "statistic"), EXTREMES.items())
def test_extremes_are_told_by_their_names(key, statistic):
    assert _statistic(key) == statistic


@pytest.mark.parametrize("key", [*MEANS, keys.rewards_mean("max_words"), keys.rewards_std("min"), "max_length/mean"])
def test_everything_else_is_a_mean_over_the_ranks(key):
    assert _statistic(key) not in ("min", "max")


def test_one_process_keeps_its_numbers(alone):
    metrics = {**FIRST, keys.KL: math.nan}
    found = metrics_over_ranks(alone, metrics)
    assert list(found) == list(metrics) and math.isnan(found.pop(keys.KL))
    assert found == {key: value for key, value in metrics.items() if key != keys.KL}
    assert max_over_ranks(alone, 3) == 3
    assert sum_over_ranks(alone, torch.tensor(3)) == 3 and share_of_rank(alone, torch.tensor(3)) == 3


def _talk(rank, folder):
    pair = module(DDPStrategy(), 2)
    count, precise = torch.tensor([7, 2][rank]), torch.tensor([0.25, 1.5][rank], dtype=torch.float64)
    found = {
        "metrics": metrics_over_ranks(pair, [FIRST, SECOND][rank]),
        "sum": sum_over_ranks(pair, count),
        "count": count,
        "share": share_of_rank(pair, torch.tensor([7, 2][rank])),
        "share of float64": share_of_rank(pair, precise),
        "precise": precise,
        "large": sum_over_ranks(pair, torch.tensor(2**53 + rank)),
        "max": [max_over_ranks(pair, value) for value in ([4, 0, -3][rank], [1, 0, -5][rank], [-3, -2][rank])],
        "none": metrics_over_ranks(pair, {}),
    }
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two ranks finds."""
    folder = tmp_path_factory.mktemp("ranks")
    run_in_two_processes(_talk, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_both_ranks_log_the_mean_or_the_extreme_of_both(both):
    expected = {key: (FIRST[key] + SECOND[key]) / 2 for key in FIRST}
    pick = {"min": min, "max": max}
    expected |= {key: pick[statistic](FIRST[key], SECOND[key]) for key, statistic in EXTREMES.items()}
    for found in both:
        assert found["metrics"] == expected and list(found["metrics"]) == list(FIRST)
        assert found["none"] == {}


def test_sums_and_shares_are_those_of_both_ranks(both):
    for found in both:
        assert found["sum"] == 9 and found["share"] == 4.5 and found["share of float64"] == 0.875
        assert found["large"] == 2**54 + 1, "whole numbers stay exact"


def test_a_sum_over_ranks_leaves_each_ranks_own_number_as_it_was(both):
    assert [int(found["count"]) for found in both] == [7, 2]
    assert [float(found["precise"]) for found in both] == [0.25, 1.5]


def test_the_largest_of_a_number_is_the_same_on_both_ranks(both):
    assert [found["max"] for found in both] == [[4, 1, -2]] * 2
