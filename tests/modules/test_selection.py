"""Training on a part of what was sampled: what is learned from, what is logged, and what it costs."""

import json
import math

import lightning as L
import pytest
import torch
from helpers.advantage_reference import group_advantages
from modules.ddp_driver import half_equal
from modules.grpo_runs import constant, graded, grpo, identical, prompt_data, scalars, train

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.callbacks import CompletionFiles
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.run_record.completions import parts_of, read_part
from grpovi_lightning.run_record.layout import COMPLETIONS_FOLDER
from grpovi_lightning.selection import (
    HistorySkipping,
    MaxVarianceSelection,
    RandomSelection,
    TopSelection,
    VarianceCurriculum,
)

SPARE = {"spare_prompts_per_step": 3}


@pytest.fixture(scope="module")
def plain(policy_folder, tmp_path_factory):
    """Three steps of GRPO."""
    return train(grpo(policy_folder), tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({"selection": MaxVarianceSelection(4)}, {}),
        ({"selection": TopSelection(4)}, {}),
        ({"selection": RandomSelection(4)}, {}),
        ({"resampling": VarianceCurriculum(0.0, 8, 0.5)}, {}),
        ({"resampling": HistorySkipping(1.0, 1.0)}, SPARE),
    ],
    ids=["max variance", "top", "random", "curriculum", "skipping"],
)
def test_with_neutral_settings_three_steps_are_those_of_grpo_to_the_last_bit(
    policy_folder, tmp_path, plain, settings, data
):
    found = train(grpo(policy_folder, **settings), tmp_path, data=prompt_data(tmp_path / "data", **data))
    assert len(found.outputs) == 3
    for mine, theirs in zip(found.outputs, plain.outputs, strict=True):
        assert torch.equal(mine.rollout.completion_ids, theirs.rollout.completion_ids)
        assert torch.equal(mine.rewards, theirs.rewards) and torch.equal(mine.advantages, theirs.advantages)
    assert all(map(identical, found.weights, plain.weights))


class Tokens(L.Callback):
    """Counts the tokens that go through the policy with gradients."""

    def on_train_start(self, trainer, pl_module):
        self.count = 0
        pl_module.policy.model.model.layers[0].register_forward_pre_hook(self.add)

    def add(self, layer, inputs):
        self.count += torch.is_grad_enabled() * inputs[0].shape[:2].numel()


def test_only_the_kept_are_compared_and_updated_on_and_all_are_logged(policy_folder, tmp_path, plain):
    tokens = Tokens()
    module = grpo(policy_folder, selection=MaxVarianceSelection(2))
    (found,) = train(module, tmp_path, 1, tokens).outputs
    (whole,) = plain.outputs[:1]

    pool, kept = found.pool, found.scored
    assert torch.equal(pool.rewards, whole.rewards), "as many were sampled"
    ends = [[float(group.min()), float(group.max())] for group in pool.rewards]
    assert [sorted(group) for group in kept.rewards.tolist()] == ends, (
        "of two, the largest variance is that of the ends"
    )
    expected = torch.tensor(group_advantages(kept.rewards.tolist(), "group"))
    torch.testing.assert_close(found.advantages, expected)

    rollout = found.experience.rollout
    n_rows, length = rollout.completion_ids.shape
    assert (n_rows, rollout.group_size) == (3 * 2, 2)
    assert tokens.count == rollout.prompt_ids.numel() + n_rows * (length - 1)  # the last token predicts nothing

    logged = {tag: values[0] for tag, values in scalars(tmp_path).items()}
    assert logged["reward"] == pytest.approx(float(whole.rewards.mean()))
    assert logged["reward_std"] == pytest.approx(float(whole.rewards.std(dim=1).mean()))
    assert logged["completions/mean_length"] == pytest.approx(float(whole.rollout.lengths.float().mean()))
    assert logged["num_tokens"] == int(whole.rollout.lengths.sum())
    assert logged["advantages/std"] == pytest.approx(float(expected.std()))


