"""What every estimator accepts and refuses."""

import json

import pytest
import torch
from helpers.preference_reference import comparisons

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards.online import (
    ConstantRate,
    ImplicitMirrorDescent,
    MaximumLikelihood,
    OnlineMirrorDescent,
    StochasticGradientDescent,
)

DIM = 3
ESTIMATORS = {
    "one pass": lambda: OnlineMirrorDescent(DIM),
    "implicit": lambda: ImplicitMirrorDescent(DIM),
    "refit": lambda: MaximumLikelihood(DIM),
    "SGD": lambda: StochasticGradientDescent(DIM, ConstantRate(0.1)),
}
EVERY = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)


def trained(make):
    estimator = make()
    z, y, _ = comparisons(10, DIM)
    estimator.update(z, y)
    return estimator


def unchanged(estimator, state):
    now = estimator.state_dict()
    return now.keys() == state.keys() and all(
        torch.equal(torch.as_tensor(now[name]), torch.as_tensor(state[name])) for name in state
    )


@EVERY
@pytest.mark.parametrize(
    ("z", "y", "message"),
    [
        (torch.ones(2, 4), torch.ones(2), r"feature differences: got shape \(2, 4\), expected \(pairs, 3\)"),
        (torch.ones(2, 1, 3), torch.ones(2), r"feature differences: got shape \(2, 1, 3\), expected \(pairs, 3\)"),
        (torch.ones(2, 3), torch.ones(3), r"labels: got shape \(3,\), expected \(2,\), one for each pair"),
        (torch.ones(2, 3), torch.tensor([1.0, 0.5]), "label of pair 1: got 0.5, expected 1"),
        (torch.ones(2, 3), torch.tensor([-1, 1]), "label of pair 0: got -1.0, expected 1"),
        (torch.ones(2, 3), torch.tensor([0.0, torch.nan]), "label of pair 1: got nan, expected 1"),
        (
            torch.tensor([[1.0, 2, 3], [1, torch.nan, 3]]),
            torch.ones(2),
            "differences of pair 1: got a value that is not",
        ),
        (torch.tensor([[1.0, torch.inf, 3]]), torch.ones(1), "differences of pair 0: got a value that is not finite"),
    ],
    ids=["width", "axes", "lengths", "half", "minus one", "label nan", "nan", "inf"],
)
def test_bad_comparisons_are_refused_and_nothing_has_changed(make, z, y, message):
    estimator = trained(make)
    state = estimator.state_dict()
    with pytest.raises(UserError, match=message):
        estimator.update(z, y)
    assert unchanged(estimator, state)


@EVERY
def test_no_pairs_change_nothing(make):
    estimator = trained(make)
    state = estimator.state_dict()
    estimator.update(torch.empty(0, DIM), torch.empty(0))
    assert unchanged(estimator, state)


@EVERY
def test_one_pair_may_come_without_an_axis_and_in_any_dtype(make):
    plain, bare = make(), make()
    plain.update(torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64), torch.ones(1))
    bare.update(torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16), torch.tensor(True))
    assert torch.equal(plain.theta, bare.theta) and bare.theta.dtype == torch.float64
    assert bare.n_pairs == 1


@EVERY
def test_differences_with_gradients_are_taken_as_numbers(make):
    estimator = make()
    estimator.update(torch.ones(2, DIM, requires_grad=True), torch.ones(2))
    assert not estimator.theta.requires_grad
    assert not estimator.reward(torch.ones(DIM, requires_grad=True)).requires_grad


@EVERY
def test_a_state_of_another_width_or_kind_is_refused_and_nothing_has_changed(make):
    estimator = trained(make)
    state = estimator.state_dict()
    with pytest.raises(UserError, match="got 4 features, expected 3; it belongs to other features"):
        estimator.load_state_dict({**state, "theta": torch.zeros(4)})
    with pytest.raises(UserError, match=r"estimator state: got theta, .*; it belongs to another estimator"):
        estimator.load_state_dict({**state, "momentum": torch.zeros(3)})
    assert unchanged(estimator, state)


@pytest.mark.parametrize("kind", [OnlineMirrorDescent, ImplicitMirrorDescent])
@pytest.mark.parametrize("setting", ["eta", "lam", "radius"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_setting_that_is_not_positive_and_finite_is_refused(kind, setting, value):
    with pytest.raises(UserError, match=f"{setting}: got .*, expected a positive, finite number"):
        kind(DIM, **{setting: value})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_the_refit_needs_a_positive_lam(value):
    with pytest.raises(UserError, match=r"lam: got .*, expected a positive, finite number"):
        MaximumLikelihood(DIM, lam=value)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: OnlineMirrorDescent(DIM, eta=0.5, lam=2.0, radius=3.0), {"lam": 2.0, "radius": 3.0}),
        (lambda: ImplicitMirrorDescent(DIM), {"lam": 1.0, "radius": None}),
        (lambda: MaximumLikelihood(DIM, lam=2.0, warm_start=False, tolerance=1e-3), {"lam": 2.0}),
        (lambda: StochasticGradientDescent(DIM, ConstantRate(0.1)), {}),
    ],
    ids=ESTIMATORS,
)
def test_the_settings_that_a_state_depends_on_are_named_and_can_be_written(make, settings):
    estimator = make()
    assert estimator.settings == settings
    assert json.loads(json.dumps(estimator.settings)) == settings


@pytest.mark.parametrize("dim", [0, -2])
def test_there_must_be_a_feature(dim):
    with pytest.raises(UserError, match=f"estimator dim: got {dim}, expected at least 1"):
        OnlineMirrorDescent(dim)


@pytest.mark.parametrize("kind", [OnlineMirrorDescent, ImplicitMirrorDescent, MaximumLikelihood])
@pytest.mark.parametrize(
    "z",
    [
        torch.full((1, DIM), 1e200, dtype=torch.float64),
        torch.full((2, DIM), 1e200, dtype=torch.float64),
        torch.full((5, DIM), 1e200, dtype=torch.float64),
    ],
    ids=["one", "two", "more than features"],
)
def test_features_that_overflow_are_refused_and_nothing_has_changed(kind, z):
    estimator = trained(lambda: kind(DIM))
    state = estimator.state_dict()
    with pytest.raises(UserError, match=r"feature differences: got norms up to .*, too large for float64 beside lam"):
        estimator.update(z, torch.ones(len(z)))
    assert unchanged(estimator, state)
