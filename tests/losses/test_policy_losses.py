"""Every loss of the family against loops written from the formulas, and what must not change it."""

import math

import numpy as np
import pytest
import torch
from helpers import grpo_reference
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from losses.loss_batches import (
    CLIPPED,
    LONGEST,
    LOSSES,
    PENALISED,
    SHARING,
    Batch,
    computed,
    random_batch,
    random_selection,
    random_weights,
    value_and_gradient,
)

from grpovi_lightning.losses import K1, K2, K3, DPPOTVLoss, GMPOLoss, GSPOLoss, K3Plus

ESTIMATORS = {"k1": K1, "k2": K2, "k3": K3, "k3+": K3Plus}
DEFAULTS = {
    "dapo": {"epsilon_high": 0.28},
    "dr_grpo": {"max_completion_length": LONGEST},
    "cispo": {"epsilon_high": 5},
    "gmpo": {"epsilon": 0.4},
    "dppo": {"epsilon": 0.15},
}
SETTINGS = [
    {},
    {"epsilon": 0.1, "epsilon_high": 0.4},
    {"epsilon": 0.3, "epsilon_high": 0.05, "delta": 1.3},
    {"delta": 1.5, "beta": 0.3},
    {"beta": 0.3, "kl": "k1"},
    {"beta": 0.3, "kl": "k2"},
    {"beta": 0.04, "kl": "k3", "epsilon_high": 0.05},
]
CISPO_SETTINGS = [
    {},
    {"epsilon_high": 1.2},
    {"beta": 0.3, "epsilon_high": 1.2, "kl": "k1"},
    {"beta": 0.3, "kl": "k2"},
    {"beta": 0.04},
    {"beta": 0.3, "kl": "k3+"},
]
SAPO_SETTINGS = [{}, {"sapo_temperature_pos": 3.0, "sapo_temperature_neg": 0.2}, {"beta": 0.3, "kl": "k2"}]
GMPO_SETTINGS = [{}, {"epsilon": 0.1, "epsilon_high": 0.7}, {"beta": 0.3, "kl": "k1", "epsilon_high": 0.05}]
DPPO_SETTINGS = [{}, {"epsilon": 0.02, "epsilon_high": 0.3}, {"beta": 0.3, "max_ratio": 1.3}]
CASES = [
    *((name, settings) for name in ("grpo", "bnpo", "dapo", "dr_grpo", "gspo") for settings in SETTINGS),
    *(("cispo", settings) for settings in CISPO_SETTINGS),
    *(("sapo", settings) for settings in SAPO_SETTINGS),
    *(("gmpo", settings) for settings in GMPO_SETTINGS),
    *(("dppo", settings) for settings in DPPO_SETTINGS),
]
"""Those that have loops of their own; `ClippedLoss` alone is BNPO, and what stands beside a loss has its own tests."""


def loss_and_reference(name, settings, batch, weights=None, denominator=None):
    """(loss, what the loops say of it on a batch)."""
    options = settings | ({"kl": ESTIMATORS[settings["kl"]]()} if "kl" in settings else {})
    arguments = [tensor.tolist() for tensor in batch.to(torch.float64)]
    listed = None if weights is None else weights.tolist()
    expected = grpo_reference.policy_loss(name, *arguments, listed, denominator, **DEFAULTS.get(name, {}) | settings)
    return LOSSES[name](**options), expected


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_value_and_gradient_are_those_of_the_loops(name, settings, weighted):
    for seed in range(12):
        batch = random_batch(seed)
        weights = random_weights(seed, batch) if weighted else None
        loss, (expected, slope) = loss_and_reference(name, settings, batch, weights)
        value, gradient = value_and_gradient(loss, batch, sampling_weights=weights)
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-14)
        np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_in_float32_value_and_gradient_are_right_to_1e_minus_6(name, settings, weighted):
    for seed in range(12):
        batch = random_batch(seed, n_rows=16, length=20).to(torch.float32)
        weights = random_weights(seed, batch).float() if weighted else None
        loss, (expected, slope) = loss_and_reference(name, settings, batch, weights)
        value, gradient = value_and_gradient(loss, batch, sampling_weights=weights)
        assert gradient.dtype == torch.float32
        assert value == pytest.approx(expected, abs=1e-6)
        np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-6, atol=1e-6 * np.abs(slope).max())


