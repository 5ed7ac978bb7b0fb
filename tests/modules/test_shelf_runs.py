"""Runs with the adjustments and advantages of the shelf: neutral settings, what is logged, what is refused."""

import json
import math

import numpy as np
import pytest
from helpers import advantage_reference as reference
from modules.grpo_runs import graded, grpo, identical, scalars, train

from grpovi_lightning.adjustment import (
    FixedRange,
    GaussianDithering,
    RangeOnly,
    SigmoidRange,
    Stretch,
    Threshold,
    UniformDithering,
    UniformWeights,
    VarianceIncrease,
)
from grpovi_lightning.advantages import (
    FocalAdvantage,
    GroupAdvantage,
    MaxRLAdvantage,
    OPOAdvantage,
    ReinforcePlusPlusAdvantage,
)
from grpovi_lightning.callbacks import RunStatus
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.losses import GRPOLoss
from grpovi_lightning.rewards import CompositeReward, NormalisedReward, RewardFunction
from grpovi_lightning.rollout import SamplingConfig
from grpovi_lightning.selection import RandomSelection


def positive(prompts, completions, completion_ids, **columns):
    """The graded reward bent into (0, 1)."""
    return [1 / (1 + math.exp(-score)) for score in graded(prompts, completions, completion_ids)]


# Neutral settings.


