"""GRPO through Lightning against a loop written from the equations of arXiv 2402.03300."""

import pytest
import torch
from modules.grpo_runs import completion_tokens, graded, grpo, identical, relative_difference, scalars, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpovi_lightning.adjustment import IdentityAdjustment, VarianceIncrease
from grpovi_lightning.adjustment.ranges import FixedRange
from grpovi_lightning.adjustment.weights import UniformWeights
from grpovi_lightning.losses import GRPOLoss
from grpovi_lightning.models import PretrainedCausalLM

TEMPERATURE, BETA, EPSILON, G = 0.9, 0.04, 0.2, 4


def sequence_logprobs(model, prompt, completion):
    """log pi(completion | prompt), token by token, of one sequence without padding."""
    logits = model(torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
    return logits.log_softmax(-1)[range(len(completion)), completion]


def smooth_adamw(parameters):
    """With the usual eps of 1e-8 the rounding of gradients that are nearly 0 would decide the step."""
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01, eps=1e-4)


def reference_run(folder, recorded, epsilon_high=EPSILON, num_iterations=1, max_grad_norm=1.0):
    """The plain loop: returns the weights after each step and the losses."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder).eval() for _ in range(2))
    optimizer = smooth_adamw(policy.parameters())
    history = []
    for output in recorded:
        samples = [
            (tokenizer(output.rollout.prompts.texts[i // G])["input_ids"], ids)
            for i, ids in enumerate(completion_tokens(output))
        ]
        texts = [tokenizer.decode(completion, skip_special_tokens=True) for _, completion in samples]
        rewards = torch.tensor(graded(None, texts, [c for _, c in samples])).reshape(-1, G)
        std = ((rewards - rewards.mean(1, keepdim=True)) ** 2).sum(1, keepdim=True).div(G - 1).sqrt()
        advantages = ((rewards - rewards.mean(1, keepdim=True)) / (std + 1e-4)).flatten()
        with torch.no_grad():
            old = [sequence_logprobs(policy, *sample) for sample in samples]
            ref = [sequence_logprobs(reference, *sample) for sample in samples]
        for _ in range(num_iterations):
            loss = 0.0
            for i, sample in enumerate(samples):
                logprobs = sequence_logprobs(policy, *sample)
                ratio = (logprobs - old[i]).exp()
                clipped = ratio.clip(1 - EPSILON, 1 + epsilon_high)
                surrogate = torch.min(ratio * advantages[i], clipped * advantages[i])
                kl = (ref[i] - logprobs).exp() - (ref[i] - logprobs) - 1
                loss = loss - (surrogate - BETA * kl).mean() / len(samples)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
            optimizer.step()
        history.append({name: p.detach().clone() for name, p in policy.named_parameters()})
    return history


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({}, {}),
        ({"num_iterations": 3, "max_grad_norm": 0.5}, {"epsilon_high": 0.28}),
    ],
    ids=["one update a rollout", "three clipped updates a rollout"],
)
def test_three_steps_give_the_parameters_of_a_plain_loop(policy_folder, tmp_path, settings, loss):
    loss_object = GRPOLoss(beta=BETA, epsilon=EPSILON, **loss)
    module = grpo(policy_folder, loss=loss_object, optimizer=smooth_adamw, **settings)

    recorded = train(module, tmp_path, max_steps=3 * settings.get("num_iterations", 1))

    assert len(recorded.outputs) == 3
    expected = reference_run(policy_folder, recorded.outputs, **settings | loss)
    for step in range(3):
        for name, value in recorded.weights[step].items():
            torch.testing.assert_close(value, expected[step][name], atol=1e-6, rtol=1e-5)
    assert relative_difference(recorded.weights[2], recorded.before) > 1e-3


def test_the_recorded_rewards_and_advantages_are_those_of_the_formulas(policy_folder, tmp_path):
    recorded = train(grpo(policy_folder), tmp_path, max_steps=1).outputs[0]

    rewards = torch.tensor(graded(None, recorded.rollout.texts, completion_tokens(recorded))).reshape(3, 4)
    torch.testing.assert_close(recorded.rewards, rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    torch.testing.assert_close(recorded.advantages, centred / (rewards.std(1, keepdim=True) + 1e-4))
    assert recorded.adjustment == "IdentityAdjustment" and not recorded.adjusts


def test_each_step_samples_the_current_policy_with_the_random_numbers_of_that_step(policy_folder, tmp_path):
    module = grpo(policy_folder)
    recorded = train(module, tmp_path)
    policy = PretrainedCausalLM(str(policy_folder)).load()

    for step in range(3):
        rollout = module.engine.generate(policy, recorded.prompts[step], G, seed=1, step=step)
        assert torch.equal(rollout.completion_ids, recorded.outputs[step].rollout.completion_ids)
        policy.model.load_state_dict(recorded.weights[step], strict=False)


def test_the_identity_adjustment_is_no_adjustment_bit_for_bit(policy_folder, tmp_path):
    without = train(grpo(policy_folder, adjustment=None), tmp_path / "none")
    identity = train(grpo(policy_folder, adjustment=IdentityAdjustment()), tmp_path / "identity")

    assert identical(without.weights[-1], identity.weights[-1])


def test_the_variance_increase_starts_from_the_same_rollout_and_ends_elsewhere(policy_folder, tmp_path):
    plain = train(grpo(policy_folder), tmp_path / "plain")
    adjustment = VarianceIncrease(UniformWeights(), FixedRange(-2.0, 2.0))
    increased = train(grpo(policy_folder, adjustment=adjustment), tmp_path / "increased")

    first, second = plain.outputs[0], increased.outputs[0]
    assert torch.equal(first.rollout.completion_ids, second.rollout.completion_ids)
    assert torch.equal(first.rewards, second.rewards)
    assert not torch.equal(first.adjusted.rewards, second.adjusted.rewards)
    torch.testing.assert_close(second.adjusted.rewards.mean(1), second.rewards.mean(1))
    assert relative_difference(plain.weights[-1], increased.weights[-1]) > 1e-3


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_change_memory_but_not_the_parameters(policy_folder, tmp_path, size):
    whole = train(grpo(policy_folder, optimizer=sgd), tmp_path / "whole")
    parts = train(grpo(policy_folder, optimizer=sgd, prompts_per_micro_batch=size), tmp_path / "parts")

    for step in range(3):
        assert relative_difference(parts.weights[step], whole.weights[step]) < 1e-5
    change = relative_difference(whole.weights[-1], whole.before)
    assert change > 1e-3
    moved = [{name: run.weights[-1][name] - run.before[name] for name in run.before} for run in (parts, whole)]
    assert relative_difference(*moved) < 1e-4


def sgd(parameters):
    """Adam would blow up the rounding of gradients that are nearly 0."""
    return torch.optim.SGD(parameters, lr=0.1)


def test_micro_batches_change_no_logged_metric(policy_folder, tmp_path):
    train(grpo(policy_folder, optimizer=sgd), tmp_path / "whole")
    train(grpo(policy_folder, optimizer=sgd, prompts_per_micro_batch=2), tmp_path / "parts")

    whole, parts = scalars(tmp_path / "whole"), scalars(tmp_path / "parts")
    assert whole.keys() == parts.keys() and {"loss", "kl", "entropy", "grad_norm"} <= whole.keys()
    for tag in whole:
        rounding = 1e-5 if tag.startswith("sampling/") else 1e-6  # those scalars are nothing but rounding
        assert parts[tag] == pytest.approx(whole[tag], rel=1e-4, abs=rounding), tag


def test_two_runs_with_one_seed_are_equal_to_the_last_bit_and_another_seed_differs(policy_folder, tmp_path):
    first, again, other = (
        train(grpo(policy_folder, seed=seed), tmp_path / name, validate_every=2)
        for seed, name in ((1, "first"), (1, "again"), (2, "other"))
    )

    assert identical(first.weights[-1], again.weights[-1])
    assert scalars(tmp_path / "first") == scalars(tmp_path / "again")
    assert not identical(first.weights[-1], other.weights[-1])
    assert first.outputs[0].rollout.texts != other.outputs[0].rollout.texts
