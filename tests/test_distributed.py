"""What the processes of a run tell each other: over one, and over two joined by gloo."""

import math

import pytest
import torch
from helpers.two_processes import run_in_two_processes

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.advantages import GroupAdvantage
from grpovi_lightning.distributed import (
    from_first_rank,
    gather_named_rows,
    gather_objects,
    largest_over_ranks,
    max_over_ranks,
    mean_over_ranks,
    on_gathered_rows,
    reduce_scalars,
    share_of_rank,
    sum_over_ranks,
    world_size,
)
from grpovi_lightning.errors import TrainingError, UserError

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
    keys.ADVANTAGE_ABS_MAX: "max",
    keys.PEAK_MEMORY_GB: "max",
    keys.ADJUSTMENT_RESIDUAL_MEAN: "max",  # the largest violation of the constraint on the mean
    keys.ADJUSTMENT_RESIDUAL_BOUNDS: "max",
    keys.ADJUSTMENT_RESIDUAL_ORDER: "max",
}
ALL_KEYS = [
    value
    for name, value in vars(keys).items()
    if name.isupper() and not name.startswith("_") and not name.endswith(("_PREFIX", "_PHASES"))
]
MEANS = [key for key in ALL_KEYS if key not in EXTREMES]
FIRST = {**{key: float(i) for i, key in enumerate(ALL_KEYS)}, keys.rewards_mean("max_words"): 1.0}
SECOND = {**{key: 3.0 * i - 20.0 for i, key in enumerate(ALL_KEYS)}, keys.rewards_mean("max_words"): -4.0}


FIRST[keys.NUM_TOKENS] = SECOND[keys.NUM_TOKENS] = 2.0**40 + 1  # float32 has no such number


def test_extremes_are_declared_beside_their_names():
    assert {key: keys.over_ranks(key) for key in EXTREMES} == EXTREMES


@pytest.mark.parametrize("key", [*MEANS, keys.rewards_mean("max_words"), keys.rewards_std("min"), "max_length/mean"])
def test_everything_else_is_a_mean_over_the_ranks(key):
    assert keys.over_ranks(key) == "mean"


def test_one_process_keeps_its_numbers():
    metrics = {**FIRST, keys.KL: math.nan}
    found = reduce_scalars(metrics)
    assert list(found) == list(metrics) and math.isnan(found.pop(keys.KL))
    assert found == {key: value for key, value in metrics.items() if key != keys.KL}
    assert largest_over_ranks(3) == 3 and world_size() == 1
    three = torch.tensor(3)
    assert sum_over_ranks(three) == 3 and share_of_rank(three) == 3 and max_over_ranks(three) == 3
    assert mean_over_ranks(torch.tensor(0.1), torch.tensor(7)) is not None and gather_objects("a") == ["a"]
    assert from_first_rank(lambda: 5) == 5


def _talk(rank, folder):
    count, precise = torch.tensor([7, 2][rank]), torch.tensor([0.25, 1.5][rank], dtype=torch.float64)
    named = {"float": torch.full((2, 3), 1.5 + rank), "bool": torch.tensor([[rank == 0], [True]])}
    rewards = torch.tensor([[0.0, 1.0], [5.0, 2.0]])[rank : rank + 1]
    advantage = GroupAdvantage("batch")
    with on_gathered_rows():
        inside = world_size()
        on_whole = advantage(torch.tensor([[0.0, 1.0], [5.0, 2.0]]))
    found = {
        "metrics": reduce_scalars([FIRST, SECOND][rank]),
        "sum": sum_over_ranks(count),
        "count": count,
        "share": share_of_rank(torch.tensor([7, 2][rank])),
        "share of float64": share_of_rank(precise),
        "precise": precise,
        "large": sum_over_ranks(torch.tensor(2**53 + rank)),
        "max": [largest_over_ranks(value) for value in ([4, 0, -3][rank], [1, 0, -5][rank], [-3, -2][rank])],
        "none": reduce_scalars({}),
        "mean": mean_over_ranks(torch.tensor([[1.0, 4.0], [2.0, 10.0]][rank]), torch.tensor([3, 1][rank])),
        "rows": gather_named_rows(named),
        "objects": gather_objects(("rank", rank)),
        "inside": inside,
        "outside": world_size(),
        "advantages": advantage(rewards),
        "on whole": on_whole,
        "first": from_first_rank(lambda: ["asked", rank]),
    }
    try:
        from_first_rank(_refuse)
    except (TrainingError, UserError) as error:
        found["refused"] = [type(error).__name__, str(error)]
    torch.save(found, f"{folder}/{rank}.pt")


def _refuse():
    raise UserError("no such oracle")


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


def test_a_mean_over_rows_weighs_each_rank_by_its_rows(both):
    for found in both:
        assert found["mean"].tolist() == [1.25, 5.5] and found["mean"].dtype == torch.float32


def test_named_rows_come_back_in_order_and_in_their_dtypes(both):
    for found in both:
        assert found["rows"]["float"].tolist() == [[1.5] * 3] * 2 + [[2.5] * 3] * 2
        assert found["rows"]["bool"].flatten().tolist() == [True, True, False, True]
        assert found["rows"]["bool"].dtype == torch.bool
        assert found["objects"] == [("rank", 0), ("rank", 1)]


def test_the_first_rank_speaks_for_all_and_so_does_its_error(both):
    assert [found["first"] for found in both] == [["asked", 0]] * 2
    assert [found["refused"] for found in both] == [
        ["UserError", "no such oracle"],
        ["TrainingError", "rank 0: no such oracle"],
    ]


def test_rows_that_are_gathered_already_are_not_gathered_again(both):
    for rank, found in enumerate(both):
        assert (found["inside"], found["outside"]) == (1, 2)
        assert torch.equal(found["advantages"], found["on whole"][rank : rank + 1])