@pytest.fixture(scope="module")
def plain(policy_folder, tmp_path_factory):
    """Three steps of plain GRPO, by the scaling of the advantages."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        scale: train(grpo(policy_folder, positive, advantage=GroupAdvantage(scale)), folder / scale)
        for scale in ("group", "none")
    }


@pytest.mark.parametrize(
    ("scale", "settings"),
    [
        ("group", {"adjustment": GaussianDithering(0.0)}),
        ("group", {"adjustment": UniformDithering(0.0)}),
        ("none", {"adjustment": Stretch(1.0), "advantage": GroupAdvantage("none")}),
        ("group", {"advantage": FocalAdvantage(0.0)}),
    ],
    ids=["gaussian width 0", "uniform width 0", "factor 1", "gamma 0"],
)
def test_a_neutral_setting_is_grpo_to_the_bit_over_three_steps(policy_folder, tmp_path, plain, scale, settings):
    found = train(grpo(policy_folder, positive, **settings), tmp_path)
    assert len(found.weights) == 3
    for step in range(3):
        assert identical(found.weights[step], plain[scale].weights[step])
    assert not any(output.adjusts for output in found.outputs)
    assert not identical(found.weights[-1], found.before)


# What is logged.


def grouped(output):
    """(rewards, lengths) of a step as lists."""
    return output.rewards.tolist(), output.rollout.grouped(output.rollout.lengths).tolist()


def test_a_run_with_noise_logs_what_the_noise_did_and_not_what_grpovi_would_have_done(policy_folder, tmp_path):
    module = grpo(policy_folder, adjustment=GaussianDithering(0.5), loss=GRPOLoss())
    recorded = train(module, tmp_path, 2, RunStatus(tmp_path, 1))
    logged = scalars(tmp_path)
    for step, output in enumerate(recorded.outputs):
        raw, noisy = (values.double().numpy() for values in (output.rewards, output.adjusted.rewards))
        first, second = (np.array(reference.group_advantages(values.tolist(), "group")) for values in (raw, noisy))
        expected = {
            "reward": raw.mean(),
            "adjustment/uniform_variance_before": raw.var(axis=1).mean(),
            "adjustment/uniform_variance_after": noisy.var(axis=1).mean(),
            "adjustment/variance_after": noisy.var(axis=1).mean(),
            "adjustment/range_lower": min(output.rewards.min().item() for output in recorded.outputs[: step + 1]),
            "adjustment/frac_groups_changed": 1.0,
            "adjustment/effective_weights": 4.0,
            "adjustment/advantage_cosine": (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()),
            "adjustment/sign_flips": np.mean(np.sign(first) * np.sign(second) < 0),
            "adjustment/residual_mean": max(
                abs(after.mean() - before.mean()) for before, after in zip(raw, noisy, strict=True)
            )
            / np.ptp([output.rewards.numpy() for output in recorded.outputs[: step + 1]]),
        }
        for tag, value in expected.items():
            assert logged[tag][step] == pytest.approx(value, rel=1e-4, abs=1e-6), tag
        assert abs(noisy - raw).min() > 0
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["adjustment"].endswith("GaussianDithering") and status["adjusts"] is True


def test_a_run_that_adjusts_is_told_that_this_is_logged_and_not_grpovi(policy_folder, tmp_path, capsys):
    train(grpo(policy_folder, adjustment=GaussianDithering(0.5), loss=GRPOLoss()), tmp_path, 1)
    assert "and what the adjustment did is logged for uniform weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("advantage", "expected", "selection"),
    [
        (OPOAdvantage(), reference.length_weighted_advantages, None),
        (OPOAdvantage(), reference.length_weighted_advantages, RandomSelection(3)),
        (ReinforcePlusPlusAdvantage(), reference.whitened_advantages, None),
    ],
    ids=["opo", "opo of three of four", "reinforce++"],
)
def test_advantages_of_lengths_get_those_of_the_completions_in_training_and_in_what_is_logged(
    policy_folder, tmp_path, advantage, expected, selection
):
    adjustment = VarianceIncrease(UniformWeights(), FixedRange(-3.0, 3.0))
    sampling = SamplingConfig(max_completion_length=40, temperature=0.9)  # so long that some end before
    module = grpo(policy_folder, adjustment=adjustment, advantage=advantage, selection=selection, sampling=sampling)
    recorded = train(module, tmp_path, 2)
    logged = scalars(tmp_path)
    for step, output in enumerate(recorded.outputs):
        raw, lengths = grouped(output)
        assert len({n for group in lengths for n in group}) > 1
        before, after = (np.array(expected(r, lengths)) for r in (raw, output.adjusted.rewards.tolist()))
        np.testing.assert_allclose(output.advantages.numpy(), after, rtol=1e-5, atol=1e-6)
        cosine = (before * after).sum() / np.sqrt((before**2).sum() * (after**2).sum())
        assert logged["adjustment/advantage_cosine"][step] == pytest.approx(cosine, rel=1e-4)
        assert logged["adjustment/sign_flips"][step] == pytest.approx(np.mean(np.sign(before) * np.sign(after) < 0))


def test_where_raw_rewards_are_outside_the_domain_the_run_goes_on_and_says_that_it_cannot_compare(
    policy_folder, tmp_path
):
    def negative(**arguments):
        return [score - 2.0 for score in graded(**arguments)]

    module = grpo(policy_folder, negative, adjustment=RangeOnly(SigmoidRange()), advantage=MaxRLAdvantage())
    recorded = train(module, tmp_path, 2)
    assert all(bool((output.rewards < 0).any()) for output in recorded.outputs)
    logged = scalars(tmp_path)
    for tag in ("adjustment/advantage_cosine", "adjustment/sign_flips"):
        assert all(math.isnan(value) for value in logged[tag].values()) and len(logged[tag]) == 2
    assert all(math.isfinite(value) for value in logged["adjustment/variance_after"].values())
    assert not identical(recorded.weights[-1], recorded.before)


# What is refused.


@pytest.mark.parametrize(
    ("advantage", "message"),
    [
        (
            MaxRLAdvantage(),
            "MaxRLAdvantage: got reward -3 for completion 3 of prompt 1, expected rewards of at least 0",
        ),
        (
            FocalAdvantage(1.0),
            "FocalAdvantage: got reward -3 for completion 3 of prompt 1, expected rewards from 0 to 1",
        ),
    ],
)
def test_a_reward_outside_the_domain_stops_the_run_before_the_update_and_keeps_the_batch(
    policy_folder, tmp_path, advantage, message
):
    calls = []

    def turns_negative(prompts, completions, completion_ids, **columns):
        calls.append(len(completions))
        return [0.05 * i for i in range(7)] + [-3.0 if len(calls) == 2 else 0.5] + [0.01 * i for i in range(4)]

    module = grpo(policy_folder, turns_negative, advantage=advantage)
    with pytest.raises(TrainingError) as error:
        train(module, tmp_path)
    kept = tmp_path / "failed_reward_step_1_rank_0.json"
    assert str(error.value).startswith(message) and str(kept) in str(error.value) and "\n" not in str(error.value)
    assert int(module.n_steps) == 1
    content = json.loads(kept.read_text())
    assert content["step"] == 1 and content["error"].startswith(message)
    assert [len(row["completions"]) for row in content["rows"]] == [4, 4, 4]


def normalised():
    return NormalisedReward(RewardFunction(graded))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"adjustment": Stretch(2.0)},
            "Stretch cannot take effect: got GroupAdvantage, whose advantages are divided by the spread of the rewards",
        ),
        (
            {"adjustment": Stretch(2.0), "advantage": ReinforcePlusPlusAdvantage()},
            "Stretch cannot take effect: got ReinforcePlusPlusAdvantage",
        ),
        (
            {"adjustment": Stretch(2.0), "advantage": FocalAdvantage(1.0)},
            "Stretch cannot take effect: got FocalAdvantage",
        ),
        (
            {"adjustment": Threshold(UniformWeights()), "group_size": 2},
            "Threshold cannot take effect: got group_size 2",
        ),
        (
            {"reward": normalised(), "advantage": MaxRLAdvantage()},
            r"MaxRLAdvantage: got any rewards \(NormalisedReward, IdentityAdjustment\), expected rewards of at least 0",
        ),
        (
            {
                "reward": CompositeReward([normalised(), RewardFunction(graded, "gold")], [2.0, 0.0]),
                "advantage": FocalAdvantage(1.0),
            },
            r"FocalAdvantage: got any rewards \(CompositeReward, IdentityAdjustment\), expected rewards from 0 to 1",
        ),
        (
            {"adjustment": GaussianDithering(0.1), "advantage": FocalAdvantage(1.0)},
            r"FocalAdvantage: got any rewards \(RewardFunction, GaussianDithering\), expected rewards from 0 to 1",
        ),
        (
            {"adjustment": VarianceIncrease(range=FixedRange(-1.0, 1.0)), "advantage": MaxRLAdvantage()},
            r"MaxRLAdvantage: got rewards from -1 to 1 \(RewardFunction, VarianceIncrease\)",
        ),
        (
            {"adjustment": Threshold(range=FixedRange(0.0, 2.0)), "advantage": FocalAdvantage(1.0)},
            r"FocalAdvantage: got rewards from 0 to 2 \(RewardFunction, Threshold\), expected rewards from 0 to 1",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(policy_folder, settings, message):
    with pytest.raises(UserError, match=message) as error:
        grpo(policy_folder, **settings)
    assert "\n" not in str(error.value) and str(error.value).count("; ") == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"adjustment": Stretch(2.0), "advantage": GroupAdvantage("batch")},
        {"adjustment": Stretch(2.0), "advantage": OPOAdvantage()},
        {"adjustment": GaussianDithering(0.1), "group_size": 2},  # it turns orders, and moves equal rewards apart
        {"adjustment": Threshold(UniformWeights()), "advantage": MaxRLAdvantage(), "group_size": 2},
        {"adjustment": RangeOnly(SigmoidRange()), "reward": normalised(), "advantage": FocalAdvantage(1.0)},
        {"adjustment": VarianceIncrease(range=FixedRange(0.0, 1.0)), "advantage": FocalAdvantage(1.0)},
        {"reward": CompositeReward([normalised(), RewardFunction(graded, "gold")]), "advantage": MaxRLAdvantage()},
        {"advantage": FocalAdvantage(1.0)},  # what a function returns is not known
    ],
)
def test_what_can_go_together_is_taken(policy_folder, settings):
    grpo(policy_folder, **settings)
