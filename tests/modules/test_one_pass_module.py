"""One pass over a preference table through a real trainer."""

import json

import pytest
import torch
from modules.grpo_runs import quiet, scalars, trainer

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.data import PreferenceDataModule
from grpovi_lightning.errors import UserError
from grpovi_lightning.modules import OnePassRewardModule
from grpovi_lightning.randomness import step_indices
from grpovi_lightning.rewards.online import (
    FeatureModel,
    LinearReward,
    MaximumLikelihood,
    MeanOverTokens,
    OnlineMirrorDescent,
)
from grpovi_lightning.rewards.sequences import text_rows

PROMPTS = ["write about the fox", "a cat", "the old house in red", "ten words", "the river", "a boat and a dog"]
PAIRS = [(p, f"the happy {w} sings", f"the sad {w} sees it") for p in PROMPTS for w in ("fox", "dog", "cat", "tree")]


@pytest.fixture
def data(tmp_path):
    def build():
        for name, pairs in (("train", PAIRS), ("validation", PAIRS[::5])):
            rows = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))) + "\n" for pair in pairs]
            (tmp_path / f"{name}.jsonl").write_text("".join(rows))
        files = [str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")]
        return PreferenceDataModule(*files, batch_size=8, validation_batch_size=2, seed=1)

    return build


def module(policy_folder, estimator=OnlineMirrorDescent, **settings):
    return OnePassRewardModule(FeatureModel(str(policy_folder), **settings), estimator)


def fit(built, folder, data, steps, ckpt_path=None, **settings):
    with quiet():
        trainer(folder, steps, **settings).fit(built, data, ckpt_path=ckpt_path, weights_only=True)
    return built


def differences(features, rows):
    """Both sides in one batch, as the module has them: the last bits of a feature depend on the batch it is in."""
    sides = [text_rows(features.tokenizer, rows["prompt"], rows[side]) for side in ("chosen", "rejected")]
    chosen, rejected = features([*sides[0], *sides[1]]).chunk(2)
    return (chosen - rejected).double()


@pytest.mark.parametrize("estimator", [OnlineMirrorDescent, MaximumLikelihood])
def test_each_step_is_a_round_with_its_batch_and_is_judged_before(policy_folder, tmp_path, data, estimator):
    built = fit(module(policy_folder, estimator), tmp_path / "run", data(), 3)
    expected = estimator(32)
    loader = data()
    loader.setup("fit")
    loader.trainer = built.trainer
    losses, length = [], 0.0
    for step in range(3):
        table = loader.tables["train"]
        rows = [table[i] for i in step_indices(1, step, len(table), 8)]
        z = differences(built.features, loader.collate(rows))
        losses.append(-torch.sigmoid(z @ expected.theta).log().mean().item())
        expected.update(z, torch.ones(8))
        length += z.norm(dim=1).sum().item()
    assert built.estimator.n_pairs == 24
    # A fit ends with no entry of its gradient above 1e-9 * length. Its loss is curved by lam = 1 at least, so it lies
    # within sqrt(32) times that of the minimum, and two fits within twice that of each other. Mirror descent is exact.
    apart = 2 * 32**0.5 * 1e-9 * length if estimator is MaximumLikelihood else 1e-12
    assert (built.estimator.theta - expected.theta).norm() <= apart
    logged = scalars(tmp_path / "run")
    assert [logged[keys.LOSS][step] for step in range(3)] == pytest.approx(losses, rel=1e-5)


def test_held_out_figures_are_those_of_the_estimate(policy_folder, tmp_path, data):
    built = fit(module(policy_folder), tmp_path / "run", data(), 3, validate_every=3)
    loader = data()
    loader.setup("fit")
    margins = differences(built.features, loader.collate(list(loader.tables["validation"]))) @ built.estimator.theta
    logged = scalars(tmp_path / "run")
    assert logged["eval/pair_accuracy"][0] == 0.5 and logged["eval/loss"][0] == pytest.approx(0.693147, rel=1e-5)
    assert logged["eval/pair_accuracy"][3] == pytest.approx((margins > 0).double().mean().item())
    assert logged["eval/loss"][3] == pytest.approx(-torch.sigmoid(margins).log().mean().item(), rel=1e-4)


def test_several_held_out_sets_are_evaluated_by_name_and_all_of_them_standardise(policy_folder, tmp_path, data):
    files = data().sources
    sets = {"few": files["validation"], "all": files["train"]}
    named = PreferenceDataModule(files["train"], sets, batch_size=8, validation_batch_size=5, seed=1)
    built = fit(module(policy_folder), tmp_path / "run", named, 3, validate_every=3)
    logged = scalars(tmp_path / "run")
    for name, pairs in (("few", PAIRS[::5]), ("all", PAIRS)):
        rows = dict(zip(("prompt", "chosen", "rejected"), map(list, zip(*pairs, strict=True)), strict=True))
        margins = differences(built.features, rows) @ built.estimator.theta
        assert logged[f"eval/{name}/pair_accuracy"][3] == pytest.approx((margins > 0).double().mean().item())
        loss = -torch.sigmoid(margins).log().mean().item()
        assert logged[f"eval/{name}/loss"][3] == pytest.approx(loss, rel=1e-4)
    assert logged["eval/loss"] == logged["eval/few/loss"] != logged["eval/all/loss"]
    assert built.moments.count == 2 * (len(PAIRS) + len(PAIRS[::5]))


@pytest.mark.parametrize("validate_every", [3, 2], ids=["evaluated at the end", "evaluated before the end"])
def test_what_it_saves_is_what_a_linear_reward_starts_from(
    policy_folder, tmp_path, data, tiny_tokenizer, validate_every
):
    built = fit(module(policy_folder), tmp_path / "run", data(), 3, validate_every=validate_every)
    built.save_pretrained(tmp_path / "model")
    reward = LinearReward(FeatureModel(str(policy_folder)), start=str(tmp_path / "model"))
    reward.load(tiny_tokenizer)
    assert torch.equal(reward.estimator.theta, built.estimator.theta)
    assert torch.equal(reward.estimator.inverse, built.estimator.inverse)
    loader = data()
    loader.setup("fit")
    rows = loader.collate(list(loader.tables["validation"]))
    sides = [text_rows(built.features.tokenizer, rows["prompt"], rows[side]) for side in ("chosen", "rejected")]
    batches = [[row for side in sides for row in side[i : i + 2]] for i in range(0, len(sides[0]), 2)]
    scores = torch.cat([built.features(batch).double() @ built.estimator.theta for batch in batches])
    assert len(scores) == 10
    assert (reward.mean, reward.std) == pytest.approx((scores.mean().item(), scores.std().item()), rel=1e-9)


def test_without_held_out_pairs_the_rewards_stay_as_they_are_and_the_run_says_so(policy_folder, tmp_path, data, capsys):
    table = data()
    built = fit(
        module(policy_folder), tmp_path / "run", PreferenceDataModule(table.sources["train"], batch_size=8, seed=1), 2
    )
    built.save_pretrained(tmp_path / "model")
    content = json.loads((tmp_path / "model" / "linear_reward.json").read_text())
    assert (content["reward_mean"], content["reward_std"]) == (0.0, 1.0)
    assert "not standardised: no held-out pairs" in capsys.readouterr().out


def test_a_resumed_run_is_the_run_that_was_never_stopped(policy_folder, tmp_path, data):
    every = {"checkpoint_every": 1, "validate_every": 1, "max_epochs": -1}
    straight = fit(module(policy_folder), tmp_path / "straight", data(), 3, **every)
    fit(module(policy_folder), tmp_path / "cut", data(), 2, **every)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    again = fit(module(policy_folder), tmp_path / "cut", data(), 3, last, **every)
    assert torch.equal(straight.estimator.theta, again.estimator.theta)
    assert torch.equal(straight.estimator.inverse, again.estimator.inverse)
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "straight")
    assert again.moments.score_mean_and_std(again.estimator.theta) == straight.moments.score_mean_and_std(
        straight.estimator.theta
    )
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert not any(name.startswith("features.") for name in saved)


