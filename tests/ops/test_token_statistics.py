import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.autograd.graph import saved_tensors_hooks

from grpovi_lightning.ops import chunked_statistics, token_statistics


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


B, T, D, V = 3, 6, 8, 11
MASKS = {
    "all": torch.ones(B, T, dtype=torch.bool),
    "right-padded": torch.arange(T) < torch.tensor([[6], [2], [4]]),
    "holes": torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1]]).bool(),
    "one token": torch.arange(B * T).view(B, T) == 7,
    "none": torch.zeros(B, T, dtype=torch.bool),
}


class Problem:
    """States [B, T, D], a linear head with a bias, and ids; upstream gradients of log-probabilities and entropies."""

    def __init__(self, tied=False):
        generator = torch.Generator().manual_seed(4)
        self.head = torch.nn.Linear(D, V)
        self.tokens = torch.randint(0, V, (B, T), generator=generator)
        self.upstream, self.of_entropies = (torch.randn(B, T, generator=generator) for _ in range(2))
        self.ids = torch.randint(0, V, (B, T), generator=generator)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(V, D, generator=generator))
            self.head.bias.copy_(torch.randn(V, generator=generator))
        self.inputs = torch.randn(B, T, D, generator=generator, requires_grad=True)
        self.tied = tied

    @property
    def states(self):
        return self.inputs + self.head.weight[self.tokens] if self.tied else self.inputs * 1.0

    def solve(self, mask, tokens_at_once, temperature=0.7, entropy_gradient=False):
        """Statistics, and the gradients of the sum of upstream * log-probability, and of the same of the entropies."""
        found = chunked_statistics(
            self.states, self.head, self.ids, mask, temperature, tokens_at_once * V, entropy_gradient
        )
        total = (found.logprobs * self.upstream).sum()
        (total + (found.entropies * self.of_entropies).sum() if entropy_gradient else total).backward()
        gradients = [x.grad.clone() for x in (self.inputs, self.head.weight, self.head.bias)]
        for x in (self.inputs, self.head.weight, self.head.bias):
            x.grad = None
        return found, gradients

    def reference(self, mask, temperature=0.7, entropy_gradient=False):
        """The same in NumPy and float64, one token after the other, with the gradient worked out by hand."""
        weight, bias = self.head.weight.detach().double().numpy(), self.head.bias.detach().double().numpy()
        states = self.states.detach().double().numpy()
        logprobs, entropies = np.zeros((B, T)), np.zeros((B, T))
        of_states, of_weight, of_bias = np.zeros((B, T, D)), np.zeros((V, D)), np.zeros(V)
        for b, t in np.argwhere(mask.numpy()):
            row = log_softmax((weight @ states[b, t] + bias) / temperature)
            p, token = np.exp(row), int(self.ids[b, t])
            logprobs[b, t], entropies[b, t] = row[token], -np.sum(p * row)
            slope = float(self.upstream[b, t]) * (np.eye(V)[token] - p) / temperature
            if entropy_gradient:  # dH / dz_j = -p_j (log p_j + H) / temperature
                slope -= float(self.of_entropies[b, t]) * p * (row + entropies[b, t]) / temperature
            of_states[b, t] = slope @ weight
            of_weight += np.outer(slope, states[b, t])
            of_bias += slope
            if self.tied:
                of_weight[int(self.tokens[b, t])] += slope @ weight
        return (logprobs, entropies), (of_states, of_weight, of_bias)


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("entropy_gradient", [False, True], ids=["", "entropies"])
@pytest.mark.parametrize("tokens_at_once", [1, 2, 5, 1000])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_chunks_give_numpys_statistics_and_gradients_whatever_their_size(mask, tokens_at_once, entropy_gradient, tied):
    problem = Problem(tied)

    found, gradients = problem.solve(mask, tokens_at_once, entropy_gradient=entropy_gradient)

    statistics, expected = problem.reference(mask, entropy_gradient=entropy_gradient)
    assert found.logprobs.dtype == found.entropies.dtype == torch.float32
    np.testing.assert_allclose(found.logprobs.detach(), statistics[0], atol=1e-5)
    np.testing.assert_allclose(found.entropies.detach(), statistics[1], atol=1e-5)
    for gradient, reference in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, reference, atol=2e-5)


@pytest.mark.parametrize("tokens_at_once", [1, 4])
def test_several_chunks_are_one_chunk_to_the_rounding_of_sums(tokens_at_once):
    (several, gradients), (one, expected) = (Problem().solve(MASKS["holes"], n) for n in (tokens_at_once, 1000))

    torch.testing.assert_close(several.logprobs, one.logprobs, atol=1e-6, rtol=0)
    torch.testing.assert_close(several.entropies, one.entropies, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-6)


