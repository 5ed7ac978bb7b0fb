"""A reward model that learns while the policy does, in real runs."""

import json

import pytest
import torch
from modules.grpo_runs import graded, grpo, identical, scalars, train

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.callbacks import RewardWatch, RunStatus
from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards import CompositeReward, RewardFunction
from grpovi_lightning.rewards.online import (
    BradleyTerryOracle,
    FeatureModel,
    FileOracle,
    LinearReward,
    MaximumLikelihood,
    MeanOverTokens,
    OnlineLearning,
    OnlineMirrorDescent,
)


def settings(policy_folder, estimator=OnlineMirrorDescent, oracle=None, **online):
    learning = OnlineLearning(oracle or BradleyTerryOracle(graded, 10.0), **{"every_n_steps": 2} | online)
    linear = LinearReward(FeatureModel(str(policy_folder)), estimator=estimator, online=learning)
    return {
        "reward": CompositeReward([linear, RewardFunction(graded, name="gold")], [1.0, 0.0]),
        "adjustment": VarianceIncrease(),
    }


@pytest.mark.parametrize("estimator", [OnlineMirrorDescent, MaximumLikelihood])
def test_the_reward_changes_after_its_rounds_and_the_policy_follows(policy_folder, tmp_path, estimator):
    module = grpo(policy_folder, **settings(policy_folder, estimator))
    recorded = train(module, tmp_path, 5, validate_every=1)

    logged = scalars(tmp_path)
    assert set(logged[keys.ONLINE_LABELS]) == {0, 2, 4} and module.reward.parts[0].estimator.n_pairs == 9
    assert list(logged["eval/online/labels"].values()) == [0.0, 3.0, 3.0, 6.0, 6.0, 9.0]
    assert not recorded.outputs[0].rewards.any() and recorded.outputs[1].rewards.std() > 0
    assert all(0.0 <= value <= 1.0 for value in logged[keys.ONLINE_PAIR_ACCURACY].values())
    assert set(logged[keys.pair_agreement("gold")]) == set(range(5))
    assert not identical(recorded.weights[-1], recorded.before)


def test_the_range_of_the_variance_increase_starts_anew_with_each_reward(policy_folder, tmp_path):
    module = grpo(policy_folder, **settings(policy_folder))
    recorded = train(module, tmp_path, 5)
    logged = scalars(tmp_path)
    extremes = [(float(out.rewards.min()), float(out.rewards.max())) for out in recorded.outputs]
    # Learned after steps 0, 2 and 4: a range holds steps {0}, {1, 2} and {3, 4}.
    for step, steps in ((1, [1]), (2, [1, 2]), (3, [3]), (4, [3, 4])):
        lower, upper = min(extremes[s][0] for s in steps), max(extremes[s][1] for s in steps)
        assert logged[keys.ADJUSTMENT_RANGE_LOWER][step] == pytest.approx(lower)
        assert logged[keys.ADJUSTMENT_RANGE_UPPER][step] == pytest.approx(upper)
    assert extremes[1] != extremes[3]


def test_what_a_grpo_run_says_of_the_variance_increase_is_of_the_reward_at_that_step(policy_folder, tmp_path):
    """The counterfactual's range starts anew as well, and not before its step was described."""
    recorded = train(grpo(policy_folder, **settings(policy_folder) | {"adjustment": None}), tmp_path, 5)
    logged = scalars(tmp_path)
    extremes = [(float(out.rewards.min()), float(out.rewards.max())) for out in recorded.outputs]
    for step, steps in ((1, [1]), (2, [1, 2]), (3, [3]), (4, [3, 4])):
        assert logged[keys.ADJUSTMENT_RANGE_LOWER][step] == pytest.approx(min(extremes[s][0] for s in steps))
        assert logged[keys.ADJUSTMENT_RANGE_UPPER][step] == pytest.approx(max(extremes[s][1] for s in steps))


