import math

import numpy as np
import pytest
import torch

from grpovi_lightning.ops import masked_mean, masked_sum
from grpovi_lightning.ops.masked import differs, masked_extremes, masked_moments

JUNK = (0.0, math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("dim", [None, 0, 1])
def test_masked_reductions_are_numpys_over_what_is_kept(junk, dim):
    rng = np.random.default_rng(0)
    values, mask = rng.normal(size=(4, 6)), rng.random((4, 6)) < 0.6
    assert mask.any(axis=0).all() and mask.any(axis=1).all()
    kept = np.ma.masked_array(values, ~mask)
    tensor = torch.where(torch.tensor(mask), torch.tensor(values), junk)
    np.testing.assert_allclose(masked_sum(tensor, torch.tensor(mask), dim), kept.sum(axis=dim))
    np.testing.assert_allclose(masked_mean(tensor, torch.tensor(mask), dim), kept.mean(axis=dim))


@pytest.mark.parametrize("junk", JUNK)
def test_masked_positions_get_a_gradient_of_exactly_0(junk):
    values = torch.tensor([1.0, junk, 3.0], requires_grad=True)
    masked_mean(values, torch.tensor([True, False, True])).backward()
    assert values.grad.tolist() == [0.5, 0.0, 0.5]


def test_the_mean_of_nothing_is_0():
    values, mask = torch.tensor([[math.nan, 1.0], [2.0, 4.0]]), torch.tensor([[False, False], [True, True]])
    assert masked_mean(values, mask, dim=1).tolist() == [0.0, 3.0]
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0.0


ROWS = [[0.1, 0.1, 0.1], [1.0, 2.0, 4.0], [-1.0, 5.0, 5.0], [3.0, 3.0, 3.0]]
MASKS = [[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("junk", JUNK)
def test_row_statistics_are_those_of_the_kept_values(junk):
    mask = torch.tensor(MASKS).bool()
    values = torch.where(mask, torch.tensor(ROWS), junk)
    mean, std = masked_moments(values, mask)
    lowest, highest = masked_extremes(values, mask)
    # 1 and 4: mean 2.5, deviations of 1.5, and 2 * 1.5 ** 2 / (2 - 1) = 4.5.
    assert mean.flatten().tolist() == pytest.approx([0.1, 2.5, 5.0, 0.0])
    assert std.flatten().tolist() == pytest.approx([0.0, math.sqrt(4.5), 0.0, 0.0], abs=1e-7)
    assert lowest.flatten().tolist() == pytest.approx([0.1, 1.0, 5.0, math.inf])
    assert highest.flatten().tolist() == pytest.approx([0.1, 4.0, 5.0, -math.inf])
    assert differs(values, mask).flatten().tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_without_a_mask_are_torchs_to_the_last_bit(dtype):
    values = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=dtype)
    mean, std = masked_moments(values, torch.ones(50, 7, dtype=torch.bool))
    assert torch.equal(mean, values.mean(dim=1, keepdim=True)) and torch.equal(std, values.std(dim=1, keepdim=True))