def test_what_was_not_kept_is_recorded_without_an_advantage(policy_folder, tmp_path):
    module = grpo(policy_folder, selection=MaxVarianceSelection(2))
    (found,) = train(module, tmp_path, 1, CompletionFiles()).outputs
    (part,) = [part for part in parts_of(tmp_path / COMPLETIONS_FOLDER) if part.split == "train"]
    rows = {(row["row"], row["member"]): row for row in read_part(part.path).to_pylist()}
    assert len(rows) == 3 * 4
    for p, number in enumerate(found.rollout.prompts.indices.tolist()):
        group = [rows[number, member] for member in range(4)]
        assert [row["reward"] for row in group] == found.pool.rewards[p].tolist()
        kept = [row for row in group if not math.isnan(row["advantage"])]
        assert [row["completion"] for row in kept] == found.rollout.texts[2 * p : 2 * p + 2]
        assert [row["advantage"] for row in kept] == found.advantages[p].tolist()
        assert [row["adjusted"] for row in kept] == [row["reward"] for row in kept] == found.rewards[p].tolist()
        assert sum(math.isnan(row["adjusted"]) for row in group) == 2


def test_the_adjustment_acts_on_the_kept_alone(policy_folder, tmp_path):
    module = grpo(policy_folder, selection=TopSelection(3), adjustment=VarianceIncrease())
    (found,) = train(module, tmp_path, 1).outputs
    largest = found.pool.rewards.sort(dim=1).values[:, 1:]
    assert torch.equal(found.rewards.sort(dim=1).values, largest)
    assert torch.equal(found.adjusted.increase.rewards, found.rewards)
    lower, upper = float(module.adjustment.range.lower), float(module.adjustment.range.upper)
    assert (lower, upper) == (float(largest.min()), float(largest.max()))


def test_groups_that_are_left_out_move_nothing_and_are_logged(policy_folder, tmp_path):
    module = grpo(policy_folder, half_equal, resampling=VarianceCurriculum(0.001, 8, 0.5))
    found = train(module, tmp_path, 1, data=prompt_data(tmp_path / "data", prompts_per_step=4)).outputs[0]
    left_out = found.pool.left_out
    assert 0 < int(left_out.sum()) < 4
    assert left_out.tolist() == [len(set(group)) == 1 for group in found.pool.rewards.tolist()]
    trained = found.experience.rollout.grouped(found.experience.loss_mask.any(dim=1)).any(dim=1)
    assert trained.tolist() == (~left_out).tolist()
    logged = {tag: values[0] for tag, values in scalars(tmp_path).items()}
    assert logged["frac_groups_left_out"] == float(left_out.float().mean()) and logged["frac_groups_resampled"] == 0.0
    assert logged["reward"] == pytest.approx(float(found.pool.rewards.mean())) and logged["frac_unscorable"] == 0.0


def test_a_step_without_anything_to_learn_from_ends_the_run_in_one_line_and_its_batch_is_kept(policy_folder, tmp_path):
    module = grpo(policy_folder, constant, resampling=VarianceCurriculum(0.5, 8, 0.5))
    with pytest.raises(
        TrainingError, match=r"no prompt to learn from.*failed_selection_step_0.*mend the selection"
    ) as e:
        train(module, tmp_path)
    assert "\n" not in str(e.value)
    content = json.loads((tmp_path / "failed_selection_step_0_rank_0.json").read_text())
    assert [len(row["completions"]) for row in content["rows"]] == [4, 4, 4]


@pytest.mark.parametrize(
    ("make", "data"),
    [(lambda: VarianceCurriculum(0.01, 2, 0.5), {}), (lambda: HistorySkipping(0.3, 0.1), SPARE)],
    ids=["curriculum", "skipping"],
)
def test_a_run_that_is_continued_selects_the_same_prompts(policy_folder, tmp_path, make, data):
    def run(folder, steps, **settings):
        module = grpo(policy_folder, half_equal, resampling=make())
        every = {"checkpoint_every": 3, "max_epochs": -1}
        return train(module, folder, steps, data=prompt_data(tmp_path / "data", **data), **every, **settings)

    straight = run(tmp_path / "straight", 6)
    run(tmp_path / "cut", 3)
    resumed = run(tmp_path / "cut", 6, ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")

    assert sum(outcome.pool.n_replaced for outcome in resumed.outputs) > 0
    for later, whole in zip(resumed.outputs, straight.outputs[3:], strict=True):
        assert later.rollout.prompts.indices.tolist() == whole.rollout.prompts.indices.tolist()
    assert identical(resumed.weights[-1], straight.weights[-1])
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "straight")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selection": MaxVarianceSelection(5)}, "MaxVarianceSelection keep: got 5, expected at most group_size 4"),
        (
            {"selection": RandomSelection(2), "adjustment": VarianceIncrease()},
            "VarianceIncrease cannot take effect: .*group_size 2",
        ),
    ],
)
def test_sizes_that_cannot_work_are_refused_at_once(policy_folder, settings, message):
    with pytest.raises(UserError, match=message):
        grpo(policy_folder, graded, **settings)
