"""Entropies in the updates, and the KL in the reward: against plain loops, and as nothing where they are neutral."""

import pytest
import torch
from modules.grpo_runs import (
    completion_tokens,
    graded,
    grpo,
    identical,
    prompt_data,
    relative_difference,
    scalars,
    train,
)
from modules.test_grpo_equations import TEMPERATURE, G
from modules.test_policy_updates import assert_same_change, sgd
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpovi_lightning.adjustment import KLInReward
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses import BNPOLoss, EntropyBonus, GRPOLoss, HighEntropyTokens, TruncatedImportanceSampling
from grpovi_lightning.randomness import minibatch_order

NEUTRAL = {
    "entropy bonus": {"loss": EntropyBonus(GRPOLoss(beta=0.04), entropy_coef=0.0)},
    "high-entropy tokens": {"token_selection": HighEntropyTokens(top_entropy_quantile=1.0)},
    "KL in the reward": {"adjustment": KLInReward(beta=0.0)},
}
"""Settings at which a method is plain GRPO."""
ADDED = {"frac_tokens_selected"}
"""What they log beside its scalars."""


@pytest.mark.parametrize("passes", [{}, {"num_iterations": 2}], ids=["one", "two"])
@pytest.mark.parametrize("name", NEUTRAL)
def test_at_its_neutral_setting_a_method_is_grpo_to_the_last_bit(policy_folder, tmp_path, name, passes):
    steps = 3 * passes.get("num_iterations", 1)
    plain = train(grpo(policy_folder, **passes), tmp_path / "plain", steps)
    neutral = train(grpo(policy_folder, **passes, **NEUTRAL[name]), tmp_path / "neutral", steps)
    for step in range(3):
        assert identical(neutral.weights[step], plain.weights[step])
    logged, expected = scalars(tmp_path / "neutral"), scalars(tmp_path / "plain")
    assert {tag: logged[tag] for tag in logged.keys() - ADDED} == expected
    assert relative_difference(plain.weights[-1], plain.before) > 1e-3


