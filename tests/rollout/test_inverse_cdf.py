import numpy as np
import torch

from grpovi_lightning.rollout.sampling import inverse_cdf


def reference(logits, uniforms):
    """Walks through the vocabulary until the probability is spent."""
    chosen = []
    for row, u in zip(logits.astype(np.float64), uniforms, strict=True):
        weights = np.exp(row - row.max())
        left = u * weights.sum()
        token = 0
        while left >= weights[token]:
            left -= weights[token]
            token += 1
        chosen.append(token)
    return np.array(chosen)


def test_tokens_equal_those_of_a_walk_through_the_vocabulary():
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=3.0, size=(2000, 17)).astype(np.float32)
    logits[generator.random(logits.shape) < 0.3] = -np.inf
    logits[:, 4] = 0.0
    uniforms = generator.random(2000)

    tokens = inverse_cdf(torch.from_numpy(logits), torch.from_numpy(uniforms))

    np.testing.assert_array_equal(tokens.numpy(), reference(logits, uniforms))


def test_boundaries_belong_to_the_next_token():
    logits = torch.zeros(5, 4)
    uniforms = torch.tensor([0.0, 0.25, 0.5, 0.75, 0.7499999], dtype=torch.float64)

    assert inverse_cdf(logits, uniforms).tolist() == [0, 1, 2, 3, 2]


def test_a_token_of_probability_0_is_never_drawn_not_even_at_the_ends():
    off = -torch.inf
    logits = torch.tensor([[off, 1.0, off, 1.0, off]]).repeat(5, 1)
    largest = float(np.nextafter(1.0, 0.0))
    uniforms = torch.tensor([0.0, 0.5, float(np.nextafter(0.5, 0.0)), largest, 1e-300], dtype=torch.float64)

    assert inverse_cdf(logits, uniforms).tolist() == [1, 3, 1, 3, 1]


def test_u_just_under_1_gives_the_last_possible_token_whatever_the_rounding_of_the_sum():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(500, 1000, generator=generator) * 5
    logits[:, 990:] = -torch.inf
    largest = torch.full((500,), float(np.nextafter(1.0, 0.0)), dtype=torch.float64)

    tokens = inverse_cdf(logits, largest)

    assert int(tokens.max()) < 990
    assert bool((logits.gather(1, tokens[:, None]) > -torch.inf).all())


def test_extreme_logits_are_drawn_like_moderate_ones():
    logits = torch.tensor([[1e4, 1e4, -1e4], [-1e4, -1e4, -3e4]])

    assert inverse_cdf(logits, torch.tensor([0.4, 0.6], dtype=torch.float64)).tolist() == [0, 1]
