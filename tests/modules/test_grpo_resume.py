"""A run that is continued from a checkpoint is the run that was never stopped."""

import lightning as L
import pytest
import torch
from helpers.threads import two_threads  # noqa: F401  applies to all tests here
from modules.grpo_runs import graded, grpo, identical, scalars, train

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.rewards import CompositeReward, RewardFunction, RewardModel


def settings(reward_folder):
    reward = CompositeReward([RewardModel(str(reward_folder)), RewardFunction(graded, name="graded")], [1.0, 0.5])
    return {
        "reward": reward,
        "adjustment": VarianceIncrease(),
        "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6),
    }


@pytest.mark.parametrize("validate_every", [2, 3], ids=["between evaluations", "at an evaluation"])
def test_three_steps_and_three_more_equal_six_to_the_last_bit(policy_folder, reward_folder, tmp_path, validate_every):
    straight_module = grpo(policy_folder, **settings(reward_folder))
    every = {"validate_every": validate_every, "checkpoint_every": 3, "max_epochs": -1}
    straight = train(straight_module, tmp_path / "straight", 6, **every)
    stopped = tmp_path / "stopped"
    train(grpo(policy_folder, **settings(reward_folder)), stopped, 3, **every)

    resumed_module = grpo(policy_folder, **settings(reward_folder))
    resumed = train(
        resumed_module,
        stopped,
        6,
        ckpt_path=stopped / "checkpoints" / "last.ckpt",
        **every,
    )

    assert len(resumed.outputs) == 3
    assert [list(p.texts) for p in resumed.prompts] == [list(p.texts) for p in straight.prompts[3:]]
    for later, whole in zip(resumed.outputs, straight.outputs[3:], strict=True):
        assert torch.equal(later.rollout.completion_ids, whole.rollout.completion_ids)
        assert torch.equal(later.rewards, whole.rewards) and torch.equal(later.advantages, whole.advantages)
        assert torch.equal(later.adjusted.rewards, whole.adjusted.rewards)
    assert identical(resumed.weights[-1], straight.weights[-1])
    for name in ("n_steps", "n_tokens", "adjustment.range.lower", "adjustment.range.upper"):
        first, second = (module.state_dict()[name] for module in (resumed_module, straight_module))
        assert torch.equal(first, second), name
    assert int(resumed_module.n_steps) == 6
    assert scalars(stopped) == scalars(tmp_path / "straight")


@pytest.mark.parametrize("step", [4, 6], ids=["of the fourth step", "at the end"])
def test_a_run_stopped_in_an_evaluation_comes_to_it_again(policy_folder, tmp_path, step):
    class Interrupt(L.Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if int(pl_module.n_steps) == step and batch_idx == 1:
                raise KeyboardInterrupt

    every = {"validate_every": 2, "checkpoint_every": 2, "max_epochs": -1}
    straight = train(grpo(policy_folder), tmp_path / "straight", 6, **every)
    cut = tmp_path / "cut"
    with pytest.raises(SystemExit):
        train(grpo(policy_folder), cut, 6, Interrupt(), **every)
    last = torch.load(cut / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == step - 2

    resumed = train(grpo(policy_folder), cut, 6, ckpt_path=cut / "checkpoints" / "last.ckpt", **every)

    assert len(resumed.outputs) == 6 - (step - 2)
    assert identical(resumed.weights[-1], straight.weights[-1])
    assert scalars(cut) == scalars(tmp_path / "straight")


def test_a_run_stopped_between_steps_by_ctrl_c_continues_the_same(policy_folder, tmp_path):
    class Interrupt(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 4:
                raise KeyboardInterrupt

    straight = train(grpo(policy_folder), tmp_path / "straight", 6, validate_every=2, checkpoint_every=2)
    with pytest.raises(SystemExit):
        train(grpo(policy_folder), tmp_path / "cut", 6, Interrupt(), validate_every=2, checkpoint_every=2)

    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed = train(grpo(policy_folder), tmp_path / "cut", 6, validate_every=2, checkpoint_every=2, ckpt_path=last)

    assert len(resumed.outputs) == 2
    assert identical(resumed.weights[-1], straight.weights[-1])
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "straight")


def test_steps_with_several_updates_each_resume_too(policy_folder, tmp_path):
    every = {"checkpoint_every": 4, "max_epochs": -1}
    straight = train(grpo(policy_folder, num_iterations=2), tmp_path / "straight", 8, **every)
    train(grpo(policy_folder, num_iterations=2), tmp_path / "stopped", 4, **every)

    resumed = train(
        grpo(policy_folder, num_iterations=2),
        tmp_path / "stopped",
        8,
        ckpt_path=tmp_path / "stopped" / "checkpoints" / "last.ckpt",
        **every,
    )

    assert len(straight.outputs) == 4 and len(resumed.outputs) == 2
    assert identical(resumed.weights[-1], straight.weights[-1])


def test_the_frozen_models_are_not_in_the_checkpoint(policy_folder, reward_folder, tmp_path):
    module = grpo(policy_folder, **settings(reward_folder))
    train(module, tmp_path, 1, checkpoint_every=1)

    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    expected = {
        k
        for k in module.state_dict()
        if k.startswith(("policy.", "adjustment.", "counterfactual.", "n_", "train_seconds"))
    }
    assert saved.keys() == expected
    assert any(k.startswith("reference.") for k in module.state_dict())
    assert any(k.startswith("reward.") for k in module.state_dict())


def test_a_checkpoint_of_another_algorithm_is_not_taken_half(policy_folder, reward_folder, tmp_path):
    train(grpo(policy_folder), tmp_path, 1, checkpoint_every=1)

    with pytest.raises(RuntimeError, match=r"Missing key.*adjustment\.range\.lower"):
        train(
            grpo(policy_folder, **settings(reward_folder)),
            tmp_path,
            2,
            ckpt_path=tmp_path / "checkpoints" / "last.ckpt",
        )
