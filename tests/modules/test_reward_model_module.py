import json

import numpy as np
import pytest
import torch
from modules.grpo_runs import quiet, scalars, trainer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from grpovi_lightning.data import PreferenceDataModule
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LoRA, PretrainedCausalLM
from grpovi_lightning.modules import RewardModelModule
from grpovi_lightning.rewards import RewardModel
from grpovi_lightning.structures import PromptBatch, Rollout

PROMPTS = ["write about the fox", "a cat", "the old house in red", "ten words", "the river", "a boat and a dog"]
PAIRS = [(p, f"the happy {w} sings", f"the sad {w} sees it") for p in PROMPTS for w in ("fox", "dog", "cat", "tree")]


def score(model, tokenizer, prompt, completion):
    """The logit of one text, alone and without padding."""
    ids = [*tokenizer(prompt)["input_ids"], *tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
    return model(torch.tensor([ids])).logits[0, 0]


def reference_scores(folder, pairs):
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chosen = torch.stack([score(model, tokenizer, p, c) for p, c, _ in pairs])
    rejected = torch.stack([score(model, tokenizer, p, r) for p, _, r in pairs])
    return model, chosen, rejected


def batch(pairs):
    return {name: [pair[i] for pair in pairs] for i, name in enumerate(("prompt", "chosen", "rejected"))}


@pytest.fixture
def data(tmp_path):
    def build(train=PAIRS, validation=PAIRS[::5]):
        for name, pairs in (("train", train), ("validation", validation)):
            rows = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))) + "\n" for pair in pairs]
            (tmp_path / f"{name}.jsonl").write_text("".join(rows))
        files = [str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")]
        return PreferenceDataModule(*files, batch_size=8, validation_batch_size=2, seed=1)

    return build


def fit(module, folder, data, steps, **settings):
    with quiet():
        trainer(folder, steps, **settings).fit(module, data)


@pytest.mark.parametrize("coefficient", [0.0, 0.01, 0.5])
def test_loss_and_gradient_are_those_of_bradley_terry_with_centring(reward_folder, coefficient, monkeypatch):
    module = RewardModelModule(str(reward_folder), centering_coefficient=coefficient)
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)  # there is no trainer here
    module.configure_model()
    model, chosen, rejected = reference_scores(reward_folder, PAIRS[:5])
    expected = (1 + (rejected - chosen).exp()).log().mean() + coefficient * ((chosen + rejected) ** 2).mean()
    expected.backward()

    loss = module.training_step(batch(PAIRS[:5]), 0)
    loss.backward()

    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    theirs = dict(model.named_parameters())
    for name, p in module.model.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name].grad, atol=1e-5, rtol=1e-3)


def test_held_out_accuracy_margin_and_loss_equal_numpy(reward_folder, data, tmp_path):
    fit(RewardModelModule(str(reward_folder)), tmp_path / "run", data(), 1, validate_every=1)
    logged = scalars(tmp_path / "run")
    _, chosen, rejected = (
        x.detach().numpy() if isinstance(x, torch.Tensor) else x for x in reference_scores(reward_folder, PAIRS[::5])
    )

    assert 0 < np.mean(chosen > rejected) < 1
    assert logged["eval/pair_accuracy"][0] == pytest.approx(np.mean(chosen > rejected))
    assert logged["eval/reward_margin"][0] == pytest.approx(np.mean(chosen - rejected), rel=1e-4)
    assert logged["eval/loss"][0] == pytest.approx(np.mean(np.log1p(np.exp(rejected - chosen))), rel=1e-4)


def test_before_training_every_pair_is_a_tie_and_counts_one_half(policy_folder, data, tmp_path):
    fit(RewardModelModule(str(policy_folder)), tmp_path / "run", data(), 1, validate_every=1)

    logged = scalars(tmp_path / "run")

    assert logged["eval/pair_accuracy"][0] == 0.5
    assert logged["eval/loss"][0] == pytest.approx(np.log(2))
    assert logged["pair_accuracy"][0] == 0.5


