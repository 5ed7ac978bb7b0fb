"""Two processes that share a batch do what one process does with the whole of it."""

from pathlib import Path

import pytest
import torch
from helpers.drivers import run_driver
from modules.ddp_driver import VARIANTS
from modules.grpo_runs import identical, relative_difference, scalars
from transformers import AutoModelForCausalLM

DRIVER = Path(__file__).parent / "ddp_driver.py"


@pytest.fixture(scope="module")
def runs(policy_folder, tmp_path_factory):
    """The folder in which one process and two have trained every variant."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, devices in (("one", 1), ("two", 2)):
        (folder / name).mkdir()
        run_driver(DRIVER, folder / name, policy_folder, folder / name, devices)
    return folder


def saved(folder, devices):
    return [torch.load(folder / f"weights_{rank}.pt", weights_only=True) for rank in range(devices)]


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "resampling"])
def test_two_processes_end_with_the_parameters_and_metrics_of_one(policy_folder, runs, variant):
    (alone,) = saved(runs / "one" / variant, 1)
    first, second = saved(runs / "two" / variant, 2)

    assert identical(first["weights"], second["weights"])
    assert relative_difference(first["weights"], alone["weights"]) < 1e-5
    initial = dict(AutoModelForCausalLM.from_pretrained(policy_folder).named_parameters())
    moved = [{name: state["weights"][name] - initial[name].detach() for name in initial} for state in (first, alone)]
    assert relative_difference(*moved) < 1e-3
    assert relative_difference(alone["weights"], initial) > 1e-3
    assert identical(first["adjustment"], second["adjustment"]) and identical(first["adjustment"], alone["adjustment"])
    one, two = scalars(runs / "one" / variant), scalars(runs / "two" / variant)
    assert one.keys() == two.keys()
    for tag in one:
        if variant == "zero-advantage groups" and tag == "entropy":  # over the groups that go through a rank's model
            continue
        if variant == "curriculum" and tag in ("num_tokens", "eval/num_tokens"):  # a rank may sample in vain
            continue
        if tag.startswith("sampling/"):  # rounding, and nothing else
            assert max(two[tag].values()) < 1.001
            continue
        # Before the first update policy and reference differ by rounding alone, which a penalty in the reward moves the
        # mean of a group by.
        rounding = 1e-5 if tag.startswith("adjustment/residual") else 1e-6
        assert two[tag] == pytest.approx(one[tag], rel=1e-4, abs=rounding), tag


@pytest.mark.slow
def test_two_processes_resample_together_and_stay_together(runs):
    # Which spare prompts a rank gets differs with the number of ranks, so the result may; the ranks must agree.
    folder = runs / "two" / "resampling"
    first, second = saved(folder, 2)
    assert identical(first["weights"], second["weights"])
    logged = scalars(folder)
    assert max(logged["frac_groups_resampled"].values()) > 0
    assert min(logged["frac_reward_zero_std"].values()) < 0.5