def test_gspo_is_right_at_the_clip_range_of_its_paper_too():
    for seed in range(12):
        batch = random_batch(seed, off_policy=4e-4)
        expected, slope = grpo_reference.policy_loss(
            "gspo", *(tensor.tolist() for tensor in batch), epsilon=3e-4, epsilon_high=4e-4
        )
        value, gradient = value_and_gradient(GSPOLoss(), batch)
        assert value == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(("name", "settings"), [case for case in CASES if case[1].get("kl") != "k3+"], ids=str)
def test_the_gradient_is_that_of_finite_differences(name, settings):
    # Away from the kinks at the ends of the clip range. The ratio of CISPO and DPPO is a constant of their losses:
    # capped, it stays one.
    checked = 0
    for seed in range(40):
        batch = random_batch(seed, n_rows=3, length=3, off_policy=0.4)
        loss, _ = loss_and_reference(name, {"max_ratio": 5.0} | settings if name == "dppo" else settings, batch)
        if name in ("cispo", "dppo"):
            batch = batch._replace(old_logprobs=batch.logprobs - 2.0)
        if distance_to_kinks(loss, batch) < 1e-3:
            continue
        weights = random_weights(seed, batch)

        def value(logprobs, loss=loss, batch=batch, weights=weights):
            return loss(logprobs, *batch[1:], sampling_weights=weights).loss

        assert torch.autograd.gradcheck(value, batch.logprobs.requires_grad_())
        checked += 1
    assert checked >= 10


def distance_to_kinks(loss, batch):
    """Of the nearest ratio to an end of the clip range or to delta; of what else is clipped, likewise."""
    low, high = getattr(loss, "epsilon", math.inf), getattr(loss, "epsilon_high", math.inf)
    log_ratio = (batch.logprobs - batch.old_logprobs) * batch.completion_mask
    if isinstance(loss, GSPOLoss):
        log_ratio = log_ratio.sum(1) / batch.completion_mask.sum(1)
    clipped, ends = log_ratio.exp(), [1 - low, 1 + high, getattr(loss, "delta", None) or 9.0]
    if isinstance(loss, GMPOLoss):
        clipped, ends = log_ratio, [-low, high]
    if isinstance(loss, DPPOTVLoss):
        clipped, ends = batch.logprobs.exp() - batch.old_logprobs.exp(), [-low, high]
    return (clipped.flatten()[:, None] - torch.tensor(ends)).abs().min()


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 99), extra=st.integers(0, 4), junk=st.sampled_from([0.0, -50.0, 200.0, math.inf, math.nan]))
@effort(max_examples=40, deadline=None)
def test_more_padding_changes_nothing_whatever_stands_in_it(name, seed, extra, junk):
    batch = random_batch(seed)
    loss, weights = LOSSES[name](beta=0.1), random_weights(seed, batch)

    def widened(tensor, fill):
        junked = torch.where(batch.completion_mask, tensor, fill)
        return torch.nn.functional.pad(junked, (0, extra), value=fill)

    mask = torch.nn.functional.pad(batch.completion_mask, (0, extra))
    selected = random_selection(seed, batch)
    value, gradient = value_and_gradient(loss, batch, sampling_weights=weights, selected=selected)
    wide = Batch(
        widened(batch.logprobs, junk),
        widened(batch.old_logprobs, 1.0),
        batch.advantages,
        mask,
        widened(batch.ref_logprobs, -junk),
    )
    padded, padded_gradient = value_and_gradient(
        loss, wide, sampling_weights=widened(weights, junk), selected=widened(selected, extra % 2 == 1)
    )

    assert padded == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(padded_gradient[:, : batch.logprobs.shape[1]], gradient)
    assert (padded_gradient[~mask] == 0).all()
    metrics, padded_metrics = (computed(loss, arguments).metrics for arguments in (batch, wide))
    assert {k: float(v) for k, v in padded_metrics.items()} == pytest.approx({k: float(v) for k, v in metrics.items()})


