"""The unbiased estimate of pass@k against the enumeration of all subsets."""

import math
from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.ops import pass_at


def by_enumeration(passed, k):
    """The share of all subsets of k completions of which one passes."""
    subsets = list(combinations(passed, k))
    return Fraction(sum(any(subset) for subset in subsets), len(subsets))


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_it_is_the_share_of_subsets_with_one_that_passes(passed, data):
    k = data.draw(st.integers(1, len(passed)))
    found = pass_at(torch.tensor([passed]), torch.ones(1, len(passed), dtype=torch.bool), k)
    assert found.tolist() == pytest.approx([float(by_enumeration(passed, k))], rel=1e-14)


@given(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=8), st.data())
def test_completions_that_could_not_be_judged_are_left_out(judged, data):
    k = data.draw(st.integers(1, len(judged)))
    passed = torch.tensor([[verdict is True for verdict in judged]])
    found = float(pass_at(passed, torch.tensor([[verdict is not None for verdict in judged]]), k))
    known = [verdict for verdict in judged if verdict is not None]
    if len(known) < k:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(float(by_enumeration(known, k)), rel=1e-14)


def test_prompts_are_apart_and_large_groups_are_exact():
    passed = torch.zeros(3, 400, dtype=torch.bool)
    passed[1, :3], passed[2, 100:] = True, True
    found = pass_at(passed, torch.ones_like(passed), 100)
    exact = [1 - Fraction(math.comb(400 - c, 100), math.comb(400, 100)) for c in (0, 3, 300)]
    assert found.tolist() == pytest.approx([float(value) for value in exact], rel=1e-14)


def test_it_is_unbiased():
    """Over all outcomes of n independent completions its mean is that of k of them, 1 - (1 - p)^k."""
    n, k, p = 6, 3, 0.3
    outcomes = torch.tensor([[bool(number >> i & 1) for i in range(n)] for number in range(2**n)])
    weights = torch.where(outcomes, p, 1 - p).double().prod(dim=1)
    mean = (weights * pass_at(outcomes, torch.ones_like(outcomes), k)).sum()
    assert float(mean) == pytest.approx(1 - (1 - p) ** k, rel=1e-6)
