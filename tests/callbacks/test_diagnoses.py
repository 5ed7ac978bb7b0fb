import copy
import json
import time
import warnings

import lightning as L
import pytest
from modules.grpo_runs import binary, constant, graded, grpo, scalars, train

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.adjustment.ranges import FixedRange
from grpovi_lightning.adjustment.weights import UniformWeights
from grpovi_lightning.callbacks import Diagnoses, RewardWatch, RunStatus
from grpovi_lightning.diagnoses import RULES, is_read
from grpovi_lightning.rewards import CompositeReward, RewardFunction

FLAT = "groups without reward variance"
CUT = "completions cut off"  # of this policy, which is not trained to end, they are


def kinds(texts):
    return [text.partition(":")[0] for text in texts]


def run(policy_folder, folder, reward=graded, steps=5, callbacks=(), module=None, **settings):
    """The warnings on the terminal that are diagnoses, those in the record, and the callback."""
    diagnoses = Diagnoses()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = module or grpo(policy_folder, reward)
        train(module, folder, steps, RunStatus(folder, 1), diagnoses, *callbacks, **settings)
    shown = [str(w.message) for w in caught if kinds([str(w.message)])[0] in {rule.kind for rule in RULES}]
    return shown, json.loads((folder / "status.json").read_text())["warnings"], diagnoses


def test_a_disease_is_warned_about_once_and_in_the_record(policy_folder, tmp_path):
    shown, recorded, _ = run(policy_folder, tmp_path, constant, steps=12)

    assert kinds(recorded) == [FLAT, CUT] and shown == recorded
    assert "100 % of the groups had no two different rewards over step 0 to 9" in recorded[0]
    assert recorded[0].endswith("Use prompts of middling difficulty, a larger group, a finer reward, or `resampling`.")


def test_groups_that_are_all_good_are_told_from_those_that_are_all_bad(policy_folder, tmp_path):
    def ends(prompts, completions, completion_ids, **_):
        """All good for half of the prompts, all bad for the others."""
        return [float("fox" in prompt or "cat" in prompt or "dog" in prompt) for prompt in prompts]

    _, (warning, _), _ = run(policy_folder, tmp_path, ends)
    logged = scalars(tmp_path)
    high, low = (list(logged[f"frac_groups_all_{side}"].values()) for side in ("high", "low"))
    assert [good + bad for good, bad in zip(high[1:], low[1:], strict=True)] == pytest.approx([1.0] * 4)
    assert 0.0 < sum(high) / 5 < 1.0
    assert " of all groups all good, " in warning


def test_a_run_without_that_disease_gets_no_such_warning(policy_folder, tmp_path):
    shown, recorded, _ = run(policy_folder, tmp_path, graded, steps=3)
    assert kinds(recorded) == [CUT] and shown == recorded


def test_what_reward_watch_judges_is_not_said_twice(policy_folder, tmp_path):
    adjustment = VarianceIncrease(UniformWeights(), FixedRange(0.0, 1.0))
    module = grpo(policy_folder, constant, adjustment=adjustment)
    _, recorded, _ = run(policy_folder, tmp_path, callbacks=[RewardWatch(2)], module=module)
    assert kinds(recorded) == [FLAT, CUT]

    module = grpo(policy_folder, binary, adjustment=adjustment)
    _, recorded, _ = run(policy_folder, tmp_path / "binary", callbacks=[RewardWatch(2)], module=module)
    assert kinds(recorded) == ["adjustment without effect", CUT]


def test_the_curves_are_those_that_were_logged(policy_folder, tmp_path):
    reward = CompositeReward([RewardFunction(graded, "graded"), RewardFunction(binary, "gold")], [1.0, 0.0])
    _, _, diagnoses = run(policy_folder, tmp_path, reward, steps=6, validate_every=3)
    kept = diagnoses.state_dict()["curves"]
    logged = {tag: values for tag, values in scalars(tmp_path).items() if is_read(tag)}
    assert {"kl", "eval/reward", "eval/rewards/gold/mean", "advantages/abs_max"} <= kept.keys() == logged.keys()
    for tag, (steps, values) in kept.items():
        assert dict(zip(steps, values, strict=True)) == pytest.approx(logged[tag], rel=1e-6, nan_ok=True), tag


def test_a_resumed_run_does_not_repeat_a_warning_and_goes_on_with_its_curves(policy_folder, tmp_path):
    every = {"checkpoint_every": 10, "max_epochs": -1}
    _, first, _ = run(policy_folder, tmp_path, constant, steps=10, **every)
    last = tmp_path / "checkpoints" / "last.ckpt"

    shown, recorded, diagnoses = run(policy_folder, tmp_path, constant, steps=12, ckpt_path=last, **every)

    assert kinds(first) == [FLAT, CUT] and shown == [] and recorded == first
    assert diagnoses.state_dict()["curves"]["reward"][0] == list(range(12))


class Clock(L.Callback):
    """Takes the time of the callback's hook."""

    def __init__(self, diagnoses):
        self.diagnoses, self.seconds = diagnoses, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        twin = copy.copy(self.diagnoses)
        twin._curves = copy.deepcopy(self.diagnoses._curves)
        start = time.perf_counter()
        twin.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.seconds.append(time.perf_counter() - start)


def test_a_step_costs_less_than_a_few_milliseconds(policy_folder, tmp_path):
    diagnoses = Diagnoses()
    clock = Clock(diagnoses)
    train(grpo(policy_folder), tmp_path, 11, RunStatus(tmp_path, 1), diagnoses, clock)
    assert sorted(clock.seconds)[5] < 5e-3
