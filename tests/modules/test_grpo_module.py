"""What a GRPO run needs, refuses, keeps and logs."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from modules.grpo_runs import binary, completion_tokens, graded, grpo, identical, prompt_data, scalars, train, weights
from transformers import AutoModelForCausalLM

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.adjustment import IdentityAdjustment, VarianceIncrease
from grpovi_lightning.adjustment.ranges import FixedRange
from grpovi_lightning.adjustment.weights import UniformWeights
from grpovi_lightning.advantages import GroupAdvantage
from grpovi_lightning.callbacks import throughput
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.losses import GRPOLoss
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.modules.evaluation import HeldOutEvaluation
from grpovi_lightning.randomness import HELD_OUT_STEP
from grpovi_lightning.rewards import CompositeReward, RewardFunction, RewardModel
from grpovi_lightning.rollout import RolloutEngine
from grpovi_lightning.structures import PromptBatch


class TestModels:
    def test_the_policy_moves_and_the_reference_and_the_reward_model_stay(self, policy_folder, reward_folder, tmp_path):
        module = grpo(policy_folder, RewardModel(str(reward_folder)))
        recorded = train(module, tmp_path)

        initial = dict(AutoModelForCausalLM.from_pretrained(policy_folder).named_parameters())
        fresh = RewardModel(str(reward_folder))
        fresh.load(module.policy.tokenizer)
        assert identical(recorded.before, initial)
        assert identical(dict(module.reference.model.named_parameters()), initial)
        assert identical(module.reward.state_dict(), fresh.state_dict())
        assert not any(torch.equal(value, initial[name]) for name, value in weights(module).items())
        assert not any(p.requires_grad for p in [*module.reference.parameters(), *module.reward.parameters()])

    @pytest.mark.parametrize(
        ("beta", "adjustment", "expected"),
        [
            (0.0, None, False),
            (0.0, IdentityAdjustment(), False),
            (0.0, VarianceIncrease(UniformWeights()), False),
            (0.0, VarianceIncrease(), True),
            (0.04, None, True),
        ],
    )
    def test_a_reference_is_loaded_only_where_something_reads_it(self, policy_folder, beta, adjustment, expected):
        module = grpo(policy_folder, loss=GRPOLoss(beta=beta), adjustment=adjustment)
        module.configure_model()
        assert (module.reference is not None) == expected

    def test_both_policies_run_compiled_passes_where_that_is_asked(self, policy_folder):
        for asked in (True, False):
            module = grpo(policy_folder, compile_passes=asked)
            module.configure_model()
            assert [model._compiled is not None for model in (module.policy, module.reference)] == [asked, asked]

    def test_without_a_reference_no_kl_is_logged(self, policy_folder, tmp_path):
        train(grpo(policy_folder, loss=GRPOLoss()), tmp_path, 1, validate_every=1)
        assert {"kl", "eval/kl"}.isdisjoint(scalars(tmp_path))

    def test_an_evaluation_measures_the_kl_that_no_update_needs_and_changes_no_update(self, policy_folder, tmp_path):
        # A counterfactual of the paper's weights reads the reference while training, and changes no update either.
        settings = {
            "measured": {"evaluation": HeldOutEvaluation(kl=True)},
            "unmeasured": {},
            "read": {"counterfactual": VarianceIncrease()},
        }
        runs = {name: grpo(policy_folder, loss=GRPOLoss(), **more) for name, more in settings.items()}
        for name, made in runs.items():
            train(made, tmp_path / name, 2, validate_every=1)
        measured, unmeasured, read = (scalars(tmp_path / name) for name in runs)
        assert measured["eval/kl"] == read["eval/kl"] and measured["eval/kl"][2] > measured["eval/kl"][0] == 0.0
        assert "kl" not in measured and "kl" in read and "eval/kl" not in unmeasured
        assert measured["loss"] == unmeasured["loss"] == read["loss"]
        assert identical(*(weights(runs[name]) for name in ("measured", "unmeasured")))

    def test_the_kl_of_the_first_step_is_0_and_grows_after_it(self, policy_folder, tmp_path):
        train(grpo(policy_folder), tmp_path, 3)
        kl = scalars(tmp_path)["kl"]
        assert kl[0] == pytest.approx(0.0, abs=1e-9)
        assert kl[2] > 1e-5

    def test_missing_checkpoints_are_named_before_anything_is_loaded(self, policy_folder, tmp_path):
        with pytest.raises(UserError, match=r"policy .*nowhere: no such folder"):
            grpo(tmp_path / "nowhere").check_inputs()
        with pytest.raises(UserError, match=r"reward model .*nowhere: no such folder"):
            grpo(policy_folder, RewardModel(str(tmp_path / "nowhere"))).check_inputs()

    def test_save_pretrained_writes_the_trained_policy(self, policy_folder, tmp_path):
        module = grpo(policy_folder)
        train(module, tmp_path / "run", 1)
        module.save_pretrained(str(tmp_path / "model"))
        saved = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_parameters())
        assert identical(saved, weights(module))


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"group_size": 1}, "group_size: got 1, expected at least 2"),
            ({"group_size": 0}, "group_size: got 0, expected at least 2"),
            (
                {"group_size": 2, "adjustment": VarianceIncrease()},
                "VarianceIncrease cannot take effect: .*group_size 2",
            ),
            ({"num_iterations": 0}, "num_iterations: got 0, expected at least 1"),
            ({"max_grad_norm": 0.0}, r"max_grad_norm: got 0\.0, expected above 0"),
            ({"prompts_per_micro_batch": 0}, "prompts_per_micro_batch: got 0, expected at least 1"),
        ],
    )
    def test_settings_that_cannot_work_are_refused_at_once(self, policy_folder, settings, message):
        with pytest.raises(UserError, match=message):
            grpo(policy_folder, **settings)

    @pytest.mark.parametrize(
        "settings",
        [
            {"group_size": 2},
            {"group_size": 2, "adjustment": IdentityAdjustment()},
            {"group_size": 2, "adjustment": VarianceIncrease(), "advantage": GroupAdvantage("none")},
            {"group_size": 2, "adjustment": VarianceIncrease(), "advantage": GroupAdvantage("batch")},
            {"group_size": 3, "adjustment": VarianceIncrease()},
        ],
    )
    def test_settings_that_can_work_are_taken(self, policy_folder, settings):
        grpo(policy_folder, **settings)

    def test_an_infinite_reward_stops_the_run_before_the_update(self, policy_folder, tmp_path):
        calls = []

        def broken(prompts, completions, completion_ids, **columns):
            calls.append(len(completions))
            return [0.1 * i for i in range(11)] + [math.inf if len(calls) == 2 else 0.0]

        module = grpo(policy_folder, broken)
        with pytest.raises(TrainingError, match="broken returned inf at position 11, expected a finite"):
            train(module, tmp_path)
        assert calls == [12, 12] and int(module.n_steps) == 1

    def test_a_precision_that_rounds_the_rewards_models_and_ranges_is_refused(self, policy_folder):
        trainer = SimpleNamespace(precision="bf16-true", gradient_clip_val=None, accumulate_grad_batches=1)
        with pytest.raises(UserError, match=r"trainer\.precision: got bf16-true, which would round"):
            grpo(policy_folder).check_settings(trainer, None)

    @pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
    def test_half_precision_that_would_need_scaled_gradients_is_refused(self, policy_folder, precision):
        # On a CPU Lightning takes bfloat16 instead, so only a trainer on a GPU has this precision.
        trainer = SimpleNamespace(precision=precision)
        with pytest.raises(UserError, match=f"trainer.precision: got {precision}, whose gradients need scaling"):
            grpo(policy_folder).check_settings(trainer, None)

    def test_compiled_passes_with_gradient_checkpointing_are_refused(self, policy_folder):
        policy = PretrainedCausalLM(str(policy_folder), gradient_checkpointing=True)
        with pytest.raises(UserError, match="compile_passes: got it with gradient_checkpointing"):
            grpo(policy_folder, policy=policy, compile_passes=True)

    def test_a_schedule_that_waits_for_a_metric_is_refused(self, policy_folder, tmp_path):
        module = grpo(policy_folder, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
        with pytest.raises(UserError, match="lr_scheduler: got ReduceLROnPlateau"):
            train(module, tmp_path)

    def test_a_reward_outside_a_fixed_range_stops_the_run(self, policy_folder, tmp_path):
        module = grpo(policy_folder, adjustment=VarianceIncrease(UniformWeights(), FixedRange(0.0, 0.1)))
        with pytest.raises(UserError, match="outside the range"):
            train(module, tmp_path)


class TestMetrics:
    @pytest.fixture(scope="class")
    @staticmethod
    def run(policy_folder, tmp_path_factory):
        folder = tmp_path_factory.mktemp("run")
        reward = CompositeReward([RewardFunction(graded), RewardFunction(binary)], [2.0, 0.0])
        module = grpo(policy_folder, reward, lr_scheduler=halving)
        recorded = train(module, folder, 5, validate_every=2)
        return folder, recorded, scalars(folder), module

    def test_training_scalars_stand_at_the_number_of_updates_done(self, run):
        logged = run[2]
        for tag in ("reward", "loss", "grad_norm", "kl", "num_tokens", "rewards/graded/mean"):
            assert sorted(logged[tag]) == [0, 1, 2, 3, 4], tag

    def test_held_out_scalars_begin_with_the_initial_policy_at_0(self, run):
        logged = run[2]
        for tag in ("eval/reward", "eval/kl", "eval/entropy", "eval/num_tokens", "eval/rewards/graded/std"):
            assert sorted(logged[tag]) == [0, 2, 4], tag
        assert logged["eval/num_tokens"][0] == 0
        assert logged["eval/kl"][0] == pytest.approx(0.0, abs=1e-9)
        assert logged["eval/kl"][4] > logged["eval/kl"][2] > 0

    def test_training_scalars_equal_numpy_on_what_the_step_returned(self, run):
        _, recorded, logged, _ = run
        tokens = 0
        for step, output in enumerate(recorded.outputs):
            ids = completion_tokens(output)
            first = np.array(graded(None, output.rollout.texts, ids)).reshape(3, 4)
            second = np.array(binary(None, None, ids))
            lengths = np.array([len(row) for row in ids])
            tokens += lengths.sum()
            cut = [len(row) == 9 and row[-1] != 1 for row in ids]
            expected = {
                "reward": 2 * first.mean(),
                "reward_std": np.mean([2 * group.std(ddof=1) for group in first]),
                "reward_batch_std": 2 * first.std(ddof=1),
                "rewards/graded/mean": first.mean(),
                "rewards/graded/std": first.std(ddof=1),
                "rewards/binary/mean": second.mean(),
                "rewards/binary/std": second.std(ddof=1),
                "frac_reward_zero_std": np.mean([len(set(group)) == 1 for group in first]),
                "completions/mean_length": lengths.mean(),
                "completions/min_length": lengths.min(),
                "completions/max_length": lengths.max(),
                "completions/clipped_ratio": np.mean(cut),
                "num_tokens": tokens,
                "learning_rate": 3e-3 * 0.5**step,
                "clip_ratio/region_mean": 0.0,
            }
            for tag, value in expected.items():
                assert logged[tag][step] == pytest.approx(value, rel=1e-5, abs=1e-6), (tag, step)

    def test_held_out_scalars_equal_numpy_on_freshly_sampled_completions(self, run):
        _, _, logged, module = run
        # After five updates nothing was evaluated, so the first evaluation, of the initial policy, is repeated.
        policy = PretrainedCausalLM(module.policy_source.path).load()
        texts = ["the fox", "write a happy cat", "ten dog"]
        prompts = PromptBatch(texts, torch.arange(3), {})
        rollout = RolloutEngine(module.engine.sampling).generate(policy, prompts, 1, 1, HELD_OUT_STEP)
        ids = [row[kept].tolist() for row, kept in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]
        rewards = np.array(graded(None, list(rollout.texts), ids))
        entropies = []
        for text, completion in zip(texts, ids, strict=True):
            prompt = policy.encode([text])[0]
            logits = policy.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double() / 0.9
            p = logits.softmax(-1).detach().numpy()
            entropies += list(-(p * np.log(p)).sum(-1))
        expected = {
            "eval/reward": 2 * rewards.mean(),
            "eval/rewards/graded/mean": rewards.mean(),
            "eval/rewards/graded/std": rewards.std(ddof=1),
            "eval/rewards/binary/mean": np.mean(binary(None, None, ids)),
            "eval/completions/mean_length": np.mean([len(row) for row in ids]),
            "eval/completions/clipped_ratio": np.mean([len(row) == 9 and row[-1] != 1 for row in ids]),
            "eval/entropy": np.mean(entropies),
        }
        for tag, value in expected.items():
            assert logged[tag][0] == pytest.approx(value, rel=1e-5, abs=1e-6), tag

    def test_the_held_out_kl_is_that_of_the_updated_policy(self, policy_folder, tmp_path):
        module = grpo(policy_folder)
        train(module, tmp_path, 2, validate_every=2)
        logged = scalars(tmp_path)["eval/kl"][2]
        prompts = PromptBatch(["the fox", "write a happy cat", "ten dog"], torch.arange(3), {})
        reference = PretrainedCausalLM(str(policy_folder)).load()

        rollout = module.engine.generate(module.policy, prompts, 1, 1, HELD_OUT_STEP)

        with torch.no_grad():
            ratio = reference.completion_statistics(rollout, 0.9).logprobs - rollout.old_logprobs
        ratio = ratio[rollout.completion_mask].double().numpy()
        assert logged == pytest.approx(np.mean(np.exp(ratio) - ratio - 1), rel=1e-4)

    def test_held_out_completions_do_not_count_as_training_cost(self, run):
        _, recorded, logged, _ = run
        lengths = [int(output.rollout.completion_mask.sum()) for output in recorded.outputs]
        assert logged["eval/num_tokens"] == {0: 0, 2: sum(lengths[:2]), 4: sum(lengths[:4])}

    def test_times_are_logged_and_training_time_only_grows(self, run):
        logged = scalars(run[0], timings=True)
        for step in range(5):
            phases = {name: logged[name][step] for name in keys.STEP_PHASES}
            assert 0 < sum(phases.values()) <= logged["step_time"][step] * 1.001
            assert all(phases[f"step_time/{name}"] > 0 for name in ("prefill", "decode", "forward", "backward"))
        total = list(logged["train_seconds"].values())
        assert total == sorted(total)
        assert total[-1] == pytest.approx(sum(logged["step_time"].values()), rel=1e-4)

    def test_held_out_metrics_do_not_depend_on_how_prompts_are_batched(self, policy_folder, tmp_path):
        train(grpo(policy_folder), tmp_path / "two", 1, validate_every=1)
        data = prompt_data(tmp_path / "data", validation=True)
        data.validation_batch_size = 3
        train(grpo(policy_folder), tmp_path / "three", 1, validate_every=1, data=data)
        two, three = scalars(tmp_path / "two"), scalars(tmp_path / "three")
        for tag in (tag for tag in two if tag.startswith("eval/")):
            assert three[tag] == pytest.approx(two[tag], rel=1e-5, abs=1e-7), tag

    def test_every_run_logs_all_that_a_variance_increase_does_or_would_do(self, policy_folder, tmp_path):
        for name, adjustment in (("grpo", None), ("grpovi", VarianceIncrease(UniformWeights()))):
            train(grpo(policy_folder, adjustment=adjustment), tmp_path / name, 1)
        plain, increased = (scalars(tmp_path / name) for name in ("grpo", "grpovi"))
        tags = {tag for tag in plain if tag.startswith("adjustment/")}
        assert tags == {tag for tag in increased if tag.startswith("adjustment/")}
        assert tags == {value for name, value in vars(keys).items() if name.startswith("ADJUSTMENT_")}

    def test_a_grpo_run_logs_what_grpovi_would_have_done_to_its_first_rollout(self, policy_folder, tmp_path):
        # Both arms start from the same completions, so at step 0 the two say the same, and GRPO trains on.
        settings = {"loss": GRPOLoss(beta=0.04), "advantage": GroupAdvantage("none")}
        plain = train(grpo(policy_folder, **settings), tmp_path / "grpo", 2)
        train(grpo(policy_folder, adjustment=VarianceIncrease(), **settings), tmp_path / "grpovi", 2)
        first, second = (
            {tag: values[0] for tag, values in scalars(tmp_path / name).items() if tag.startswith("adjustment/")}
            for name in ("grpo", "grpovi")
        )
        assert first == second
        assert first["adjustment/frac_groups_changed"] > 0 and first["adjustment/advantage_cosine"] < 1
        assert first["adjustment/variance_after"] > first["adjustment/variance_before"]
        assert torch.equal(plain.outputs[0].adjusted.rewards, plain.outputs[0].rewards)

    def test_the_counterfactual_of_the_yaml_is_the_one_that_is_logged(self, policy_folder, tmp_path):
        counterfactual = VarianceIncrease(UniformWeights(), FixedRange(-5.0, 7.0))
        train(grpo(policy_folder, counterfactual=counterfactual), tmp_path, 1)
        logged = scalars(tmp_path)
        assert (logged["adjustment/range_lower"][0], logged["adjustment/range_upper"][0]) == (-5.0, 7.0)
        assert logged["adjustment/effective_weights"][0] == pytest.approx(4.0)

    def test_without_a_reference_uniform_weights_are_logged_and_said(self, policy_folder, tmp_path, capsys):
        module = grpo(policy_folder, loss=GRPOLoss(beta=0.0))
        train(module, tmp_path / "without", 1)
        assert module.reference is None and "logged for uniform weights" in capsys.readouterr().out
        assert scalars(tmp_path / "without")["adjustment/effective_weights"][0] == pytest.approx(4.0)

        module = grpo(policy_folder, loss=GRPOLoss(beta=0.0), counterfactual=VarianceIncrease())
        train(module, tmp_path / "with", 1)
        assert module.reference is not None and "uniform" not in capsys.readouterr().out
        assert scalars(tmp_path / "with")["adjustment/effective_weights"][0] < 3.99

    def test_the_variance_increase_logs_its_own_scalars(self, policy_folder, tmp_path):
        train(grpo(policy_folder, adjustment=VarianceIncrease(UniformWeights())), tmp_path, 2)
        logged = scalars(tmp_path)
        for step in range(2):
            assert logged["adjustment/variance_after"][step] >= logged["adjustment/variance_before"][step] > 0
            assert logged["adjustment/effective_weights"][step] == pytest.approx(4.0)


def halving(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def test_columns_of_the_prompts_reach_the_reward_function_once_per_completion(policy_folder, tmp_path):
    seen = []

    def reads_columns(prompts, completions, completion_ids, answer, **columns):
        seen.append((list(prompts), list(answer), len(completions)))
        return [float(len(c)) for c in completions]

    recorded = train(grpo(policy_folder, reads_columns), tmp_path, 1)

    prompts, answers, count = seen[0]
    texts, numbers = list(recorded.prompts[0].texts), [str(i) for i in recorded.prompts[0].indices.tolist()]
    assert count == 12
    assert prompts == [text for text in texts for _ in range(4)]
    assert answers == [number for number in numbers for _ in range(4)]


def test_the_seed_of_the_run_counts_where_the_module_has_none(policy_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    implied = train(grpo(policy_folder, seed=None), tmp_path / "implied", 1)
    given = train(grpo(policy_folder, seed=1), tmp_path / "given", 1)
    assert identical(implied.weights[-1], given.weights[-1])


def test_a_run_without_any_seed_is_refused(policy_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    with pytest.raises(UserError, match="no seed"):
        train(grpo(policy_folder, seed=None), tmp_path, 1)


def test_a_gpu_that_is_known_gets_a_utilisation_from_what_a_real_step_returns(policy_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "available_flops", lambda *_: 1e9)  # the machine of the tests has no GPU
    train(grpo(policy_folder), tmp_path, 2, throughput.Throughput())
    logged = scalars(tmp_path, timings=True)
    for step in (0, 1):
        # A forward and backward pass, the reference's and the sampler's: five passes over all completion tokens.
        n_tokens = logged["num_tokens"][step] - (logged["num_tokens"][0] if step else 0)
        least = 5 * 2 * n_tokens * 1000 / logged["step_time"][step] / 1e9  # at least a thousand weights
        assert least < logged["throughput/mfu"][step] < 1000 * least