def test_a_chunk_is_never_smaller_than_a_token():
    problem = Problem()

    few = chunked_statistics(problem.states, problem.head, problem.ids, MASKS["all"], logits_at_once=1)

    expected = chunked_statistics(problem.states, problem.head, problem.ids, MASKS["all"])
    torch.testing.assert_close(few.logprobs, expected.logprobs)


@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_states_at_masked_places_are_never_read(junk):
    problem, mask = Problem(), MASKS["holes"]
    expected, gradients = problem.solve(mask, 2)
    with torch.no_grad():
        problem.inputs[~mask] = junk

    found, others = problem.solve(mask, 2)

    assert torch.equal(found.logprobs, expected.logprobs) and torch.equal(found.entropies, expected.entropies)
    assert all(torch.equal(a, b) for a, b in zip(others, gradients, strict=True))
    assert others[0][~mask].abs().max() == 0.0


def test_entropies_carry_no_gradient_and_are_not_doubled_by_the_backward_pass():
    problem = Problem()
    found = chunked_statistics(problem.states, problem.head, problem.ids, MASKS["all"], logits_at_once=2 * V)
    before = found.entropies.clone()

    found.logprobs.sum().backward()

    assert not found.entropies.requires_grad and found.logprobs.requires_grad
    assert found.entropies.shape == (B, T) and torch.equal(found.entropies, before)


def test_without_gradient_there_is_no_graph():
    problem = Problem()
    with torch.no_grad():
        found = chunked_statistics(
            problem.states, problem.head, problem.ids, MASKS["all"], logits_at_once=V, entropy_gradient=True
        )

    assert not found.logprobs.requires_grad and not found.entropies.requires_grad


def test_asking_for_the_gradient_of_the_entropies_changes_neither_values_nor_the_other_gradient():
    problem = Problem()
    plain, gradients = problem.solve(MASKS["holes"], 2)
    problem.of_entropies.zero_()
    found, others = problem.solve(MASKS["holes"], 2, entropy_gradient=True)

    assert torch.equal(found.logprobs, plain.logprobs) and torch.equal(found.entropies, plain.entropies)
    assert all(torch.equal(a, b) for a, b in zip(others, gradients, strict=True))


def test_tokens_that_are_ruled_out_leave_the_gradient_of_the_entropy_finite():
    logits = torch.tensor([[0.0, 1.0, -math.inf], [5.0, -math.inf, -math.inf]], requires_grad=True)
    token_statistics(logits, torch.tensor([1, 0]), entropy_gradient=True).entropies.sum().backward()
    p = math.exp(1) / (1 + math.exp(1))
    slope = p * (1 - p)  # of the entropy of two outcomes, by the difference of their logits, which is 1
    torch.testing.assert_close(logits.grad, torch.tensor([[slope, -slope, 0.0], [0.0, 0.0, 0.0]]))


def kept_for_the_backward(tokens_at_once, n_tokens=64, vocabulary=50, entropy_gradient=False):
    """Sizes of the tensors that the graph keeps, and of those that exist at once while it is walked backwards."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(D, vocabulary)
    states = torch.randn(1, n_tokens, D, generator=generator, requires_grad=True)
    ids = torch.randint(0, vocabulary, (1, n_tokens), generator=generator)
    kept, logits = [], []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        found = chunked_statistics(
            states * 1.0,
            lambda some: logits.append(len(some)) or head(some),
            ids,
            torch.ones(1, n_tokens, dtype=torch.bool),
            logits_at_once=tokens_at_once * vocabulary,
            entropy_gradient=entropy_gradient,
        )
    while_forward = list(logits)
    (found.logprobs + found.entropies).sum().backward()
    return max(kept), sum(kept), while_forward, logits[len(while_forward) :]


@pytest.mark.parametrize("entropy_gradient", [False, True], ids=["", "entropies"])
def test_no_tensor_of_the_size_of_all_logits_is_kept_where_there_are_several_chunks(entropy_gradient):
    all_logits = 64 * 50

    assert kept_for_the_backward(64)[0] >= all_logits  # one chunk keeps them: the count can tell

    largest, total, forward, backward = kept_for_the_backward(8, entropy_gradient=entropy_gradient)
    assert largest < 8 * 50 < all_logits
    assert total < all_logits
    assert max(forward) == max(backward) == 8
    assert sum(backward) == 64


def test_one_chunk_is_not_computed_twice():
    assert kept_for_the_backward(64)[3] == []