def test_a_run_that_goes_on_with_answers_that_came_meanwhile_asks_what_it_now_samples(policy_folder, tmp_path):
    """Answers are there earlier than they were: the policy goes another way, and nothing is mixed up."""
    folder = tmp_path / "oracle"

    def module():
        return grpo(policy_folder, **settings(policy_folder, oracle=FileOracle(str(folder), 0.0)))

    def answer(step):
        lines = (folder / "questions" / f"{step:08d}.jsonl").read_text().splitlines()
        names = [json.loads(line)["name"] for line in lines]
        (folder / "answers" / f"{step}.jsonl").write_text("".join(f'{{"name": "{n}", "label": 1}}\n' for n in names))
        return names

    every = {"checkpoint_every": 1, "max_epochs": -1}
    train(module(), tmp_path / "run", 5, **every)  # nobody answers
    first, asked = answer(0), (folder / "questions" / "00000004.jsonl").read_text()
    resumed = module()
    train(resumed, tmp_path / "run", 5, ckpt_path=tmp_path / "run" / "checkpoints" / "step=2.ckpt", **every)

    online = resumed.reward.parts[0].online
    assert online.n_labels == len(first) == 3
    assert (folder / "questions" / "00000004.jsonl").read_text().startswith(asked)
    assert len((folder / "questions" / "00000004.jsonl").read_text().splitlines()) > 3


def test_what_was_learned_is_saved_beside_the_policy_and_can_be_started_from(policy_folder, tmp_path, tiny_tokenizer):
    module = grpo(policy_folder, **settings(policy_folder))
    train(module, tmp_path / "run", 3)
    module.save_pretrained(tmp_path / "run" / "model")
    started = LinearReward(FeatureModel(str(policy_folder)), start=str(tmp_path / "run" / "reward_model"))
    started.load(tiny_tokenizer)
    assert torch.equal(started.estimator.theta, module.reward.parts[0].estimator.theta)
    assert started.estimator.theta.any()


def test_a_checkpoint_of_other_features_is_refused(policy_folder, tmp_path):
    train(grpo(policy_folder, **settings(policy_folder)), tmp_path / "run", 1, checkpoint_every=1)
    other = settings(policy_folder)
    other["reward"].parts[0].features.poolings = [MeanOverTokens()]
    with pytest.raises(UserError, match="checkpoint: it belongs to other features"):
        train(
            grpo(policy_folder, **other), tmp_path / "run", 2, ckpt_path=tmp_path / "run" / "checkpoints" / "last.ckpt"
        )


def test_three_steps_and_three_more_equal_six_to_the_last_bit(policy_folder, tmp_path):
    every = {"validate_every": 2, "checkpoint_every": 3, "max_epochs": -1}
    straight_module = grpo(policy_folder, **settings(policy_folder))
    straight = train(straight_module, tmp_path / "straight", 6, **every)
    train(grpo(policy_folder, **settings(policy_folder)), tmp_path / "cut", 3, **every)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    module = grpo(policy_folder, **settings(policy_folder))
    resumed = train(module, tmp_path / "cut", 6, ckpt_path=last, **every)

    assert identical(resumed.weights[-1], straight.weights[-1])
    ours, theirs = (built.reward.parts[0].estimator for built in (module, straight_module))
    assert torch.equal(ours.theta, theirs.theta) and torch.equal(ours.inverse, theirs.inverse)
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "straight")
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert [name for name in saved if name.startswith("reward.")] == ["reward.parts.0._extra_state"]


def test_arms_with_and_without_learning_begin_with_the_same_completions(policy_folder, tmp_path):
    frozen = LinearReward(FeatureModel(str(policy_folder)))
    first = train(grpo(policy_folder, reward=frozen), tmp_path / "frozen", 1)
    second = train(grpo(policy_folder, **settings(policy_folder)), tmp_path / "online", 1)
    assert torch.equal(first.outputs[0].rollout.completion_ids, second.outputs[0].rollout.completion_ids)
    assert not any(tag.startswith(keys.ONLINE_PREFIX) for tag in scalars(tmp_path / "frozen"))


def test_a_silent_oracle_stops_nothing_and_the_record_says_so(policy_folder, tmp_path):
    folder = tmp_path / "questions"
    module = grpo(policy_folder, **settings(policy_folder, oracle=FileOracle(str(folder), 0.0)))
    status = RunStatus(tmp_path / "run", 1)
    with pytest.warns(UserWarning, match="had no answer after 0 s"):
        recorded = train(module, tmp_path / "run", 3, status, RewardWatch())

    record = json.loads((tmp_path / "run" / "status.json").read_text())
    assert record["state"] == "finished" and len(recorded.outputs) == 3
    assert sum("had no answer after 0 s; training goes on" in line for line in record["warnings"]) == 1
    assert scalars(tmp_path / "run")[keys.ONLINE_UNANSWERED] == {0: 3.0, 2: 6.0}
    assert sorted(file.name for file in (folder / "questions").iterdir()) == ["00000000.jsonl", "00000002.jsonl"]
    assert not module.reward.parts[0].estimator.theta.any()
