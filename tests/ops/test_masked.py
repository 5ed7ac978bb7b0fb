import math

import numpy as np
import pytest
import torch

from grpovi_lightning.ops import masked_mean, masked_sum

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
