"""Hyper-parameters: defaults, what is refused, and YAML."""

import math

import pytest
from jsonargparse import ArgumentParser
from losses.loss_batches import CLIPPED, LOSSES

from grpovi_lightning import losses
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses import (
    K2,
    K3,
    BNPOLoss,
    CISPOLoss,
    DAPOLoss,
    DPPOTVLoss,
    DrGRPOLoss,
    EntropyBonus,
    GMPOLoss,
    GRPOLoss,
    GSPOLoss,
    PolicyLoss,
    SAPOLoss,
)
from grpovi_lightning.losses.clipped import ClippedLoss


@pytest.mark.parametrize(
    ("loss", "epsilon", "epsilon_high"),
    [
        (GRPOLoss(), 0.2, 0.2),
        (GRPOLoss(epsilon=0.1), 0.1, 0.1),
        (BNPOLoss(), 0.2, 0.2),
        (DrGRPOLoss(8), 0.2, 0.2),
        (DAPOLoss(), 0.2, 0.28),
        (DAPOLoss(epsilon_high=None), 0.2, 0.2),
        (GSPOLoss(), 3e-4, 4e-4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PolicyLoss) else str(value),
)
def test_the_default_clip_ranges_are_those_of_the_papers(loss, epsilon, epsilon_high):
    assert (loss.epsilon, loss.epsilon_high, loss.delta) == (epsilon, epsilon_high, None)
    assert loss.beta == 0 and not loss.needs_reference and isinstance(loss.kl, K3)


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("bad", [{"epsilon": 0.0}, {"epsilon": 1.5}, {"epsilon_high": -0.1}, {"epsilon": math.nan}])
def test_a_clip_range_that_is_none_is_refused(name, bad):
    with pytest.raises(UserError, match="clip range: got"):
        LOSSES[name](**bad)


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("delta", [0.0, 1.0, 1.4, math.nan])
def test_a_delta_within_the_clip_range_is_refused(name, delta):
    with pytest.raises(UserError, match=rf"delta: got {delta}, expected above 1 \+ epsilon_high = 1\.4"):
        LOSSES[name](epsilon_high=0.4, delta=delta)
    assert LOSSES[name](epsilon_high=0.4, delta=1.41).delta == 1.41


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_a_beta_that_is_none_is_refused(name, beta):
    with pytest.raises(UserError, match="beta: got"):
        LOSSES[name](beta=beta)


@pytest.mark.parametrize("cap", [0.0, 0.28, -5.0, math.nan])
def test_cispo_refuses_a_clip_range_in_place_of_its_cap(cap):
    with pytest.raises(UserError, match=rf"epsilon_high: got {cap}, expected at least 1.*ratio itself"):
        CISPOLoss(epsilon_high=cap)


@pytest.mark.parametrize("length", [0, -3, math.nan, math.inf])
def test_dr_grpo_refuses_a_length_that_is_none(length):
    with pytest.raises(UserError, match="max_completion_length: got"):
        DrGRPOLoss(length)


def from_yaml(name, settings):
    """The loss that `model.init_args.loss` makes."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=PolicyLoss)
    parsed = parser.parse_object({"loss": {"class_path": f"grpovi_lightning.losses.{name}", "init_args": settings}})
    instantiate = (
        getattr(parser, "instantiate", None) or parser.instantiate_classes
    )  # its name before jsonargparse 4.49
    return instantiate(parsed).loss


@pytest.mark.parametrize("name", [n for n in losses.__all__ if n.endswith("Loss") and n != "PolicyLoss"])
def test_every_loss_and_its_penalty_can_be_chosen_in_yaml(name):
    settings = {"beta": 0.1, "kl": {"class_path": "grpovi_lightning.losses.K2"}}
    settings |= {"max_completion_length": 64} if name == "DrGRPOLoss" else {}
    settings |= {"delta": 2.0} if issubclass(getattr(losses, name), ClippedLoss) else {}
    loss = from_yaml(name, settings)
    assert type(loss) is getattr(losses, name)
    assert loss.beta == 0.1 and isinstance(loss.kl, K2)


def test_a_bonus_is_put_beside_any_loss_in_yaml():
    inner = {"class_path": "grpovi_lightning.losses.SAPOLoss", "init_args": {"beta": 0.1, "sapo_temperature_neg": 2.0}}
    loss = from_yaml("EntropyBonus", {"loss": inner, "entropy_coef": 0.01})
    assert type(loss.loss) is SAPOLoss and (loss.beta, loss.entropy_coef) == (0.1, 0.01)
    assert loss.loss.sapo_temperature_neg == 2.0 and loss.penalties == ["beta 0.1", "entropy_coef 0.01"]


@pytest.mark.parametrize("name", ["sapo_temperature_pos", "sapo_temperature_neg"])
@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_sapo_refuses_a_temperature_that_is_none(name, tau):
    with pytest.raises(UserError, match=rf"^{name}: got {tau}, expected a finite number above 0$"):
        SAPOLoss(**{name: tau})


@pytest.mark.parametrize("bad", [{"epsilon": 0.0}, {"epsilon": math.inf}, {"epsilon_high": -0.1}])
def test_gmpo_refuses_a_clip_range_that_is_none(bad):
    with pytest.raises(UserError, match="clip range: got epsilon"):
        GMPOLoss(**bad)
    assert (GMPOLoss().epsilon, GMPOLoss().epsilon_high) == (0.4, 0.4)


@pytest.mark.parametrize("bad", [{"epsilon": 0.0}, {"epsilon": 1.1}, {"epsilon_high": -0.1}, {"epsilon": math.nan}])
def test_dppo_refuses_a_change_of_probability_that_is_none(bad):
    with pytest.raises(UserError, match="trust region: got epsilon"):
        DPPOTVLoss(**bad)
    with pytest.raises(UserError, match=r"max_ratio: got 0\.5, expected at least 1"):
        DPPOTVLoss(max_ratio=0.5)


@pytest.mark.parametrize("coefficient", [-0.1, math.nan, math.inf])
def test_an_entropy_coefficient_that_is_none_is_refused(coefficient):
    with pytest.raises(UserError, match=f"entropy_coef: got {coefficient}, expected a finite number of at least 0"):
        EntropyBonus(GRPOLoss(), coefficient)
