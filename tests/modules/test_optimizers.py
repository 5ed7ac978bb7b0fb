"""What an optimizer or a schedule refuses is told in one line before models are loaded."""

from functools import partial

import pytest
import torch
from modules.grpo_runs import grpo, prompt_data, trainer

from grpovi_lightning.errors import UserError
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.modules import RewardModelModule, SFTModule
from grpovi_lightning.modules.optimizers import check_optimizer, optimizer_setup

ADAM = partial(torch.optim.AdamW, lr=1e-3)
SCHEDULES = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("optimizer", "schedule", "told"),
    [
        (partial(torch.optim.AdamW, lr=-1.0), None, "optimizer: Invalid learning rate: -1.0"),
        (partial(torch.optim.SGD, lr=0.1, nesterov=True), None, "optimizer: Nesterov momentum requires"),
        (ADAM, partial(SCHEDULES.OneCycleLR, max_lr=0.1, total_steps=-3), "lr_scheduler: .*-3"),
        (ADAM, SCHEDULES.ReduceLROnPlateau, "lr_scheduler: got ReduceLROnPlateau"),
    ],
)
def test_it_is_the_same_line_before_loading_and_after(optimizer, schedule, told):
    for call in (check_optimizer, partial(optimizer_setup, iter([torch.nn.Parameter(torch.zeros(2))]))):
        with pytest.raises(UserError, match=told) as raised:
            call(optimizer, schedule)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["grpo", "sft", "reward_model"])
def test_every_module_asks_before_it_loads_anything(policy_folder, tmp_path, kind):
    wrong = partial(torch.optim.AdamW, lr=-1.0)
    module = {
        "grpo": lambda: grpo(policy_folder, optimizer=wrong),
        "sft": lambda: SFTModule(PretrainedCausalLM(str(policy_folder)), wrong),
        "reward_model": lambda: RewardModelModule(str(policy_folder), optimizer=wrong),
    }[kind]()
    with pytest.raises(UserError, match="Invalid learning rate"):
        module.check_settings(trainer(tmp_path, 1), prompt_data(tmp_path / "data"))


def test_the_trial_draws_no_random_number():
    state = torch.get_rng_state()
    check_optimizer(ADAM, partial(SCHEDULES.StepLR, step_size=1))
    assert torch.equal(torch.get_rng_state(), state)
