"""What the pictures show is what was measured."""

import numpy as np
import pytest
import torch

from grpovi_lightning.modules.held_out_pairs import PairScores
from grpovi_lightning.modules.pair_pictures import calibration_picture, length_picture, score_picture


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 50, generator=generator) + torch.tensor([[0.5], [0.0]])
    return PairScores(chosen, rejected, *torch.randint(1, 20, (2, 50), generator=generator))


def test_the_calibration_curve_has_a_point_for_each_bin_with_pairs(pairs):
    (axes,) = calibration_picture(pairs).axes
    difference = (pairs.chosen - pairs.rejected).numpy().astype(float)
    probability = 1 / (1 + np.exp(-np.abs(difference)))
    bins = ((probability - 0.5) * 20).astype(int)
    expected = [(probability[bins == b].mean(), (difference[bins == b] > 0).mean()) for b in sorted(set(bins))]
    np.testing.assert_allclose(axes.lines[1].get_xydata(), expected, rtol=1e-5)
    assert axes.get_title().startswith("50 pairs in 10 bins")


def test_the_histograms_count_every_completion_once(pairs):
    (axes,) = score_picture(pairs).axes
    counts = [sum(bar.get_height() for bar in bars) for bars in axes.containers]
    assert counts == [50, 50]
    middle = axes.containers[0][15].get_x()
    left = sum(bar.get_height() for bar in axes.containers[0][:15])
    assert left == int((pairs.chosen < middle).sum())


def test_the_points_are_scores_against_lengths(pairs):
    (axes,) = length_picture(pairs).axes
    found = {tuple(point) for points in axes.collections for point in np.round(points.get_offsets(), 5)}
    lengths = torch.cat([pairs.chosen_lengths, pairs.rejected_lengths]).numpy()
    scores = torch.cat([pairs.chosen, pairs.rejected]).numpy()
    assert found == {tuple(point) for point in np.round(np.stack([lengths, scores], axis=1), 5)}


@pytest.mark.parametrize("draw", [calibration_picture, score_picture, length_picture])
def test_scores_that_are_all_equal_can_be_drawn(draw):
    same = torch.zeros(4)
    assert len(draw(PairScores(same, same, torch.arange(4), torch.arange(4))).axes) == 1
