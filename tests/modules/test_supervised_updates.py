"""An update of SFT or of the reward model is one mean over its rows; numbers that are not finite end the run."""

import json
import warnings

import lightning as L
import pytest
import torch
from modules.grpo_runs import grpo, quiet, relative_difference, scalars, train, trainer
from torch.utils.data import DataLoader

from grpovi_lightning.callbacks import ExportModel, RoundingWatch, RunStatus
from grpovi_lightning.data import DemonstrationDataModule, PreferenceDataModule
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.modules import OnePassRewardModule, RewardModelModule, SFTModule
from grpovi_lightning.rewards.online import FeatureModel

ROWS = [
    {"prompt": "write", "completion": "fox", "chosen": "a fox", "rejected": "the"},
    {"prompt": "the old house", "completion": "the fox runs near it", "chosen": "it", "rejected": "a"},
    {"prompt": "a sad cat", "completion": "it", "chosen": "the cat sleeps", "rejected": "ten words"},
    {
        "prompt": "ten",
        "completion": "a dog finds the river and sings to it , red boat",
        "chosen": "dog",
        "rejected": "it",
    },
]
DATA = {"sft": DemonstrationDataModule, "reward_model": PreferenceDataModule}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


@pytest.fixture
def modules(policy_folder, reward_folder):
    def make(kind, optimizer=sgd, dtype="float32"):
        if kind == "sft":
            return SFTModule(PretrainedCausalLM(str(policy_folder), dtype=dtype), optimizer=optimizer)
        return RewardModelModule(str(reward_folder), dtype=dtype, optimizer=optimizer)

    return make