@pytest.fixture(scope="module")
def trained(policy_folder, tmp_path_factory):
    """A reward model taught that happy is better than sad."""
    folder = tmp_path_factory.mktemp("trained")
    for name, pairs in (("train", PAIRS), ("validation", PAIRS[::3])):
        rows = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))) + "\n" for pair in pairs]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    data = PreferenceDataModule(str(folder / "train.jsonl"), str(folder / "validation.jsonl"), batch_size=8, seed=1)
    module = RewardModelModule(str(policy_folder), optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
    fit(module, folder / "run", data, 30, validate_every=10)
    module.save_pretrained(str(folder / "model"))
    return folder


def test_training_finds_what_is_preferred(trained):
    logged = scalars(trained / "run")

    assert sorted(logged["eval/loss"]) == [0, 10, 20, 30]
    assert logged["eval/loss"][30] < 0.3 * logged["eval/loss"][0]
    assert logged["eval/pair_accuracy"][30] == 1.0
    assert logged["eval/reward_margin"][30] > 1.0


def test_the_checkpoint_names_mean_and_spread_of_the_held_out_scores(trained):
    config = json.loads((trained / "model" / "config.json").read_text())
    _, chosen, rejected = reference_scores(trained / "model", PAIRS[::3])
    scores = torch.cat([chosen, rejected]).detach().double().numpy()

    assert config["reward_mean"] == pytest.approx(scores.mean(), abs=1e-4)
    assert config["reward_std"] == pytest.approx(scores.std(ddof=1), rel=1e-4)


def test_rewards_of_the_saved_model_are_standardised(trained, policy_folder):
    reward = RewardModel(str(trained / "model"))
    policy = PretrainedCausalLM(str(policy_folder)).load()
    reward.load(policy.tokenizer)
    held_out = [(p, text) for p, chosen, rejected in PAIRS[::3] for text in (chosen, rejected)]

    rewards = reward.components(ended_rollout(policy, held_out))["reward_model"]

    assert float(rewards.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(rewards.std()) == pytest.approx(1.0, rel=1e-4)
    assert bool((rewards[0::2] > rewards[1::2]).all())


def ended_rollout(policy, pairs):
    """Given completions, each with its end token, as if they had been sampled."""
    from grpovi_lightning.ops import pad_right

    prompt_ids, prompt_mask = policy.encode_prompts([p for p, _ in pairs])
    ids, mask = pad_right([[*policy.encode([c])[0], policy.tokenizer.eos_token_id] for _, c in pairs], 0)
    count = len(pairs)
    return Rollout(
        prompts=PromptBatch([p for p, _ in pairs], torch.arange(count), {}),
        group_size=1,
        step=0,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=ids,
        completion_mask=mask,
        old_logprobs=torch.zeros(ids.shape),
        truncated=torch.zeros(count, dtype=torch.bool),
        texts=[c for _, c in pairs],
    )


def test_a_resumed_run_is_the_run_that_was_never_stopped(reward_folder, data, tmp_path):
    def module():
        return RewardModelModule(str(reward_folder), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))

    every = {"validate_every": 2, "checkpoint_every": 2, "max_epochs": -1}
    straight, resumed = module(), module()
    fit(straight, tmp_path / "straight", data(), 4, **every)
    fit(module(), tmp_path / "stopped", data(), 2, **every)

    with quiet():
        trainer(tmp_path / "stopped", 4, **every).fit(
            resumed, data(), ckpt_path=tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True
        )

    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in straight.state_dict().items())
    assert scalars(tmp_path / "stopped") == scalars(tmp_path / "straight")
    assert resumed.model.config.reward_mean == straight.model.config.reward_mean


def test_training_the_head_only_leaves_the_body_as_it_was(reward_folder, data, tmp_path):
    before = AutoModelForSequenceClassification.from_pretrained(reward_folder).state_dict()
    module = RewardModelModule(
        str(reward_folder), head_only=True, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)
    )

    fit(module, tmp_path / "run", data(), 2)

    changed = [name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["score.weight"]


def test_a_negative_centring_is_refused(reward_folder):
    with pytest.raises(UserError, match=r"centering_coefficient: got -0\.1, expected at least 0"):
        RewardModelModule(str(reward_folder), centering_coefficient=-0.1)


def test_a_missing_checkpoint_is_refused_before_loading(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        RewardModelModule(str(tmp_path / "nowhere")).check_inputs()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("margins", [None, [0.0, 0.5, 1.0, 2.0, 3.0]])
def test_margins_and_label_smoothing_are_in_the_loss_and_its_gradient(reward_folder, smoothing, margins, monkeypatch):
    module = RewardModelModule(str(reward_folder), centering_coefficient=0.0, label_smoothing=smoothing)
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)  # there is no trainer here
    module.configure_model()
    model, chosen, rejected = reference_scores(reward_folder, PAIRS[:5])
    right = 1 / (1 + (rejected - chosen + torch.tensor(margins or [0.0] * 5)).exp())
    expected = -((1 - smoothing) * right.log() + smoothing * (1 - right).log()).mean()
    expected.backward()

    loss = module.training_step(batch(PAIRS[:5]) | ({"margin": margins} if margins else {}), 0)
    loss.backward()

    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module.model.score.weight.grad, model.score.weight.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 0.5}, r"label_smoothing: got 0\.5, expected at least 0 and less than 0\.5"),
        ({"label_smoothing": -0.1}, r"label_smoothing: got -0\.1"),
        ({"lora": LoRA(), "head_only": True}, "lora: got it with head_only"),
    ],
)
def test_settings_that_cannot_work_are_refused(reward_folder, settings, message):
    with pytest.raises(UserError, match=message):
        RewardModelModule(str(reward_folder), **settings)


