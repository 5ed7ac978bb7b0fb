"""Every loss, minibatches, micro-batches, left-out completions and corrections against a plain loop."""

import math
from dataclasses import replace

import pytest
import torch
from losses import loss_batches
from modules.grpo_runs import PROMPTS, completion_tokens, graded, grpo, prompt_data, relative_difference, scalars, train
from modules.test_grpo_equations import G, sequence_logprobs
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpovi_lightning.data import PromptDataModule
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.losses import (
    BNPOLoss,
    CISPOLoss,
    DAPOLoss,
    DPPOTVLoss,
    DrGRPOLoss,
    GMPOLoss,
    GRPOLoss,
    GSPOLoss,
    SAPOLoss,
    TruncatedImportanceSampling,
)
from grpovi_lightning.randomness import minibatch_order
from grpovi_lightning.rollout import RolloutEngine, SamplingConfig

LENGTH = 9
LOSSES = {
    "grpo": GRPOLoss(epsilon=0.05),
    "bnpo": BNPOLoss(epsilon=0.05),
    "dapo": DAPOLoss(epsilon=0.05, epsilon_high=0.1),
    "dr_grpo": DrGRPOLoss(LENGTH, epsilon=0.05),
    "gspo": GSPOLoss(epsilon=0.01, epsilon_high=0.02),
    "cispo": CISPOLoss(epsilon_high=1.1),
    "sapo": SAPOLoss(sapo_temperature_pos=3.0, sapo_temperature_neg=5.0),
    "gmpo": GMPOLoss(epsilon=0.05, epsilon_high=0.1),
    "dppo": DPPOTVLoss(epsilon=0.01, epsilon_high=0.02, max_ratio=1.1),
}
"""Those that have a plain loop here, with settings at which they clip."""
ALL_LOSSES = {name: make() for name, make in loss_batches.LOSSES.items()} | LOSSES


def sgd(parameters):
    """Adam would blow up the rounding of gradients that are nearly 0."""
    return torch.optim.SGD(parameters, lr=0.3)


def plain_loss(loss, new, old, advantages, kept, n_rollout_tokens):
    """The loss of some sequences, each a [T] tensor, from the formulas; `kept` says which are learned from.

    `n_rollout_tokens` is the share of the rollout's tokens that falls to as many sequences.
    """
    kind = type(loss).__name__
    total = 0.0
    for lp, before, advantage, keep in zip(new, old, advantages, kept, strict=True):
        if not keep:
            continue
        if kind == "CISPOLoss":
            terms = -(lp.detach() - before).exp().clip(max=loss.epsilon_high) * advantage * lp
        elif kind == "DPPOTVLoss":
            terms = -(lp.detach() - before).exp().clip(max=loss.max_ratio) * advantage * lp
            moved = (lp.exp() - before.exp()).detach()
            terms = terms * (moved <= loss.epsilon_high if advantage > 0 else moved >= -loss.epsilon)
        elif kind == "SAPOLoss":
            tau = loss.sapo_temperature_pos if advantage > 0 else loss.sapo_temperature_neg
            terms = -4 / tau * advantage / (1 + (-tau * ((lp - before).exp() - 1)).exp())
        elif kind == "GMPOLoss":
            limits = {"max": loss.epsilon_high} if advantage > 0 else {"min": -loss.epsilon}
            terms = -advantage * (lp - before).clip(**limits).mean().exp()
        else:
            log_ratio = (lp - before).mean().expand(len(lp)) if kind == "GSPOLoss" else lp - before
            ratio = log_ratio.exp()
            clipped = ratio.clip(1 - loss.epsilon, 1 + loss.epsilon_high)
            terms = -torch.min(ratio * advantage, clipped * advantage)
        total = total + (terms.mean() if kind in MEANS_OF_SEQUENCES else terms.sum())
    n_tokens = sum(len(lp) for lp, keep in zip(new, kept, strict=True) if keep)
    count = {"BNPOLoss": n_tokens, "DrGRPOLoss": len(new) * LENGTH} | dict.fromkeys(MEANS_OF_SEQUENCES, len(new))
    return total / count.get(kind, n_rollout_tokens)


MEANS_OF_SEQUENCES = ("GRPOLoss", "GSPOLoss", "SAPOLoss", "GMPOLoss")


