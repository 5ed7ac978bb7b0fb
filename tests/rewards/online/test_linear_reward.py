"""A linear reward scores by what its head says, and learns from comparisons of the completions at hand."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers.rollouts import rollout_of_words
from helpers.tiny_checkpoints import save_policy
from helpers.two_processes import run_in_two_processes
from transformers import AutoTokenizer

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards import CompositeReward, RewardFunction
from grpovi_lightning.rewards.online import (
    BradleyTerryOracle,
    ConstantRate,
    FeatureModel,
    FileOracle,
    LinearReward,
    MaximumLikelihood,
    OnlineLearning,
    OnlineMirrorDescent,
    Oracle,
    RandomPairs,
    StochasticGradientDescent,
    UncertainPairs,
)
from grpovi_lightning.rewards.online.head import HEAD_FILE, STATE_FILE, save_head
from grpovi_lightning.rewards.online.oracle import Answers

PROMPTS = ["write about the fox", "write about the small red boat and the river", "a dog"]
GROUPS = [
    ["the fox runs", "fox", "a cat sings ."],
    ["a boat in the river near the old tree .", "red red boat", "it"],
    ["the dog sleeps", "dog dog", "a"],
]
CUT = [False, True, False, True, False, False, False, False, True]


def words(prompts, completions, completion_ids, **columns):
    return [float(len(text.split())) for text in completions]


@pytest.fixture
def rollout(tiny_tokenizer):
    return rollout_of_words(tiny_tokenizer, PROMPTS, GROUPS, truncated=CUT)


@pytest.fixture
def linear(policy_folder, tiny_tokenizer):
    def build(**settings):
        reward = LinearReward(FeatureModel(str(policy_folder)), **settings)
        reward.check()
        reward.load(tiny_tokenizer)
        return reward

    return build


def sure(**settings):
    """Learning from answers without noise."""
    return OnlineLearning(BradleyTerryOracle(words, 1e3), **settings)


def phi(reward, tokenizer):
    """Features of each completion by itself."""
    texts = [text for group in GROUPS for text in group]
    rows = [
        tokenizer(PROMPTS[i // 3])["input_ids"] + tokenizer(text)["input_ids"] + ([] if cut else [1])
        for i, (text, cut) in enumerate(zip(texts, CUT, strict=True))
    ]
    return torch.cat([reward.features([row]) for row in rows]).double()


def test_scores_are_standardised_products_of_features_and_theta(linear, tmp_path, tiny_tokenizer, rollout):
    trained = OnlineMirrorDescent(32)
    trained.update(torch.randn(20, 32, generator=torch.Generator().manual_seed(0)), torch.ones(20))
    save_head(tmp_path, linear().features.fingerprint, trained, mean=0.25, std=4.0)
    reward = linear(start=str(tmp_path), name="proxy")
    expected = (phi(reward, tiny_tokenizer) @ trained.theta - 0.25) / 4.0
    found = reward.components(rollout)["proxy"]
    assert found.dtype == torch.float32 and expected.std() > 0.05
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    assert reward.weights() == {"proxy": 1.0} and not reward.learns and reward.progress() == {}


def test_without_online_learning_nothing_changes(linear, rollout):
    reward = linear()
    assert not reward.learn(rollout, seed=1).changed and reward.estimator.n_pairs == 0


@pytest.mark.parametrize("estimator", [OnlineMirrorDescent, MaximumLikelihood])
def test_a_round_is_an_update_with_the_chosen_differences_and_their_labels(linear, tiny_tokenizer, rollout, estimator):
    reward = linear(estimator=estimator, online=sure(pairs_per_round=3))
    asked, answer = [], reward.online.oracle.answer
    reward.online.oracle.answer = lambda *a: (asked.extend(a[1]), answer(*a))[1]
    update = reward.learn(rollout, seed=1)

    features, gold = phi(reward, tiny_tokenizer), torch.tensor(words(None, rollout.texts, None))
    z = torch.stack([features[q.first] - features[q.second] for q in asked])
    y = torch.tensor([float(gold[q.first] > gold[q.second]) for q in asked])
    expected = estimator(32)
    expected.update(z, y)
    assert len(asked) == 3 and {q.first // 3 for q in asked} == {0, 1, 2}
    assert update.changed and reward.estimator.n_pairs == 3
    torch.testing.assert_close(reward.estimator.theta, expected.theta, rtol=1e-4, atol=1e-6)


def test_what_a_round_logs(linear, tiny_tokenizer, rollout):
    reward = linear(online=sure(pairs_per_round=3, selection=UncertainPairs()))
    first = reward.learn(rollout, seed=1).metrics
    assert first[keys.ONLINE_PAIR_ACCURACY] == 0.5  # theta is 0: it cannot tell
    assert first[keys.ONLINE_CROSS_ENTROPY] == pytest.approx(math.log(2))
    assert first[keys.ONLINE_LABELS] == 3.0 == reward.progress()[keys.ONLINE_LABELS]
    assert first[keys.ONLINE_UNANSWERED] == 0.0
    assert first[keys.ONLINE_STATE_BYTES] == 8 * (32 + 32 * 32)

    theta = reward.estimator.theta
    asked, answer = [], reward.online.oracle.answer
    reward.online.oracle.answer = lambda *a: (asked.extend(a[1]), answer(*a))[1]
    inverse = reward.estimator.inverse
    second = reward.learn(replace(rollout, step=4), seed=1).metrics
    features, gold = phi(reward, tiny_tokenizer), torch.tensor(words(None, rollout.texts, None)).double()
    z = torch.stack([features[q.first] - features[q.second] for q in asked])
    y = torch.tensor([float(gold[q.first] > gold[q.second]) for q in asked])
    chance = torch.where(y == 1, torch.sigmoid(z @ theta), torch.sigmoid(-z @ theta))
    assert second[keys.ONLINE_PAIR_ACCURACY] == pytest.approx((chance > 0.5).double().mean().item())
    assert second[keys.ONLINE_CROSS_ENTROPY] == pytest.approx(-chance.log().mean().item(), rel=1e-4)
    expected = torch.stack([(v @ inverse @ v).sqrt() for v in z]).mean()
    assert second[keys.ONLINE_UNCERTAINTY] == pytest.approx(expected.item(), rel=1e-4)
    best = torch.stack([gold[q.first // 3 * 3 : q.first // 3 * 3 + 3].max() for q in asked])
    compared = torch.stack([(gold[q.first] + gold[q.second]) / 2 for q in asked])
    assert second[keys.ONLINE_REGRET] == pytest.approx((best - compared).mean().item())
    assert second[keys.ONLINE_KAPPA] == pytest.approx((1 / (chance * (1 - chance))).max().item(), rel=1e-4)
    assert second[keys.ONLINE_LABELS] == 6.0


def test_an_estimator_without_a_hessian_logs_what_it_can(linear, rollout):
    reward = linear(
        estimator=lambda dim: StochasticGradientDescent(dim, ConstantRate(0.1)), online=sure(pairs_per_round=2)
    )
    metrics = reward.learn(rollout, seed=1).metrics
    assert keys.ONLINE_UNCERTAINTY not in metrics and metrics[keys.ONLINE_LABELS] == 2.0
    random = linear(online=sure(pairs_per_round=2)).learn(rollout, seed=1).metrics
    assert keys.ONLINE_UNCERTAINTY not in random  # nothing has read the Hessian


def test_what_cannot_work_is_refused_before_anything_is_loaded(policy_folder):
    features = FeatureModel(str(policy_folder))
    with pytest.raises(UserError, match=r"lam: got -1\.0, expected"):
        LinearReward(features, estimator=lambda dim: OnlineMirrorDescent(dim, lam=-1.0)).check()
    sgd = LinearReward(
        features,
        estimator=lambda dim: StochasticGradientDescent(dim, ConstantRate(0.1)),
        online=sure(selection=UncertainPairs()),
    )
    with pytest.raises(UserError, match="UncertainPairs: got StochasticGradientDescent, expected an estimator that"):
        sgd.check()


def test_rounds_fall_due_every_so_many_steps_and_end_with_the_labels(linear, rollout):
    reward = linear(online=sure(every_n_steps=3, pairs_per_round=2, max_labels=5))
    learned = [bool(reward.learn(replace(rollout, step=step), seed=1).changed) for step in range(13)]
    assert [step for step, changed in enumerate(learned) if changed] == [0, 3, 6]
    assert reward.progress()[keys.ONLINE_LABELS] == 5.0  # 2, 2 and the last 1


def test_a_seed_and_a_step_choose_the_questions(linear, rollout):
    def places(seed, step):
        reward = linear(online=sure(pairs_per_round=2))
        reward.online.oracle.answer = lambda *a: (asked.append([(q.first, q.second) for q in a[1]]), Answers({}))[1]
        asked = []
        reward.learn(replace(rollout, step=step), seed)
        return asked[0]

    assert places(1, 0) == places(1, 0)
    assert len({tuple(places(seed, step)) for seed in (1, 2, 3) for step in (0, 4)}) > 3


class LateOracle(Oracle):
    """Leaves all unanswered until `ready`; then prefers the first of everything asked so far."""

    ready = False

    def answer(self, rollout, questions, unanswered, seed):
        names = [*unanswered, *(question.name for question in questions)]
        return Answers(dict.fromkeys(names, 1)) if self.ready else Answers({}, problems=["nobody answers"])


def test_questions_without_an_answer_wait_and_nothing_is_lost(linear, tiny_tokenizer, rollout):
    oracle = LateOracle()
    reward = linear(online=OnlineLearning(oracle, every_n_steps=1, pairs_per_round=2))
    before = reward.components(rollout)["reward_model"]
    update = reward.learn(rollout, seed=1)
    assert not update.changed and update.problems == ["nobody answers"]
    assert update.metrics[keys.ONLINE_UNANSWERED] == 2.0 and keys.ONLINE_PAIR_ACCURACY not in update.metrics
    assert torch.equal(reward.components(rollout)["reward_model"], before)

    state = reward.get_extra_state()
    resumed = linear(online=OnlineLearning(oracle, every_n_steps=1, pairs_per_round=2))
    resumed.set_extra_state(state)
    oracle.ready = True
    waited = list(resumed.online.pending.values())
    update = resumed.learn(replace(rollout, step=1), seed=1)
    assert update.changed and update.metrics[keys.ONLINE_LABELS] == 4.0 and resumed.online.pending == {}
    assert len(waited) == 2 and resumed.estimator.n_pairs == 4


def test_an_answer_that_comes_late_teaches_what_it_would_have_taught(linear, rollout):
    late = linear(online=OnlineLearning(LateOracle(), every_n_steps=1, pairs_per_round=2, max_labels=2))
    late.learn(rollout, seed=1)
    late.online.oracle.ready = True
    late.learn(replace(rollout, step=1), seed=1)  # asks nothing more: two labels are all there may be
    prompt = linear(online=OnlineLearning(LateOracle(), every_n_steps=1, pairs_per_round=2, max_labels=2))
    prompt.online.oracle.ready = True
    prompt.learn(rollout, seed=1)
    assert late.progress() == prompt.progress() == {keys.ONLINE_LABELS: 2.0, keys.ONLINE_UNANSWERED: 0.0}
    assert torch.equal(late.estimator.theta, prompt.estimator.theta)


class Slow(LateOracle):
    """Wants to be asked three times before it answers."""

    ready = True
    calls = 0

    def answer(self, rollout, questions, unanswered, seed):
        self.calls += 1
        answers = super().answer(rollout, questions, unanswered, seed)
        return answers if self.calls > 2 else replace(answers, labels={}, waiting=True)


def test_an_oracle_that_waits_is_asked_again_until_the_run_is_to_stop(linear, rollout):
    patient = linear(online=OnlineLearning(Slow(), pairs_per_round=2))
    assert patient.learn(rollout, seed=1).changed and patient.online.oracle.calls == 3
    hurried = linear(online=OnlineLearning(Slow(), pairs_per_round=2))
    update = hurried.learn(rollout, seed=1, stopping=lambda: True)
    assert not update.changed and hurried.online.oracle.calls == 1 and len(hurried.online.pending) == 2


def test_open_questions_keep_their_own_numbers_only(linear, rollout):
    reward = linear(online=OnlineLearning(LateOracle(), pairs_per_round=2))
    reward.learn(rollout, seed=1)
    for z in reward.online.pending.values():
        assert z.untyped_storage().nbytes() == 32 * 8


def test_a_person_answers_through_files(linear, rollout, tmp_path):
    reward = linear(online=OnlineLearning(FileOracle(str(tmp_path), 0.0), every_n_steps=1, pairs_per_round=2))
    assert "had no answer after 0 s" in reward.learn(rollout, seed=1).problems[0]
    questions = [json.loads(line) for line in (tmp_path / "questions" / "00000000.jsonl").read_text().splitlines()]
    lines = [json.dumps({"name": q["name"], "label": int(len(q["first"]) > len(q["second"]))}) for q in questions]
    (tmp_path / "answers" / "me.jsonl").write_text("\n".join(lines))
    update = reward.learn(replace(rollout, step=1), seed=1)
    assert (
        update.changed and update.metrics[keys.ONLINE_LABELS] == 2.0 and update.metrics[keys.ONLINE_UNANSWERED] == 2.0
    )


def test_state_goes_through_a_checkpoint_to_the_last_bit(linear, rollout, tmp_path):
    reward = linear(online=sure(every_n_steps=1))
    reward.learn(rollout, seed=1)
    torch.save(reward.state_dict(), tmp_path / "state.ckpt")
    resumed = linear(online=sure(every_n_steps=1))
    resumed.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))
    for one in (reward, resumed):
        one.learn(replace(rollout, step=1), seed=1)
    assert torch.equal(reward.estimator.theta, resumed.estimator.theta)
    assert torch.equal(reward.estimator.inverse, resumed.estimator.inverse)
    assert reward.progress() == resumed.progress()


def test_a_checkpoint_of_another_estimator_or_other_settings_is_refused(linear):
    state = linear(online=sure()).get_extra_state()
    with pytest.raises(UserError, match="checkpoint: estimator: got MaximumLikelihood, expected OnlineMirrorDescent"):
        linear(estimator=MaximumLikelihood, online=sure()).set_extra_state(state)
    with pytest.raises(UserError, match=r"checkpoint: settings: got .*'lam': 2.0.*, expected .*'lam': 1.0"):
        linear(estimator=lambda dim: OnlineMirrorDescent(dim, lam=2.0), online=sure()).set_extra_state(state)


def test_a_composite_learns_through_its_one_part_that_does(linear, tiny_tokenizer, rollout):
    part = linear(online=sure(pairs_per_round=2))
    both = CompositeReward([part, RewardFunction(words)], [1.0, 0.0])
    assert both.learns and both.learn(rollout, seed=1).changed
    assert both.progress() == {keys.ONLINE_LABELS: 2.0, keys.ONLINE_UNANSWERED: 0.0}
    assert [name for name in both.state_dict() if name.endswith("_extra_state")] == ["parts.0._extra_state"]
    plain = CompositeReward([linear(), RewardFunction(words)])
    assert not plain.learns and not plain.learn(rollout, seed=1).changed
    watched = CompositeReward([linear(online=sure(pairs_per_round=2)), RewardFunction(words)], [0.0, 1.0])
    update = watched.learn(rollout, seed=1)
    assert not update.changed and update.metrics[keys.ONLINE_LABELS] == 2.0
    with pytest.raises(UserError, match="got 2 parts that learn, expected at most one"):
        CompositeReward([part, linear(online=sure(), name="other")])


@pytest.mark.parametrize("name", ["every_n_steps", "pairs_per_round", "max_labels"])
def test_numbers_below_1_are_refused(name):
    with pytest.raises(UserError, match=f"online learning {name}: got 0, expected at least 1"):
        sure(**{name: 0})


class TestHead:
    @pytest.fixture
    def head(self, linear, tmp_path):
        folder = tmp_path / "head"
        save_head(folder, linear().features.fingerprint, OnlineMirrorDescent(32), 0.0, 1.0)
        return folder

    def test_a_folder_without_one_is_refused_before_anything_is_loaded(self, policy_folder, tmp_path):
        with pytest.raises(UserError, match=r"no linear_reward\.json there; expected a folder that OnePassRewardMod"):
            LinearReward(FeatureModel(str(policy_folder)), start=str(tmp_path)).check()

    def test_one_of_other_features_is_refused(self, head, tmp_path, tokenizer_folder, tiny_tokenizer):
        other = FeatureModel(str(save_policy(tmp_path / "other", tokenizer_folder, seed=7)))
        with pytest.raises(UserError, match="head: it belongs to other features"):
            LinearReward(other, start=str(head)).load(tiny_tokenizer)

    def test_one_of_another_estimator_is_refused(self, head, linear):
        with pytest.raises(UserError, match="estimator: got MaximumLikelihood, expected OnlineMirrorDescent"):
            linear(start=str(head), estimator=MaximumLikelihood)

    @pytest.mark.parametrize("settings", [{"lam": 2.0}, {"radius": 0.5}])
    def test_one_of_other_settings_is_refused(self, head, linear, settings):
        with pytest.raises(UserError, match=r"settings: got .*, expected .*'lam': 1.0.*, with which it was trained"):
            linear(start=str(head), estimator=lambda dim: OnlineMirrorDescent(dim, **settings))

    @pytest.mark.parametrize("name", [HEAD_FILE, STATE_FILE])
    def test_a_damaged_one_is_named(self, head, linear, name):
        content = (head / name).read_bytes()
        (head / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=rf"{name}.*(not JSON|is damaged).*again"):
            linear(start=str(head))

    def test_one_that_lacks_a_key_is_named(self, head, linear):
        (head / HEAD_FILE).write_text("{}")
        with pytest.raises(UserError, match="expected the keys estimator, features, numbers"):
            linear(start=str(head))


def _rank(rank, folder, policy_folder):
    """Each rank has one of two prompts; both must come to what one process does with both."""
    reward, rollout = _two_prompts(policy_folder)
    reward.learn(rollout.select([rank]), seed=1)
    torch.save((reward.estimator.theta, reward.progress()), f"{folder}/{rank}.pt")


def _unanswered_rank(rank, folder, policy_folder):
    """Nobody answers: both go on after the same wait."""
    reward, rollout = _two_prompts(policy_folder)
    reward.online.oracle = FileOracle(f"{folder}/oracle", timeout_seconds=0.3, poll_seconds=0.05)
    update = reward.learn(rollout.select([rank]), seed=1)
    assert not update.changed and len(reward.online.pending) == 2


def _failing_rank(rank, folder, policy_folder):
    reward, rollout = _two_prompts(policy_folder)
    reward.online.oracle.reward = RewardFunction(lambda prompts, completions, completion_ids: [None] * 4)
    with pytest.raises(TrainingError, match="gave no reward"):
        reward.learn(rollout.select([rank]), seed=1)


def _two_prompts(policy_folder):
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    reward = LinearReward(FeatureModel(policy_folder), online=sure(selection=RandomPairs(), pairs_per_round=2))
    reward.load(tokenizer)
    return reward, rollout_of_words(tokenizer, PROMPTS[:2], [group[:2] for group in GROUPS[:2]])


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_learns(policy_folder, tmp_path):
    run_in_two_processes(_rank, tmp_path, str(policy_folder))
    alone, rollout = _two_prompts(str(policy_folder))
    alone.learn(rollout, seed=1)
    for rank in range(2):
        theta, progress = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        # Features are float32 and their last bits depend on the batch; that moves small entries as far as large ones.
        assert (theta - alone.estimator.theta).norm() <= 1e-5 * alone.estimator.theta.norm()
        assert progress == alone.progress() == {keys.ONLINE_LABELS: 2.0, keys.ONLINE_UNANSWERED: 0.0}


@pytest.mark.slow
def test_an_oracle_that_fails_on_the_first_rank_fails_on_all(policy_folder, tmp_path):
    run_in_two_processes(_failing_rank, tmp_path, str(policy_folder))


@pytest.mark.slow
def test_two_ranks_wait_and_go_on_together(policy_folder, tmp_path):
    run_in_two_processes(_unanswered_rank, tmp_path, str(policy_folder))
    assert len(list((tmp_path / "oracle" / "questions").iterdir())) == 1
