import numpy as np
import pytest
import torch

from grpovi_lightning.rollout import SamplingConfig
from grpovi_lightning.rollout.sampler import Sampler
from grpovi_lightning.rollout.sampling import inverse_cdf


def reference(probabilities, uniforms):
    """Walks through the vocabulary until the probability is spent."""
    chosen = []
    for weights, u in zip(probabilities, uniforms, strict=True):
        left = u * weights.sum()
        token = 0
        while left >= weights[token]:
            left -= weights[token]
            token += 1
        chosen.append(token)
    return np.array(chosen)


def test_tokens_equal_those_of_a_walk_through_the_vocabulary():
    generator = np.random.default_rng(0)
    probabilities = np.exp(generator.normal(scale=3.0, size=(2000, 17)))
    probabilities[generator.random(probabilities.shape) < 0.3] = 0.0
    probabilities[:, 4] = 1.0
    uniforms = generator.random(2000)

    tokens = inverse_cdf(torch.from_numpy(probabilities), torch.from_numpy(uniforms))

    np.testing.assert_array_equal(tokens.numpy(), reference(probabilities, uniforms))


def test_boundaries_belong_to_the_next_token():
    probabilities = torch.full((5, 4), 0.25, dtype=torch.float64)
    uniforms = torch.tensor([0.0, 0.25, 0.5, 0.75, 0.7499999], dtype=torch.float64)

    assert inverse_cdf(probabilities, uniforms).tolist() == [0, 1, 2, 3, 2]


def test_a_token_of_probability_0_is_never_drawn_not_even_at_the_ends():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64).repeat(5, 1)
    largest = float(np.nextafter(1.0, 0.0))
    uniforms = torch.tensor([0.0, 0.5, float(np.nextafter(0.5, 0.0)), largest, 1e-300], dtype=torch.float64)

    assert inverse_cdf(probabilities, uniforms).tolist() == [1, 3, 1, 3, 1]


@pytest.mark.parametrize("factor", [1.0, 3.7, 1e-200])
def test_u_just_under_1_gives_the_last_possible_token_whatever_the_rounding_of_the_sum(factor):
    generator = torch.Generator().manual_seed(1)
    probabilities = factor * (torch.randn(500, 1000, generator=generator).double() * 5).exp()
    probabilities[:, 990:] = 0.0
    largest = torch.full((500,), float(np.nextafter(1.0, 0.0)), dtype=torch.float64)

    tokens = inverse_cdf(probabilities, largest)

    assert int(tokens.max()) < 990
    assert bool((probabilities.gather(1, tokens[:, None]) > 0.0).all())


def test_extreme_logits_are_drawn_like_moderate_ones():
    logits = torch.tensor([[1e4, 1e4, -1e4], [-1e4, -1e4, -3e4]])
    uniforms = torch.tensor([[0.4], [0.6]], dtype=torch.float64)
    prompts = torch.zeros(2, 1, dtype=torch.long)
    sampler = Sampler(SamplingConfig(max_completion_length=1), uniforms, prompts, prompts == 0, ends=[2])

    assert sampler.draw(logits, torch.arange(2), 0).tolist() == [0, 1]
    logprobs = sampler.completions(2)[2]
    torch.testing.assert_close(logprobs, torch.full((2, 1), float(np.log(0.5))))