@pytest.mark.parametrize("sizes", [[1, 5], [2, 2, 2], [1] * 6])
@pytest.mark.parametrize("name", LOSSES)
def test_parts_with_the_denominator_of_the_whole_sum_to_the_whole(name, sizes):
    batch = random_batch(3)
    loss, weights, selected = LOSSES[name](beta=0.1), random_weights(3, batch), random_selection(3, batch)
    value, gradient = value_and_gradient(loss, batch, sampling_weights=weights, selected=selected)
    whole = loss.denominator(batch.completion_mask)
    parts = [
        value_and_gradient(
            loss, batch.rows(rows), denominator=whole, sampling_weights=weights[rows], selected=selected[rows]
        )
        for rows in torch.arange(6).split(sizes)
    ]
    assert sum(part[0] for part in parts) == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_in_float32_splitting_moves_the_gradient_by_less_than_1e_minus_5(name):
    batch = random_batch(10, n_rows=16, length=40).to(torch.float32)
    loss = LOSSES[name](beta=0.04)
    _, whole = value_and_gradient(loss, batch)
    count = loss.denominator(batch.completion_mask)
    parts = [value_and_gradient(loss, batch.rows(r), denominator=count)[1] for r in torch.arange(16).split(3)]
    assert (torch.cat(parts) - whole).norm() < 1e-5 * whole.norm()


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_sequences_does_not_matter(name):
    batch, order = random_batch(4), torch.tensor([3, 0, 5, 1, 4, 2])
    loss = LOSSES[name](beta=0.1)
    value, gradient = value_and_gradient(loss, batch)
    permuted, permuted_gradient = value_and_gradient(loss, batch.rows(order))
    assert permuted == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(permuted_gradient, gradient[order], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_old_and_reference_log_probabilities_advantages_and_weights_get_no_gradient(name):
    batch = random_batch(5)
    weights = random_weights(5, batch).requires_grad_()
    inputs = [tensor.requires_grad_() for tensor in batch if tensor.is_floating_point()]
    output = computed(LOSSES[name](beta=0.1), batch, sampling_weights=weights)
    output.loss.backward()
    assert inputs[0].grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in (*inputs[1:], weights))
    assert not any(value.requires_grad for value in output.metrics.values())


@pytest.mark.parametrize("name", LOSSES)
def test_sampling_weights_leave_the_penalty_alone(name):
    batch = random_batch(6)
    none = torch.zeros_like(batch.logprobs)
    with_penalty = value_and_gradient(LOSSES[name](beta=0.3), batch, sampling_weights=none)
    silent = batch._replace(advantages=torch.zeros_like(batch.advantages))
    expected = value_and_gradient(LOSSES[name](beta=0.3), silent)
    assert with_penalty[0] == pytest.approx(expected[0], rel=1e-12) and expected[0] != 0
    torch.testing.assert_close(with_penalty[1], expected[1])


class TestExtremes:
    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("log_ratio", [-1e4, -200.0, -100.0, 79.0, 88.8, 100.0, 1e4])
    @pytest.mark.parametrize("advantage", [0.0, 1.0, -1.0])
    def test_a_log_ratio_of_any_size_gives_finite_numbers(self, name, log_ratio, advantage):
        lp = torch.tensor([[-2.0, -1.0 + min(log_ratio, 0.0), -1.0]])
        old = torch.tensor([[-2.0, -1.0 - max(log_ratio, 0.0), -1.0]])
        batch = Batch(lp, old, torch.tensor([advantage]), torch.ones(1, 3, dtype=torch.bool), None)
        value, gradient = value_and_gradient(LOSSES[name](), batch)
        assert math.isfinite(value) and gradient.isfinite().all()
        if advantage == 0.0 and name not in PENALISED:
            assert value == 0 and (gradient == 0).all()

    @pytest.mark.parametrize("name", [name for name in LOSSES if name not in SHARING])
    def test_a_token_with_a_log_ratio_beyond_float32_leaves_the_other_tokens_alone(self, name):
        batch = random_batch(7, n_rows=2, length=4, off_policy=0.1).to(torch.float32)
        batch = batch._replace(completion_mask=torch.ones(2, 4, dtype=torch.bool), advantages=torch.tensor([-1.0, 1.0]))
        _, expected = value_and_gradient(LOSSES[name](), batch)
        batch.old_logprobs[0, 2] -= 200
        _, gradient = value_and_gradient(LOSSES[name](), batch)
        others = torch.ones(2, 4, dtype=torch.bool)
        others[0, 2] = False
        torch.testing.assert_close(gradient[others], expected[others], rtol=0, atol=0)

    @pytest.mark.parametrize("name", CLIPPED)
    def test_delta_tames_what_the_clip_range_lets_through(self, name):
        lp = torch.zeros(1, 1)
        batch = Batch(lp, lp - 3.0, torch.tensor([-1.0]), torch.ones(1, 1, dtype=torch.bool), None)
        count = 1.0
        assert value_and_gradient(LOSSES[name](), batch, denominator=count)[0] == pytest.approx(math.exp(3))
        value, gradient = value_and_gradient(LOSSES[name](delta=4.0), batch, denominator=count)
        assert value == pytest.approx(4.0) and gradient.item() == 0

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_a_reference_that_finds_a_token_far_likelier_gives_finite_numbers(self, estimator):
        lp = torch.tensor([[-150.0, -1.0]])
        mask = torch.ones(1, 2, dtype=torch.bool)
        batch = Batch(lp, lp, torch.tensor([0.0]), mask, torch.tensor([[-1.0, -1.0]]))
        loss = LOSSES["grpo"](beta=0.5, kl=ESTIMATORS[estimator]())
        value, gradient = value_and_gradient(loss, batch)
        assert math.isfinite(value) and gradient.isfinite().all()
        assert all(metric.isfinite() for metric in loss(*batch).metrics.values())

    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("advantage", [1.0, math.nan])
    def test_a_sequence_without_tokens_adds_nothing(self, name, advantage):
        batch = random_batch(8)
        batch.completion_mask[2] = False
        batch.advantages[2] = advantage
        batch.logprobs[2], batch.ref_logprobs[2] = math.nan, math.inf
        loss = LOSSES[name](beta=0.1)
        value, gradient = value_and_gradient(loss, batch)
        alone = [0, 1, 3, 4, 5]
        expected, slope = value_and_gradient(
            loss, batch.rows(alone), denominator=loss.denominator(batch.completion_mask)
        )
        assert value == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(gradient[alone], slope)
        assert (gradient[2] == 0).all()

    @pytest.mark.parametrize("name", LOSSES)
    def test_without_any_token_loss_gradient_and_metrics_are_0(self, name):
        batch = random_batch(9)
        batch.completion_mask[:] = False
        loss = LOSSES[name](beta=0.1)
        value, gradient = value_and_gradient(loss, batch)
        assert value == 0 and (gradient == 0).all()
        assert all(metric == 0 for metric in computed(loss, batch).metrics.values())
        assert value_and_gradient(loss, batch.rows(slice(0, 0)))[0] == 0
        assert value_and_gradient(loss, batch, denominator=0)[0] == 0

    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, name, dtype):
        batch = random_batch(10).to(dtype)
        loss = LOSSES[name](beta=0.1)
        value, gradient = value_and_gradient(loss, batch)
        expected, slope = value_and_gradient(loss, batch.to(torch.float32))
        assert computed(loss, batch).loss.dtype == torch.float32
        assert value == expected
        if loss.needs_entropies:  # where the two parts of the gradient meet, they are rounded one by one
            torch.testing.assert_close(gradient, slope.to(dtype))
        else:
            assert torch.equal(gradient, slope.to(dtype))