def statistics(model, prompt, completion):
    """Log-probabilities and entropies of one sequence without padding, [T] each, with gradient."""
    logits = model(torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
    distribution = logits.log_softmax(-1)
    return distribution[range(len(completion)), completion], -(distribution.exp() * distribution).sum(-1)


def plain_run(folder, recorded, coefficient=0.0, share=1.0, num_iterations=1, num_minibatches=1):
    """BNPO by SGD, sequence by sequence: the weights at the end, and the tokens selected in each step."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy = AutoModelForCausalLM.from_pretrained(folder).eval()
    optimizer, chosen = sgd(policy.parameters()), []
    for step, output in enumerate(recorded.outputs):
        texts, tokens = output.rollout.prompts.texts, completion_tokens(output)
        samples = [(tokenizer(texts[i // G])["input_ids"], ids) for i, ids in enumerate(tokens)]
        with torch.no_grad():
            old, entropies = zip(*(statistics(policy, *sample) for sample in samples), strict=True)
        everywhere = torch.cat(entropies).sort(descending=True).values
        threshold = everywhere[max(1, round(share * len(everywhere))) - 1] - 1e-4
        selected = [values >= threshold for values in entropies]
        chosen.append(selected)
        for iteration in range(num_iterations):
            for part in minibatch_order(1, step, iteration, num_minibatches):
                rows = [i for i in range(len(samples)) if i // G % num_minibatches == part]
                loss = 0.0
                for i in rows:
                    logprobs, spread = statistics(policy, *samples[i])
                    ratio, advantage = (logprobs - old[i]).exp(), output.advantages.flatten()[i]
                    surrogate = torch.min(ratio * advantage, ratio.clip(0.8, 1.2) * advantage)
                    loss = loss - (surrogate[selected[i]].sum() + coefficient * spread.sum())
                optimizer.zero_grad()
                (loss / sum(len(samples[i][1]) for i in rows)).backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                optimizer.step()
    return {name: p.detach() for name, p in policy.named_parameters()}, chosen


@pytest.mark.parametrize("passes", [{}, {"num_iterations": 2, "num_minibatches": 2}], ids=["one", "four"])
class TestAgainstAPlainLoop:
    def run(self, policy_folder, tmp_path, passes, loss, **settings):
        module = grpo(policy_folder, loss=loss, optimizer=sgd, **passes, **settings)
        data = prompt_data(tmp_path / "data", prompts_per_step=4)
        return train(module, tmp_path, 12 if passes else 3, data=data)

    def test_the_entropy_bonus(self, policy_folder, tmp_path, passes):
        recorded = self.run(policy_folder, tmp_path, passes, EntropyBonus(BNPOLoss(), 0.3))
        expected, _ = plain_run(policy_folder, recorded, coefficient=0.3, **passes)
        without, _ = plain_run(policy_folder, recorded, **passes)
        assert_same_change(recorded.weights[-1], expected, recorded.before)
        assert relative_difference(without, expected) > 1e-3

    def test_the_high_entropy_tokens(self, policy_folder, tmp_path, passes):
        recorded = self.run(policy_folder, tmp_path, passes, BNPOLoss(), token_selection=HighEntropyTokens(0.3))
        expected, chosen = plain_run(policy_folder, recorded, share=0.3, **passes)
        assert_same_change(recorded.weights[-1], expected, recorded.before)
        logged = scalars(tmp_path)["frac_tokens_selected"]
        for step, (output, selected) in enumerate(zip(recorded.outputs, chosen, strict=True)):
            mask = output.experience.selected[output.rollout.completion_mask]
            assert torch.equal(mask, torch.cat(selected))
            assert logged[step] == pytest.approx(mask.float().mean().item()) and 0.29 < logged[step] < 0.5


def test_micro_batches_change_no_selection(policy_folder, tmp_path):
    settings = {"loss": BNPOLoss(), "optimizer": sgd, "token_selection": HighEntropyTokens(0.25)}
    runs = [
        train(grpo(policy_folder, **settings, **limits), tmp_path / name)
        for name, limits in (("whole", {}), ("parts", {"prompts_per_micro_batch": 1}))
    ]
    for whole, part in zip(runs[0].outputs, runs[1].outputs, strict=True):
        assert torch.equal(whole.experience.selected, part.experience.selected)
    assert relative_difference(runs[1].weights[-1], runs[0].weights[-1]) < 1e-5
    assert_same_change(runs[1].weights[-1], runs[0].weights[-1], runs[0].before, 1e-4)


def test_only_tokens_that_are_learned_from_are_ranked(policy_folder, tmp_path):
    def partly(prompts, completions, completion_ids, **columns):
        scores = graded(prompts, completions, completion_ids)
        return [None if i % 3 == 0 else score for i, score in enumerate(scores)]

    module = grpo(policy_folder, partly, loss=GRPOLoss(), token_selection=HighEntropyTokens(0.5))
    experience = train(module, tmp_path, 1).outputs[0].experience
    assert not (experience.selected & ~experience.loss_mask).any()
    share = experience.selected.sum().item() / experience.loss_mask.sum().item()
    assert 0.5 <= share < 0.7 and experience.loss_mask.sum() < experience.rollout.completion_mask.sum()


@pytest.mark.parametrize("correction", [None, TruncatedImportanceSampling()])
@pytest.mark.parametrize("num_iterations", [1, 2])
def test_in_lower_precision_the_selection_stands_beside_the_other_corrections(
    policy_folder, tmp_path, correction, num_iterations
):
    settings = {"importance_sampling": correction, "num_iterations": num_iterations}
    module = grpo(policy_folder, token_selection=HighEntropyTokens(0.3), **settings)
    recorded = train(module, tmp_path, num_iterations, precision="bf16-mixed")
    experience = recorded.outputs[0].experience
    assert (experience.old_logprobs is None) == (num_iterations == 1)
    assert (experience.sampling_weights is None) == (num_iterations == 1 or correction is None)
    assert 0 < experience.selected.sum() < 0.5 * experience.loss_mask.sum()
    assert relative_difference(recorded.weights[-1], recorded.before) > 1e-4


@pytest.mark.parametrize(
    ("loss", "asked"), [(GRPOLoss(), False), (EntropyBonus(GRPOLoss(), 0.1), True)], ids=["", "bonus"]
)
def test_entropies_have_a_gradient_only_where_a_loss_asks_for_it(policy_folder, tmp_path, loss, asked):
    module = grpo(policy_folder, loss=loss)
    module.configure_model()
    found, compute = [], module.policy.completion_statistics

    def watched(*given, **options):
        result = compute(*given, **options)
        found.append((torch.is_grad_enabled(), result.entropies.requires_grad))
        return result

    module.policy.completion_statistics = watched
    train(module, tmp_path, 1)
    assert found == [(True, asked)]


def test_with_an_entropy_bonus_groups_without_advantage_cannot_be_skipped(policy_folder):
    with pytest.raises(UserError, match=r"skip_zero_advantage_groups cannot take effect: got entropy_coef 0\.1"):
        grpo(policy_folder, loss=EntropyBonus(GRPOLoss(), 0.1), skip_zero_advantage_groups=True)


def test_the_kl_in_the_reward_moves_the_advantages_and_not_the_logged_reward(policy_folder, tmp_path):
    settings = {"loss": GRPOLoss(), "num_iterations": 2}
    plain = train(grpo(policy_folder, **settings), tmp_path / "plain", 6)
    recorded = train(grpo(policy_folder, adjustment=KLInReward(0.5), **settings), tmp_path / "penalty", 6)
    logged = scalars(tmp_path / "penalty")
    # In the first step the policy is the reference, up to rounding.
    assert relative_difference(recorded.weights[0], plain.weights[0]) < 1e-5
    assert relative_difference(recorded.weights[-1], plain.weights[-1]) > 1e-4
    for step, output in enumerate(recorded.outputs):
        rollout = output.rollout
        raw = torch.tensor(graded(None, rollout.texts, completion_tokens(output))).view(3, G)
        assert torch.equal(output.rewards, raw)
        assert logged["reward"][step] == pytest.approx(raw.mean().item(), rel=1e-6)
        kl = ((rollout.old_logprobs - rollout.ref_logprobs) * rollout.completion_mask).sum(1).view(3, G)
        penalised = raw - 0.5 * kl
        expected = (penalised - penalised.mean(1, keepdim=True)) / (penalised.std(1, keepdim=True) + 1e-4)
        torch.testing.assert_close(output.advantages, expected, rtol=1e-4, atol=1e-4)
    assert (recorded.outputs[2].adjusted.rewards - recorded.outputs[2].rewards).abs().max() > 0.01
    assert recorded.outputs[0].adjustment == "KLInReward" and recorded.outputs[0].adjusts
    assert "kl" in logged and "kl" not in scalars(tmp_path / "plain")