@pytest.fixture
def data(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return lambda kind, batch_size=4: DATA[kind](str(tmp_path / "rows.jsonl"), batch_size=batch_size, seed=1)


def fit(module, folder, data, *callbacks, steps=1, **settings):
    with quiet():
        trainer(folder, steps, *callbacks, **settings).fit(module, data)


def weights(module):
    model = module.policy.model if isinstance(module, SFTModule) else module.model
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", DATA)
class TestOneMeanOverTheUpdate:
    @pytest.mark.parametrize("clip", [None, 0.1])
    def test_accumulated_batches_make_the_update_of_one_batch(self, modules, data, tmp_path, kind, clip):
        whole, parts = modules(kind), modules(kind)
        fit(whole, tmp_path / "whole", data(kind), steps=2, gradient_clip_val=clip)
        fit(parts, tmp_path / "parts", data(kind, 1), steps=2, gradient_clip_val=clip, accumulate_grad_batches=4)

        untrained = modules(kind)
        untrained.configure_model()
        before, first, second = weights(untrained), weights(whole), weights(parts)
        steps = [{name: after[name] - before[name] for name in before} for after in (first, second)]
        assert relative_difference(*steps) < 1e-4
        for name, logged in scalars(tmp_path / "whole").items():
            assert scalars(tmp_path / "parts")[name] == pytest.approx(logged, rel=1e-4)

    def test_so_do_batches_of_unequal_size_and_a_last_update_of_fewer_batches(self, modules, tmp_path, kind):
        def update(sizes, accumulate):
            rows = iter(ROWS)
            batches = [[next(rows) for _ in range(size)] for size in sizes]
            loader = DataLoader(
                batches, batch_size=None, collate_fn=lambda part: {k: [r[k] for r in part] for k in part[0]}
            )
            module = modules(kind)
            fit(module, tmp_path / f"{sizes}", loader, steps=-1, accumulate_grad_batches=accumulate)
            return weights(module)

        assert relative_difference(update([3, 1], 2), update([4], 1)) < 1e-5
        assert relative_difference(update([3, 1], 5), update([4], 1)) < 1e-5


@pytest.mark.parametrize(("setting", "value"), [("accumulate_grad_batches", 2), ("gradient_clip_val", 1.0)])
def test_one_pass_refuses_settings_that_have_no_effect(policy_folder, setting, value):
    module = OnePassRewardModule(FeatureModel(str(policy_folder)))
    with pytest.raises(UserError, match=f"trainer.{setting}: got {value}, which has no effect"):
        module.check_settings(L.Trainer(accelerator="cpu", logger=False, **{setting: value}), None)


@pytest.mark.parametrize("kind", DATA)
class TestNumbersThatAreNotFinite:
    def test_a_loss_ends_the_run_before_the_update(self, modules, data, tmp_path, kind):
        module = modules(kind, optimizer=lambda p: torch.optim.SGD(p, lr=1e30))

        with pytest.raises(
            TrainingError, match=r"step 1: (loss|gradient norm) nan; the update was not made, its batch is in .*rank_0"
        ):
            fit(module, tmp_path, data(kind), steps=3)

        kept = torch.load(tmp_path / "non_finite_step_1_rank_0.pt", weights_only=True)
        assert sorted(kept["batches"][0]["prompt"]) == sorted(row["prompt"] for row in ROWS)

    def test_so_does_a_gradient(self, modules, data, tmp_path, kind):
        class Spoiled(L.Callback):
            def on_after_backward(self, trainer, pl_module):
                next(p for p in pl_module.parameters() if p.grad is not None).grad[0] = torch.inf

        with pytest.raises(TrainingError, match="step 0: gradient norm inf; the update was not made"):
            fit(modules(kind), tmp_path, data(kind), Spoiled())

    def test_no_model_is_written_with_weights_that_the_last_update_spoiled(self, modules, data, tmp_path, kind):
        module = modules(kind, optimizer=lambda p: torch.optim.SGD(p, lr=torch.inf))

        with pytest.raises(TrainingError, match="a trained weight is not finite, so no model was written"):
            fit(module, tmp_path, data(kind), RunStatus(tmp_path, 1), ExportModel(tmp_path / "model"))

        assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
        assert not (tmp_path / "model").exists()

    def test_weights_of_float16_are_refused_before_the_first_step(self, modules, data, tmp_path, kind):
        module = modules(kind, dtype="float16")
        with pytest.raises(UserError, match=r"dtype: got float16 for weights that are trained"):
            module.check_settings(trainer(tmp_path, 1), None)
        with pytest.raises(UserError, match=r"dtype: got torch.float16 for weights that are trained"):
            fit(module, tmp_path, data(kind))


def test_a_policy_of_float16_is_refused_by_grpo_too(policy_folder, tmp_path):
    module = grpo(policy_folder, policy=PretrainedCausalLM(str(policy_folder), dtype="float16"))
    with pytest.raises(UserError, match=r"dtype: got torch.float16 for weights that are trained"):
        train(module, tmp_path, 1)


class TestRounding:
    """Updates of 1e-6 are lost in weights of bfloat16, those of 1e-2 are not."""

    def warned(self, fit, folder):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(RunStatus(folder, 1), RoundingWatch(2))
        recorded = json.loads((folder / "status.json").read_text())["warnings"]
        assert recorded == [str(w.message) for w in caught if "rounding" in str(w.message)]
        return recorded

    @pytest.mark.parametrize(("rate", "count"), [(1e-6, 1), (1e-2, 0)])
    @pytest.mark.parametrize("kind", DATA)
    def test_weights_that_do_not_move_are_warned_about(self, modules, data, tmp_path, kind, rate, count):
        module = modules(kind, lambda p: torch.optim.AdamW(p, lr=rate), "bfloat16")
        found = self.warned(lambda *watch: fit(module, tmp_path, data(kind), *watch, steps=5), tmp_path)
        assert len(found) == count
        if count:
            assert "% of the bfloat16 weights with a gradient did not move in 2 updates" in found[0]

    def test_so_are_those_of_grpo(self, policy_folder, tmp_path):
        source = PretrainedCausalLM(str(policy_folder), dtype="bfloat16")
        module = grpo(policy_folder, policy=source, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-6))
        found = self.warned(lambda *watch: train(module, tmp_path, 1, *watch), tmp_path)
        assert len(found) == 1 and "did not move in 1 updates" in found[0]

    def test_weights_of_float32_are_not_watched(self, modules, data, tmp_path):
        module = modules("sft", lambda p: torch.optim.AdamW(p, lr=1e-12))
        assert not self.warned(lambda *watch: fit(module, tmp_path, data("sft"), *watch), tmp_path)