class TestErrors:
    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize(
        ("field", "shape"),
        [
            ("old_logprobs", (6, 1)),
            ("old_logprobs", (1, 9)),
            ("completion_mask", (6, 8)),
            ("completion_mask", (9,)),
            ("ref_logprobs", (6, 1)),
            ("advantages", (6, 1)),
            ("advantages", (1,)),
            ("advantages", (6, 9)),
            ("advantages", ()),
        ],
    )
    def test_shapes_that_differ_are_refused_by_name_and_never_broadcast(self, name, field, shape):
        batch = random_batch(0)
        wrong = torch.ones(shape, dtype=getattr(batch, field).dtype)
        with pytest.raises(ValueError, match=rf"^{field}: got shape \[{', '.join(map(str, shape))}\].*\[6, 9\]"):
            LOSSES[name]()(*batch._replace(**{field: wrong}), entropies=torch.ones(6, 9))

    def test_log_probabilities_of_one_sequence_need_a_batch_axis(self):
        row = random_batch(0).rows(0)
        with pytest.raises(ValueError, match=r"logprobs: got shape \[9\], expected \[B, T\]"):
            LOSSES["grpo"]()(*row)

    def test_sampling_weights_per_sequence_are_refused(self):
        with pytest.raises(ValueError, match=r"sampling_weights: got shape \[6, 1\].*\[6, 9\]"):
            LOSSES["grpo"]()(*random_batch(0), sampling_weights=torch.ones(6, 1))

    def test_a_denominator_per_sequence_is_refused(self):
        with pytest.raises(ValueError, match=r"denominator: got shape \[6\], expected a scalar"):
            LOSSES["grpo"]()(*random_batch(0), denominator=torch.ones(6))

    @pytest.mark.parametrize("name", LOSSES)
    def test_a_penalty_without_a_reference_is_refused(self, name):
        loss = LOSSES[name](beta=0.1)
        assert loss.needs_reference and not LOSSES[name]().needs_reference
        with pytest.raises(ValueError, match="ref_logprobs: got None"):
            loss(*random_batch(0)._replace(ref_logprobs=None), entropies=torch.ones(6, 9))
