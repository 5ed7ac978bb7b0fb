import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from grpovi_lightning.ops import token_statistics


def reference(logits, ids, temperature):
    logprobs = log_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)
    probabilities = np.exp(logprobs)
    entropies = -np.where(probabilities > 0, probabilities * np.where(probabilities > 0, logprobs, 0.0), 0.0).sum(-1)
    return np.take_along_axis(logprobs, np.asarray(ids)[..., None], axis=-1)[..., 0], entropies


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_log_probabilities_and_entropies_are_numpys_in_float64(scale, temperature):
    rng = np.random.default_rng(0)
    logits, ids = (scale * rng.normal(size=(3, 5, 17))).astype(np.float32), rng.integers(0, 17, (3, 5))
    found = token_statistics(torch.tensor(logits), torch.tensor(ids), temperature)
    logprobs, entropies = reference(logits, ids, temperature)
    np.testing.assert_allclose(found.logprobs, logprobs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.entropies, entropies, rtol=1e-4, atol=1e-5)


def test_half_precision_logits_are_widened_before_the_temperature_and_the_softmax():
    logits = (4 * torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))).bfloat16()
    ids = torch.zeros(2, 3, dtype=torch.long)
    found = token_statistics(logits, ids, 0.7)
    assert found.logprobs.dtype == found.entropies.dtype == torch.float32
    np.testing.assert_allclose(found.logprobs, reference(logits.float(), ids, 0.7)[0], rtol=1e-5)


def test_tokens_that_are_ruled_out_leave_the_entropy_finite():
    logits = torch.tensor([[[0.0, 0.0, -math.inf, -math.inf], [5.0, -math.inf, -math.inf, -math.inf]]])
    found = token_statistics(logits, torch.tensor([[1, 2]]))
    torch.testing.assert_close(found.entropies, torch.tensor([[math.log(2), 0.0]]))
    torch.testing.assert_close(found.logprobs, torch.tensor([[-math.log(2), -math.inf]]))


def test_the_gradient_is_the_one_hot_minus_the_probabilities_over_the_temperature():
    logits = torch.randn(1, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ids = torch.tensor([[3, 0]])
    found = token_statistics(logits, ids, 2.0)
    assert not found.entropies.requires_grad
    found.logprobs.sum().backward()
    expected = (torch.nn.functional.one_hot(ids, 5) - torch.softmax(logits.detach() / 2.0, dim=-1)) / 2.0
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-6)