class TestEachEvaluation:
    @pytest.fixture(scope="class")
    def evaluated(self, reward_folder, tmp_path_factory):
        """A run with two named subsets, whose completions differ in length."""
        folder = tmp_path_factory.mktemp("evaluated")
        rows = [
            {"prompt": p, "chosen": c + " and the dog" * (i % 3), "rejected": r, "kind": "odd" if i % 2 else "even"}
            for i, (p, c, r) in enumerate(PAIRS)
        ]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        file = str(folder / "pairs.jsonl")
        data = PreferenceDataModule(file, file, batch_size=8, validation_batch_size=5, seed=1, subset_column="kind")
        fit(RewardModelModule(str(reward_folder)), folder / "run", data, 2, validate_every=1)
        pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
        _, chosen, rejected = reference_scores(reward_folder, pairs)
        return folder / "run", pairs, chosen.detach().numpy(), rejected.detach().numpy()

    def test_gives_the_accuracy_on_each_subset(self, evaluated):
        run, _, chosen, rejected = evaluated
        logged = scalars(run)
        for name, first in (("even", 0), ("odd", 1)):
            expected = np.mean(chosen[first::2] > rejected[first::2])
            assert logged[f"eval/pair_accuracy/{name}"][0] == pytest.approx(expected)
        assert logged["eval/pair_accuracy/even"][0] != logged["eval/pair_accuracy/odd"][0]

    def test_takes_several_held_out_sets_as_subsets_by_their_names(self, reward_folder, data, tmp_path):
        sets = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}
        pairs = data(PAIRS[:10], PAIRS[10:])
        both = PreferenceDataModule(pairs.sources["train"], sets, batch_size=8, seed=1)
        fit(RewardModelModule(str(reward_folder)), tmp_path / "run", both, 1, validate_every=1)
        logged = scalars(tmp_path / "run")
        _, chosen, rejected = reference_scores(reward_folder, PAIRS)
        right = (chosen > rejected).float()
        for key, expected in (("/train", right[:10]), ("/validation", right[10:]), ("", right)):
            assert logged[f"eval/pair_accuracy{key}"][0] == pytest.approx(float(expected.mean()))

    def test_gives_the_correlation_of_score_and_length_in_tokens(self, evaluated):
        run, pairs, chosen, rejected = evaluated
        lengths = [len(text.split()) for side in (1, 2) for text in (pair[side] for pair in pairs)]
        expected = np.corrcoef(np.r_[chosen, rejected], lengths)[0, 1]
        assert abs(expected) > 0.01
        assert scalars(run)["eval/length_correlation"][0] == pytest.approx(expected, rel=1e-4)

    def test_gives_pictures_that_tensorboard_shows(self, evaluated):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (file,) = evaluated[0].glob("events.out.tfevents.*")
        events = EventAccumulator(str(file), size_guidance={"images": 0}).Reload()
        assert sorted(events.Tags()["images"]) == ["eval/calibration", "eval/score_by_length", "eval/scores"]
        for tag in events.Tags()["images"]:
            assert [image.step for image in events.Images(tag)] == [0, 1, 2]
            assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in events.Images(tag))


class TestPairsThatAreTooLong:
    @pytest.fixture
    def start(self, policy_folder, tmp_path):
        from models.tiny_models import language_model

        tokenizer = AutoTokenizer.from_pretrained(policy_folder)
        language_model("gpt2", tokenizer, n_positions=10).save_pretrained(tmp_path / "start")
        return str(tmp_path / "start")

    LONG = ("the old house in red near the small river and the tree", "the happy fox", "a dog")

    def test_are_refused_by_default(self, start, data, tmp_path):
        with pytest.raises(UserError, match=r"train table, row 24: got 16 tokens, but .* has 10 positions"):
            fit(RewardModelModule(start), tmp_path / "run", data([*PAIRS, self.LONG]), 1)

    def test_lose_the_left_part_of_their_prompts_where_that_is_set_and_the_log_says_how_many(
        self, start, data, tmp_path, capsys
    ):
        module = RewardModelModule(start, truncate="prompt")
        fit(module, tmp_path / "run", data([*PAIRS, self.LONG], [self.LONG]), 4, validate_every=2)

        too_long = [len(f"{p} {text}".split()) + 1 for p, *texts in PAIRS for text in texts]
        count = sum(length > 10 for length in too_long) + 4
        assert f"{count} sequences of the tables are longer than the 10 tokens" in capsys.readouterr().out
        with torch.no_grad():
            _, chosen, rejected = reference_scores_of(module, [self.LONG])
            found = torch.cat(module._scores(batch([self.LONG])))
        torch.testing.assert_close(found, torch.stack([chosen, rejected]), atol=1e-5, rtol=1e-4)


def reference_scores_of(module, pairs):
    """Scores of a single pair's last ten tokens."""
    ((prompt, *texts),) = pairs
    rows = [[*module.tokenizer(f"{prompt} {text}")["input_ids"], 1][-10:] for text in texts]
    scores = [module.model.eval()(torch.tensor([row])).logits[0, 0] for row in rows]
    return module.model, *scores


def test_a_strategy_that_leaves_the_sharding_to_the_module_is_refused(reward_folder, tmp_path):
    sharded = trainer(tmp_path, 1, devices=2, strategy="fsdp2")
    with pytest.raises(UserError, match="got fsdp2 for a RewardModelModule, whose weights are not sharded; use ddp"):
        RewardModelModule(str(reward_folder)).check_settings(sharded, None)