def plain_run(folder, recorded, loss, num_iterations=1, num_minibatches=1, kept=None):
    """Three steps of SGD, sequence by sequence, on the recorded completions and advantages; the weights at the end."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy = AutoModelForCausalLM.from_pretrained(folder).eval()
    optimizer = sgd(policy.parameters())
    for step, output in enumerate(recorded.outputs):
        samples = [
            (tokenizer(output.rollout.prompts.texts[i // G])["input_ids"], ids)
            for i, ids in enumerate(completion_tokens(output))
        ]
        advantages = output.advantages.flatten()
        learned = [True] * len(samples) if kept is None else kept(output)
        with torch.no_grad():
            old = [sequence_logprobs(policy, *sample) for sample in samples]
        tokens = sum(len(sample[1]) for sample, keep in zip(samples, learned, strict=True) if keep)
        n_prompts = len(samples) // G
        for iteration in range(num_iterations):
            for part in minibatch_order(1, step, iteration, num_minibatches):
                rows = [p * G + g for p in range(n_prompts) if p % num_minibatches == part for g in range(G)]
                value = plain_loss(
                    loss,
                    [sequence_logprobs(policy, *samples[i]) for i in rows],
                    [old[i] for i in rows],
                    [advantages[i] for i in rows],
                    [learned[i] for i in rows],
                    tokens / num_minibatches,
                )
                optimizer.zero_grad()
                value.backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                optimizer.step()
    return {name: p.detach() for name, p in policy.named_parameters()}


def assert_same_change(found, expected, before, tolerance=1e-4):
    """The two changes from the same start agree, and are not small."""
    changes = [{name: weights[name] - before[name] for name in before} for weights in (found, expected)]
    assert relative_difference(found, before) > 1e-3
    assert relative_difference(*changes) < tolerance


@pytest.mark.parametrize("name", LOSSES)
def test_three_steps_of_every_loss_are_those_of_a_plain_loop(policy_folder, tmp_path, name):
    # Two passes in two minibatches: the ratio leaves 1 and clips, and a minibatch is not the rollout.
    passes = {"num_iterations": 2, "num_minibatches": 2}
    module = grpo(policy_folder, loss=LOSSES[name], optimizer=sgd, **passes)
    data = prompt_data(tmp_path / "data", prompts_per_step=4)

    recorded = train(module, tmp_path, 12, data=data)

    assert len(recorded.outputs) == 3
    expected = plain_run(policy_folder, recorded, LOSSES[name], **passes)
    assert_same_change(recorded.weights[-1], expected, recorded.before)
    logged = scalars(tmp_path)
    if name == "sapo":  # which clips nothing
        return
    clipped = logged["cispo_clip_ratio" if name == "cispo" else "clip_ratio/region_mean"]
    assert any(value > 0 for value in clipped.values())
    if name != "cispo":  # nothing is clipped in the first minibatch, where the policy has not moved
        assert set(logged["clip_ratio/low_min"].values()) == {0.0}
        assert any(logged["clip_ratio/high_max"][step] > logged["clip_ratio/high_mean"][step] for step in range(3))


@pytest.mark.parametrize("limits", [{"prompts_per_micro_batch": 1}, {"tokens_per_micro_batch": 110}])
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_micro_batches_of_every_kind_change_no_parameter(policy_folder, tmp_path, name, limits):
    runs = [
        train(
            grpo(policy_folder, loss=ALL_LOSSES[name], optimizer=sgd, num_minibatches=2, **settings),
            tmp_path / folder,
            6,
            data=prompt_data(tmp_path / folder / "data", prompts_per_step=4),
        )
        for folder, settings in (("whole", {}), ("parts", limits))
    ]
    assert_same_change(runs[1].weights[-1], runs[0].weights[-1], runs[0].before)
    assert relative_difference(runs[1].weights[-1], runs[0].weights[-1]) < 1e-5


def test_one_two_and_four_micro_batches_end_with_the_same_parameters(policy_folder, tmp_path):
    runs = {
        n_parts: train(
            grpo(policy_folder, optimizer=sgd, prompts_per_micro_batch=4 // n_parts),
            tmp_path / str(n_parts),
            1,
            data=prompt_data(tmp_path / str(n_parts) / "data", prompts_per_step=4),
        )
        for n_parts in (1, 2, 4)
    }
    for n_parts in (2, 4):
        assert relative_difference(runs[n_parts].weights[-1], runs[1].weights[-1]) < 1e-5
        # One step of SGD: the change is the gradient.
        assert_same_change(runs[n_parts].weights[-1], runs[1].weights[-1], runs[1].before, 1e-5)


class Backwards(PromptDataModule):
    """The prompts of each step in the opposite order."""

    def collate_training(self, rows):
        return super().collate_training(rows[::-1])


def test_the_order_of_the_prompts_changes_no_parameter(policy_folder, tmp_path):
    plain = prompt_data(tmp_path / "data", prompts_per_step=4)
    backwards = Backwards(plain.sources["train"], prompts_per_step=4, seed=1)
    runs = [
        train(grpo(policy_folder, optimizer=sgd), tmp_path / name, data=data)
        for name, data in (("plain", plain), ("backwards", backwards))
    ]
    assert runs[0].outputs[0].rollout.prompts.texts == runs[1].outputs[0].rollout.prompts.texts[::-1]
    assert relative_difference(runs[1].weights[-1], runs[0].weights[-1]) < 1e-5
    assert_same_change(runs[1].weights[0], runs[0].weights[0], runs[0].before, 1e-5)  # the gradient of one step


class WidePadding(RolloutEngine):
    """The same completions with more padding on both sides."""

    def generate(self, *arguments):
        rollout = super().generate(*arguments)
        pad = torch.nn.functional.pad
        return replace(
            rollout,
            prompt_ids=pad(rollout.prompt_ids, (5, 0), value=3),
            prompt_mask=pad(rollout.prompt_mask, (5, 0)),
            **{name: pad(getattr(rollout, name), (0, 4)) for name in ("completion_ids", "completion_mask")},
            old_logprobs=pad(rollout.old_logprobs, (0, 4), value=math.nan),
        )


def test_more_padding_changes_no_parameter(policy_folder, tmp_path):
    runs = []
    for engine in (RolloutEngine, WidePadding):
        module = grpo(policy_folder, optimizer=sgd)
        module.engine = engine(module.engine.sampling)
        runs.append(train(module, tmp_path / engine.__name__))
    assert runs[1].outputs[0].rollout.completion_ids.shape[1] == runs[0].outputs[0].rollout.completion_ids.shape[1] + 4
    assert relative_difference(runs[1].weights[-1], runs[0].weights[-1]) < 1e-5
    assert_same_change(runs[1].weights[0], runs[0].weights[0], runs[0].before, 1e-5)  # the gradient of one step


def some_equal(prompts, completions, completion_ids, **columns):
    """The graded reward, but the same for every completion of half of the prompts."""
    scores = graded(prompts, completions, completion_ids)
    return [0.5 if PROMPTS.index(prompt) % 2 else score for prompt, score in zip(prompts, scores, strict=True)]


class TestGroupsOfZeroAdvantage:
    def runs(self, policy_folder, tmp_path, **settings):
        runs, forwarded = [], []
        for skip in (False, True):
            module = grpo(
                policy_folder, some_equal, loss=GRPOLoss(), optimizer=sgd, skip_zero_advantage_groups=skip, **settings
            )
            rows = []
            module.configure_model()
            statistics = module.policy.completion_statistics
            module.policy.completion_statistics = lambda *given, rows=rows, statistics=statistics, **options: (
                rows.append(len(given[0].prompts)) or statistics(*given, **options)
            )
            data = prompt_data(tmp_path / str(skip) / "data", prompts_per_step=4)
            runs.append(train(module, tmp_path / str(skip), data=data))
            forwarded.append(sum(rows))
        return runs, forwarded

    @pytest.mark.parametrize("settings", [{}, {"prompts_per_micro_batch": 1}])
    def test_they_are_skipped_without_changing_the_gradient(self, policy_folder, tmp_path, settings):
        runs, forwarded = self.runs(policy_folder, tmp_path, **settings)
        assert relative_difference(runs[1].weights[-1], runs[0].weights[-1]) < 1e-5
        assert_same_change(runs[1].weights[0], runs[0].weights[0], runs[0].before, 1e-5)  # the gradient of one step
        zero = sum((step.rewards == step.rewards[:, :1]).all(dim=1).sum().item() for step in runs[0].outputs)
        assert forwarded == [12, 12 - zero] and zero > 0

    def test_a_step_of_nothing_else_is_an_update_of_nothing(self, policy_folder, tmp_path):
        module = grpo(
            policy_folder,
            lambda prompts, **_: [1.0] * len(prompts),
            loss=GRPOLoss(),
            optimizer=sgd,
            skip_zero_advantage_groups=True,
        )
        recorded = train(module, tmp_path, 2)
        assert relative_difference(recorded.weights[-1], recorded.before) == 0.0
        assert scalars(tmp_path)["grad_norm"] == {0: 0.0, 1: 0.0}

    def test_with_a_kl_penalty_they_cannot_be_skipped(self, policy_folder):
        with pytest.raises(UserError, match=r"skip_zero_advantage_groups cannot take effect: got beta 0\.04"):
            grpo(policy_folder, loss=GRPOLoss(beta=0.04), skip_zero_advantage_groups=True)


class TestLeftOut:
    @pytest.mark.parametrize("name", ["grpo", "dapo"])
    def test_truncated_completions_are_left_out_of_every_update_where_asked(self, policy_folder, tmp_path, name):
        sampling = SamplingConfig(max_completion_length=30, temperature=0.9)
        settings = {"loss": LOSSES[name], "mask_truncated_completions": True, "sampling": sampling}
        recorded = train(grpo(policy_folder, optimizer=sgd, **settings), tmp_path)

        def ended(output):
            return [ids[-1] == 1 for ids in completion_tokens(output)]

        assert 0 < sum(ended(output).count(False) for output in recorded.outputs) < 36
        expected = plain_run(policy_folder, recorded, LOSSES[name], kept=ended)
        assert_same_change(recorded.weights[-1], expected, recorded.before)

    @pytest.mark.parametrize("missing", [None, math.nan])
    @pytest.mark.parametrize("beta", [0.0, 0.04])
    def test_unscorable_completions_get_no_gradient_and_are_counted(self, policy_folder, tmp_path, missing, beta):
        def partly(prompts, completions, completion_ids, **columns):
            scores = graded(prompts, completions, completion_ids)
            return [missing if i % 5 == 2 else score for i, score in enumerate(scores)]

        module = grpo(policy_folder, partly, loss=GRPOLoss(beta=beta), optimizer=sgd)
        recorded = train(module, tmp_path)

        for output in recorded.outputs:
            assert output.rewards.isnan().flatten().tolist() == [i % 5 == 2 for i in range(12)]
            assert (output.advantages.flatten()[2::5] == 0).all()
        assert scalars(tmp_path)["frac_unscorable"] == {step: pytest.approx(2 / 12) for step in range(3)}
        if beta == 0:
            expected = plain_run(
                policy_folder, recorded, GRPOLoss(), kept=lambda output: [i % 5 != 2 for i in range(12)]
            )
            assert_same_change(recorded.weights[-1], expected, recorded.before)
        else:  # the KL penalty, too, leaves them alone
            first = recorded.outputs[0]
            experience = module.updater.experience(
                module.policy, _rollout(module, tmp_path), first.rewards, first.advantages, "32-true"
            )
            assert (~experience.loss_mask).all(dim=1).tolist() == [i % 5 == 2 for i in range(12)]

    @pytest.mark.parametrize(
        ("reward", "settings", "message"),
        [
            (lambda prompts, **_: [None] * len(prompts), {}, r"of 12, 12 got no reward and \d+ were truncated"),
            (
                graded,
                {"mask_truncated_completions": True, "sampling": SamplingConfig(1, temperature=0.1)},
                r"0 got no reward and 12 were truncated",
            ),
        ],
    )
    def test_a_step_with_nothing_to_learn_from_stops_the_run(self, policy_folder, tmp_path, reward, settings, message):
        module = grpo(policy_folder, reward, **settings)
        with pytest.raises(TrainingError, match=rf"step 0: no completion to learn from: .*{message}"):
            train(module, tmp_path)


def _rollout(module, folder):
    from grpovi_lightning.structures import PromptBatch

    return module.sample(PromptBatch(PROMPTS[:3], torch.arange(3), {}), G, 0)


class Imprecise(RolloutEngine):
    """A sampler whose log-probabilities are those of a somewhat different policy."""

    def generate(self, *arguments):
        rollout = super().generate(*arguments)
        noise = torch.randn(rollout.old_logprobs.shape, generator=torch.Generator().manual_seed(rollout.step))
        return replace(rollout, old_logprobs=rollout.old_logprobs + 0.5 * noise * rollout.completion_mask)


class TestImportanceSampling:
    def test_where_sampler_and_trainer_agree_it_changes_nothing(self, policy_folder, tmp_path):
        runs = [
            train(grpo(policy_folder, optimizer=sgd, importance_sampling=correction), tmp_path / name)
            for name, correction in (("without", None), ("with", TruncatedImportanceSampling()))
        ]
        assert relative_difference(runs[1].weights[-1], runs[0].weights[-1]) < 1e-5
        logged = scalars(tmp_path / "without")
        assert max(logged["sampling/sampling_logp_difference/max"].values()) < 1e-4
        assert logged["sampling/importance_sampling_ratio/mean"][0] == pytest.approx(1.0, abs=1e-5)

    @pytest.mark.parametrize("num_iterations", [1, 2])
    def test_the_surrogate_is_weighted_by_the_truncated_ratio_and_clipped_around_the_trainer(
        self, policy_folder, tmp_path, num_iterations
    ):
        cap = 1.3
        module = grpo(
            policy_folder,
            loss=GRPOLoss(),
            optimizer=sgd,
            num_iterations=num_iterations,
            importance_sampling=TruncatedImportanceSampling(cap),
        )
        module.engine = Imprecise(module.engine.sampling)
        recorded = train(module, tmp_path, num_iterations)
        output = recorded.outputs[0]

        policy = AutoModelForCausalLM.from_pretrained(policy_folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(policy_folder)
        optimizer = sgd(policy.parameters())
        samples = [
            (tokenizer(output.rollout.prompts.texts[i // G])["input_ids"], ids)
            for i, ids in enumerate(completion_tokens(output))
        ]
        with torch.no_grad():
            old = [sequence_logprobs(policy, *sample) for sample in samples]
        noise = torch.randn(output.rollout.completion_ids.shape, generator=torch.Generator().manual_seed(0))
        log_ratios = [-0.5 * noise[i, : len(before)] for i, before in enumerate(old)]
        for _ in range(num_iterations):
            loss = 0.0
            for i, sample in enumerate(samples):
                ratio = (sequence_logprobs(policy, *sample) - old[i]).exp()
                advantage = output.advantages.flatten()[i]
                surrogate = torch.min(ratio * advantage, ratio.clip(0.8, 1.2) * advantage)
                loss = loss - (surrogate * log_ratios[i].exp().clip(max=cap)).mean() / len(samples)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
        assert_same_change(recorded.weights[-1], dict(policy.named_parameters()), recorded.before, 1e-3)

        logged, everything = scalars(tmp_path), torch.cat(log_ratios)
        assert logged["sampling/sampling_logp_difference/mean"][0] == pytest.approx(
            everything.abs().mean().item(), rel=1e-3
        )
        assert logged["sampling/importance_sampling_ratio/max"][0] == pytest.approx(
            everything.exp().max().item(), rel=1e-3
        )
        assert logged["sampling/importance_sampling_ratio/min"][0] == pytest.approx(
            everything.exp().min().item(), rel=1e-3
        )


class TestNonFinite:
    def test_the_update_is_refused_and_its_batch_is_kept(self, policy_folder, tmp_path):
        module = grpo(policy_folder, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e30))
        with pytest.raises(
            TrainingError, match=r"step 1: loss .*the update was not made, its batch is in .*rank_0\.pt"
        ):
            train(module, tmp_path)
        kept = torch.load(tmp_path / "non_finite_step_1_rank_0.pt", weights_only=True)
        assert kept["step"] == 1 and len(kept["prompts"]) == 3 and len(kept["completions"]) == 12
        assert kept["completion_ids"].shape == kept["old_logprobs"].shape == kept["ref_logprobs"].shape
        assert kept["advantages"].shape == (12,) and not math.isfinite(kept["metrics"]["loss"])

    def test_minibatches_that_do_not_divide_the_prompts_are_refused(self, policy_folder, tmp_path):
        with pytest.raises(UserError, match="num_minibatches: got 2, which does not divide the 3 prompts"):
            train(grpo(policy_folder, num_minibatches=2), tmp_path)