def test_features_kept_on_disk_change_nothing(policy_folder, tmp_path, data):
    plain = fit(module(policy_folder), tmp_path / "plain", data(), 2)
    kept = [
        fit(module(policy_folder, cache=str(tmp_path / "features.sqlite")), tmp_path / f"kept_{i}", data(), 2)
        for i in range(2)
    ]
    for built in kept:
        torch.testing.assert_close(built.estimator.theta, plain.estimator.theta, rtol=1e-6, atol=1e-9)
    assert torch.equal(kept[0].estimator.theta, kept[1].estimator.theta)


def test_moments_survive_a_resume_without_another_evaluation(policy_folder, tmp_path, data):
    fit(module(policy_folder), tmp_path / "cut", data(), 2, checkpoint_every=2, validate_every=2, max_epochs=-1)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    again = fit(
        module(policy_folder), tmp_path / "more", data(), 3, last, checkpoint_every=2, validate_every=2, max_epochs=-1
    )
    assert again.moments.count == 10


def test_a_checkpoint_of_other_features_is_refused(policy_folder, tmp_path, data):
    fit(module(policy_folder), tmp_path / "cut", data(), 2, checkpoint_every=1)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match="checkpoint: it belongs to other features"):
        fit(module(policy_folder, poolings=[MeanOverTokens()]), tmp_path / "cut", data(), 3, last)


def test_a_precision_that_rounds_the_features_is_refused(policy_folder, tmp_path, data):
    with pytest.raises(UserError, match=r"got trainer\.precision bf16-true, which rounds the feature model"):
        fit(module(policy_folder), tmp_path, data(), 1, precision="bf16-true")


def test_mixed_precision_learns_from_the_same_features(policy_folder, tmp_path, data):
    mixed = fit(module(policy_folder), tmp_path / "mixed", data(), 2, precision="bf16-mixed")
    plain = fit(module(policy_folder), tmp_path / "plain", data(), 2)
    assert torch.equal(mixed.estimator.theta, plain.estimator.theta)


def test_several_processes_are_refused(policy_folder, tmp_path, data):
    built = module(policy_folder)
    built.trainer = trainer(tmp_path, 1, devices=2, strategy="ddp")
    with pytest.raises(UserError, match="got 2 processes, expected 1"):
        built.configure_model()
