"""Which pairs each strategy chooses, against plain loops, exhaustive search and direct inverses."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards.online.estimator import PreferenceEstimator, UncertainEstimator
from grpovi_lightning.rewards.online.selection import (
    BestAgainstSecond,
    BestAgainstWorst,
    OptimisticPairs,
    Pairs,
    RandomPairs,
    UncertainPairs,
)

STRATEGIES = [RandomPairs(), UncertainPairs(), BestAgainstSecond(), BestAgainstWorst(), OptimisticPairs(0.5)]
ONCE_A_PROMPT = [strategy for strategy in STRATEGIES if not isinstance(strategy, UncertainPairs)]


def by_name(strategy):
    return type(strategy).__name__


class FixedRewards(PreferenceEstimator):
    """An estimator without uncertainty that never learns."""

    def _learn(self, z, y):
        raise AssertionError("choosing pairs must not teach the estimator")


class DirectHessian(UncertainEstimator):
    """H = lambda I + sum s(z' theta) z z' at the theta it was given, inverted anew each time."""

    def __init__(self, theta, lam=1.0):
        super().__init__(len(theta))
        self.theta = torch.as_tensor(theta, dtype=torch.float64)
        self.hessian = lam * torch.eye(self.dim, dtype=torch.float64)

    def _learn(self, z, y):
        for row in z:
            margin = math.fsum((row * self.theta).tolist())
            self.hessian += math.exp(margin) / (1.0 + math.exp(margin)) ** 2 * torch.outer(row, row)

    @property
    def inverse(self):
        return torch.linalg.inv(self.hessian)


def generator(seed=0):
    return np.random.default_rng(seed)


def normal(*shape, seed=0):
    return torch.from_numpy(generator(seed).standard_normal(shape))


def an_estimator(dim, seed=1, seen=20):
    """One that has seen some pairs."""
    estimator = DirectHessian(normal(dim, seed=seed))
    estimator.update(normal(seen, dim, seed=seed + 1), torch.zeros(seen))
    return estimator


def triples(pairs):
    return list(zip(pairs.prompts, pairs.first, pairs.second, strict=True))


def most_uncertain(features, estimator, asked=()):
    """The pair with the largest norm, by a loop over all of them."""
    n_prompts, group_size, _ = features.shape
    best, largest = None, -math.inf
    for prompt in range(n_prompts):
        for i, j in combinations(range(group_size), 2):
            z = features[prompt, i] - features[prompt, j]
            norm = torch.linalg.solve(estimator.hessian, z) @ z
            if (prompt, i, j) not in asked and norm > largest:
                best, largest = (prompt, i, j), norm
    return best


def test_uncertain_pairs_are_those_of_a_search_with_a_fresh_inverse_after_each_pick():
    features, estimator, after = normal(5, 4, 6), an_estimator(6), an_estimator(6)
    expected = []
    for _ in range(12):
        expected.append(most_uncertain(features, after, expected))
        prompt, i, j = expected[-1]
        after.update(features[prompt, i] - features[prompt, j], torch.tensor(1.0))
    assert triples(UncertainPairs().select(features, estimator, 12, generator())) == expected
    assert max(Counter(prompt for prompt, _, _ in expected).values()) > 1


def test_down_dating_predicts_the_uncertainty_after_the_labels_to_ten_digits():
    # A pair w is made to be exactly as uncertain as a rival of known norm once z has been labelled: a hair more and it
    # is picked second, a hair less and the rival is.
    estimator = DirectHessian([0.7, -0.4, 0.3], lam=2.0)
    z = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    after = DirectHessian([0.7, -0.4, 0.3], lam=2.0)
    after.update(z, torch.tensor(1.0))
    w = torch.tensor([1.5, 0.8, 0.6], dtype=torch.float64)
    left = (w @ after.inverse @ w).item()
    e = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)  # orthogonal to z, so that its norm stays 1 / lambda
    rival = math.sqrt(left * 2.0) * e
    for factor, expected in ((1.0 + 1e-10, 1), (1.0 - 1e-10, 2)):
        features = torch.zeros(3, 2, 3, dtype=torch.float64)
        features[0, 0], features[1, 0], features[2, 0] = z, w * factor, rival
        assert UncertainPairs().select(features, estimator, 2, generator()).prompts == [0, expected]


def test_without_down_dating_copies_of_one_pair_would_fill_the_batch():
    features = torch.zeros(4, 2, 3, dtype=torch.float64)
    features[:3, 0, 0] = 2.0
    features[3, 0, 1] = 1.9
    chosen = UncertainPairs().select(features, DirectHessian([0.0, 0.0, 0.0]), 2, generator())
    assert triples(chosen) == [(0, 0, 1), (3, 0, 1)]


def test_before_the_first_update_the_first_uncertain_pair_lies_farthest_apart():
    features = normal(6, 5, 4)
    far = torch.cdist(features, features).flatten().argmax().item()
    (pair,) = triples(UncertainPairs().select(features, DirectHessian([0.0] * 4), 1, generator()))
    assert pair == (far // 25, far // 5 % 5, far % 5)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_permuting_prompts_permutes_the_uncertain_pairs(seed):
    features, estimator = normal(7, 4, 5, seed=seed), an_estimator(5)
    order = generator(seed).permutation(7).tolist()
    chosen = triples(UncertainPairs().select(features, estimator, 9, generator()))
    permuted = triples(UncertainPairs().select(features[order], estimator, 9, generator()))
    assert [(order[prompt], i, j) for prompt, i, j in permuted] == chosen


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_what_a_group_has_in_common_does_not_change_the_uncertain_pairs(seed):
    features, estimator = normal(6, 4, 5, seed=seed), an_estimator(5)
    shifted = features + 100.0 * normal(6, 1, 5, seed=seed + 1)
    chosen = UncertainPairs().select(features, estimator, 6, generator())
    assert UncertainPairs().select(shifted, estimator, 6, generator()) == chosen


def test_greedy_strategies_choose_as_a_plain_loop_does():
    features, estimator = normal(9, 6, 4), an_estimator(4)
    inverse = torch.linalg.inv(estimator.hessian)

    def worth(prompt, i, best, beta):
        z = features[prompt, i] - features[prompt, best]
        return float(features[prompt, i] @ estimator.theta) + 2.0 * beta * math.sqrt(float(z @ inverse @ z))

    expected = {"second": [], "worst": [], "optimistic": []}
    for prompt in range(9):
        rewards = [float(features[prompt, i] @ estimator.theta) for i in range(6)]
        ordered = sorted(range(6), key=lambda i: -rewards[i])
        best, others = ordered[0], ordered[1:]
        expected["second"].append((prompt, best, ordered[1]))
        expected["worst"].append((prompt, best, ordered[-1]))
        expected["optimistic"].append((prompt, best, max(others, key=lambda i: worth(prompt, i, best, 1.5))))
    strategies = {"second": BestAgainstSecond(), "worst": BestAgainstWorst(), "optimistic": OptimisticPairs(1.5)}
    for name, strategy in strategies.items():
        assert sorted(triples(strategy.select(features, estimator, 9, generator()))) == expected[name]
    assert expected["optimistic"] != expected["second"]


def test_optimism_without_weight_is_best_against_second_and_with_all_weight_the_least_known():
    features, estimator = normal(8, 5, 4), an_estimator(4)
    plain = BestAgainstSecond().select(features, estimator, 8, generator())
    assert OptimisticPairs(0.0).select(features, estimator, 8, generator()) == plain
    curious = OptimisticPairs(1e9).select(features, estimator, 8, generator())
    for prompt, first, second in triples(curious):
        norms = estimator.uncertainty(features[prompt] - features[prompt, first])
        assert second == norms.argmax().item()


def test_random_pairs_are_uniform_over_prompts_and_over_the_pairs_of_a_prompt():
    features, estimator, rng = normal(3, 4, 2), FixedRewards(2), generator()
    counts = Counter(triples(RandomPairs().select(features, estimator, 1, rng))[0] for _ in range(9_000))
    expected = 9_000 / 18
    assert len(counts) == 18
    # Chi-squared with 17 degrees of freedom: above 51.3 once in 30,000 times.
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 51.3


@pytest.mark.parametrize("strategy", ONCE_A_PROMPT, ids=by_name)
def test_prompts_are_drawn_without_order_and_none_twice(strategy):
    features, estimator, rng = normal(4, 3, 2), an_estimator(2), generator()
    draws = [strategy.select(features, estimator, 2, rng).prompts for _ in range(300)]
    assert {tuple(draw) for draw in draws} == {(i, j) for i in range(4) for j in range(4) if i != j}


@given(
    st.integers(0, 5),
    st.integers(2, 5),
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(0, 1_000),
    st.sampled_from(STRATEGIES),
)
@settings(max_examples=150, deadline=None)
def test_choices_are_different_pairs_of_completions_that_may_be_compared(prompts, group, dim, n_pairs, seed, strategy):
    rng = generator(seed)
    # Few values, so that many completions are the same; float32, as models give.
    features = torch.from_numpy(rng.integers(0, 2, (prompts, group, dim)).astype(np.float32))
    features[torch.from_numpy(rng.random((prompts, group)) < 0.2)] = torch.nan
    allowed = {
        (prompt, i, j)
        for prompt in range(prompts)
        for i, j in combinations(range(group), 2)
        if bool((features[prompt, i] - features[prompt, j]).abs().sum() > 0.0)  # false where one is NaN
    }
    chosen = triples(strategy.select(features, DirectHessian([0.3] * dim), n_pairs, rng))
    unordered = [(prompt, min(i, j), max(i, j)) for prompt, i, j in chosen]
    assert len(set(unordered)) == len(unordered)
    assert set(unordered) <= allowed
    askable = len({prompt for prompt, _, _ in allowed})
    if isinstance(strategy, UncertainPairs):
        assert len(chosen) == min(n_pairs, len(allowed))
    else:
        assert len(chosen) == min(n_pairs, askable)
        assert len({prompt for prompt, _, _ in chosen}) == len(chosen)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=by_name)
def test_identical_completions_are_not_compared_even_where_they_are_the_best(strategy):
    features = torch.tensor([[[5.0, 1.0], [5.0, 1.0], [1.0, 0.0], [2.0, 2.0]], [[3.0, 3.0]] * 4])
    estimator = DirectHessian([1.0, 0.0])
    for seed in range(20):
        for prompt, first, second in triples(strategy.select(features, estimator, 10, generator(seed))):
            assert prompt == 0 and {first, second} != {0, 1}


def test_the_second_best_is_passed_over_where_it_is_a_copy_of_the_best():
    features = torch.tensor([[[0.0], [5.0], [2.0], [5.0]]])
    chosen = BestAgainstSecond().select(features, DirectHessian([1.0]), 1, generator())
    assert triples(chosen) == [(0, 1, 2)]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=by_name)
def test_a_single_nan_keeps_a_completion_out_whatever_the_rest_promises(strategy):
    features = torch.tensor([[[9.0, torch.nan], [1.0, 0.0], [0.0, 0.0]]])
    estimator = DirectHessian([1.0, 1.0])
    assert {*strategy.select(features, estimator, 3, generator()).first} <= {1, 2}
    assert {*strategy.select(features, estimator, 3, generator()).second} <= {1, 2}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=by_name)
def test_where_nothing_may_be_compared_no_pair_comes_back(strategy):
    for features in (torch.full((2, 3, 4), torch.nan), torch.ones(2, 3, 4), torch.zeros(0, 3, 4)):
        chosen = strategy.select(features, DirectHessian([1.0] * 4), 3, generator())
        assert chosen == Pairs([], [], [])
        assert chosen.differences(features).shape == (0, 4)


def test_ties_go_to_the_lower_place():
    features = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]])
    untaught = DirectHessian([0.0, 0.0])
    assert triples(UncertainPairs().select(features, untaught, 1, generator())) == [(0, 0, 1)]
    for strategy in (BestAgainstSecond(), BestAgainstWorst()):
        assert triples(strategy.select(features, untaught, 1, generator())) == [(0, 0, 1)]
    tied = DirectHessian([1.0, 0.0])  # rewards 0 1 1 0
    assert triples(BestAgainstSecond().select(features, tied, 1, generator())) == [(0, 1, 2)]
    assert triples(BestAgainstWorst().select(features, tied, 1, generator())) == [(0, 1, 0)]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=by_name)
def test_the_same_generator_gives_the_same_choice_and_changes_nothing_else(strategy):
    features, estimator = normal(6, 4, 3), an_estimator(3)
    before = features.clone(), estimator.hessian.clone(), estimator.theta.clone()
    assert strategy.select(features, estimator, 4, generator(7)) == strategy.select(
        features, estimator, 4, generator(7)
    )
    after = features, estimator.hessian, estimator.theta
    assert all(torch.equal(was, now) for was, now in zip(before, after, strict=True))


def test_differences_are_first_minus_second():
    features = normal(3, 4, 2)
    found = Pairs([2, 0], [1, 3], [0, 2]).differences(features)
    assert torch.equal(found, torch.stack([features[2, 1] - features[2, 0], features[0, 3] - features[0, 2]]))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=by_name)
@pytest.mark.parametrize(
    ("features", "n_pairs", "message"),
    [
        (torch.zeros(2, 3, 4), 0, "pairs to choose: got 0, expected at least 1"),
        (torch.zeros(2, 3, 5), 1, r"features of completions: got shape \(2, 3, 5\), expected .*, 4\)"),
        (torch.zeros(6, 4), 1, r"features of completions: got shape \(6, 4\)"),
        (torch.zeros(2, 1, 4), 1, "completions a prompt: got 1, expected at least 2"),
        (torch.zeros(2, 3, 4).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.inf)), 1,
         "completion 2 of prompt 1: got an infinite value"),
    ],
    ids=["no pairs", "another width", "flat", "one completion", "infinite"],
)  # fmt: skip
def test_bad_input_is_one_line(strategy, features, n_pairs, message):
    with pytest.raises(UserError, match=message) as caught:
        strategy.select(features, DirectHessian([1.0] * 4), n_pairs, generator())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strategy", [UncertainPairs(), OptimisticPairs(0.0)], ids=by_name)
def test_uncertainty_is_asked_only_of_an_estimator_that_knows_it(strategy):
    with pytest.raises(UserError, match=f"{by_name(strategy)}: got FixedRewards, expected .* its uncertainty"):
        strategy.select(normal(2, 3, 4), FixedRewards(4), 1, generator())


@pytest.mark.parametrize("strategy", [RandomPairs(), BestAgainstSecond(), BestAgainstWorst()], ids=by_name)
def test_the_other_strategies_do_without_uncertainty(strategy):
    assert len(strategy.select(normal(2, 3, 4), FixedRewards(4), 2, generator())) == 2


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_a_beta_that_is_no_weight_is_refused(beta):
    with pytest.raises(UserError, match=f"OptimisticPairs beta: got {beta}, expected a finite number"):
        OptimisticPairs(beta)
