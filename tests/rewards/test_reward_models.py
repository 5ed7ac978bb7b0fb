import json
from dataclasses import replace

import pytest
import torch
from helpers.framed import framed_tokenizer
from helpers.rollouts import rollout_of_words
from helpers.tiny_checkpoints import WORDS, save_reward_model, save_tokenizer
from models.tiny_models import language_model
from modules.grpo_runs import grpo, scalars, train
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.modules import RewardModelModule
from grpovi_lightning.randomness import HELD_OUT_STEP
from grpovi_lightning.rewards import CompositeReward, NormalisedReward, RewardFunction, RewardModel
from grpovi_lightning.rewards.models import classifier_scores
from grpovi_lightning.rewards.sequences import SequenceReader

PROMPTS = ["write about the fox", "write about the small red boat and the river"]
GROUPS = [["the fox runs", "fox"], ["a boat in the river near the old tree .", "red red boat"]]
CUT = [False, True, False, True]


@pytest.fixture
def rollout(tiny_tokenizer):
    return rollout_of_words(tiny_tokenizer, PROMPTS, GROUPS, truncated=CUT)


def loaded(folder, tokenizer, **settings):
    reward = RewardModel(str(folder), **settings)
    reward.load(tokenizer)
    return reward


def direct_scores(folder, rows):
    """Each row by itself, without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.tensor([model(torch.tensor([row])).logits.item() for row in rows])


def joined(tokenizer):
    """Prompt and completion as the tokens of one sequence, with an end token where the completion has one."""
    texts = [f"{PROMPTS[i // 2]} {text}" for i, text in enumerate(text for group in GROUPS for text in group)]
    end = [tokenizer.eos_token_id]
    return [tokenizer(text)["input_ids"] + ([] if cut else end) for text, cut in zip(texts, CUT, strict=True)]


def test_with_the_policys_vocabulary_it_scores_the_policys_tokens(reward_folder, tiny_tokenizer, rollout):
    scores = loaded(reward_folder, tiny_tokenizer).components(rollout)["reward_model"]
    expected = direct_scores(reward_folder, joined(tiny_tokenizer))
    assert expected.std() > 0.05
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


def test_the_end_token_counts(reward_folder, tiny_tokenizer):
    ended, cut = (rollout_of_words(tiny_tokenizer, PROMPTS[:1], [["fox"]], truncated=[cut]) for cut in (False, True))
    reward = loaded(reward_folder, tiny_tokenizer)
    assert reward.components(ended)["reward_model"] != reward.components(cut)["reward_model"]


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("grpovi_lightning")]


class TestAnEndTokenThatIsPaddingToo:
    @pytest.fixture
    def padded_by_end(self, policy_folder, tmp_path):
        """A causal LM's folder whose tokenizer pads with the end token."""
        policy = PretrainedCausalLM(str(policy_folder)).load()
        policy.tokenizer.pad_token = policy.tokenizer.eos_token
        policy.model.config.pad_token_id = policy.tokenizer.eos_token_id
        policy.save_pretrained(tmp_path / "policy")
        return tmp_path / "policy"

    @pytest.fixture
    def ended_and_cut(self, tiny_tokenizer):
        return rollout_of_words(tiny_tokenizer, PROMPTS[:1], [["fox", "fox"]], truncated=[False, True])

    @staticmethod
    def with_head(folder):
        """A reward model as `RewardModelModule` starts it, with other weights in its head."""
        module = RewardModelModule(str(folder))
        module.configure_model()
        torch.nn.init.normal_(module.model.score.weight, generator=torch.Generator().manual_seed(0))
        return module

    def test_it_is_what_a_model_that_is_trained_here_scores_by(
        self, padded_by_end, ended_and_cut, tiny_tokenizer, tmp_path, caplog
    ):
        module = self.with_head(padded_by_end)
        module.save_pretrained(str(tmp_path / "reward"))
        assert json.loads((tmp_path / "reward" / "config.json").read_text())["reward_pooling"] == "last_token"

        scores = loaded(tmp_path / "reward", tiny_tokenizer).components(ended_and_cut)["reward_model"]

        rows = SequenceReader(module.tokenizer, tiny_tokenizer, module.limits).rows(ended_and_cut)
        states = [module.model.model(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
        expected = module.model.score(torch.stack(states)).flatten()
        assert rows[0] == [*rows[1], 1] and abs(expected[0] - expected[1]) > 0.1
        torch.testing.assert_close(scores, expected.detach(), rtol=1e-4, atol=1e-5)
        # Training and held-out pairs are scored alike.
        batch = {"prompt": PROMPTS[:1], "chosen": ["fox"], "rejected": ["fox"]}
        torch.testing.assert_close(torch.cat(module._scores(batch)), expected[[0, 0]], rtol=1e-4, atol=1e-5)
        assert not said(caplog)

    def test_a_model_from_elsewhere_keeps_its_pooling_and_says_so_once(
        self, padded_by_end, ended_and_cut, tiny_tokenizer, tmp_path, caplog
    ):
        module = self.with_head(padded_by_end)
        del module.model.config.reward_pooling
        module.save_pretrained(str(tmp_path / "reward"))

        reward = loaded(tmp_path / "reward", tiny_tokenizer)
        scores = reward.components(ended_and_cut)["reward_model"]

        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
        rows = reward.reader.rows(ended_and_cut)
        expected = torch.stack([model(torch.tensor([row])).logits[0, 0] for row in rows])
        assert float(scores[0]) == pytest.approx(float(scores[1]), rel=1e-5)
        torch.testing.assert_close(scores, expected.detach(), rtol=1e-4, atol=1e-5)
        (message,) = said(caplog)
        assert "its end token is its padding token, too" in message

    def test_continued_training_of_a_marked_model_keeps_the_mark(self, padded_by_end, tmp_path):
        self.with_head(padded_by_end).save_pretrained(str(tmp_path / "reward"))
        again = RewardModelModule(str(tmp_path / "reward"))
        again.configure_model()
        assert again.model.config.reward_pooling == "last_token"


def test_with_padding_of_its_own_both_ways_to_pool_give_the_same_bits(policy_folder, tiny_tokenizer):
    module = TestAnEndTokenThatIsPaddingToo.with_head(policy_folder)
    rows = joined(tiny_tokenizer)
    found = classifier_scores(module.model, rows)
    del module.model.config.reward_pooling
    assert torch.equal(found, classifier_scores(module.model, rows))


def test_another_vocabulary_gets_the_text_anew(tmp_path, tiny_tokenizer, rollout):
    # The same words under other numbers.
    save_tokenizer(tmp_path / "tokenizer", words=WORDS[::-1])
    folder = save_reward_model(tmp_path / "reward", tmp_path / "tokenizer")
    reward = loaded(folder, tiny_tokenizer)
    assert not reward.reader.shares_tokens
    expected = direct_scores(folder, joined(reward.reader.tokenizer))
    torch.testing.assert_close(reward.components(rollout)["reward_model"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_batch_size_changes_no_score(reward_folder, tiny_tokenizer, rollout, batch_size):
    scores = loaded(reward_folder, tiny_tokenizer, batch_size=batch_size).components(rollout)["reward_model"]
    torch.testing.assert_close(scores, direct_scores(reward_folder, joined(tiny_tokenizer)), rtol=1e-4, atol=1e-5)


def test_order_changes_no_score(reward_folder, tiny_tokenizer, rollout):
    reward = loaded(reward_folder, tiny_tokenizer, batch_size=2)
    swapped = rollout_of_words(tiny_tokenizer, PROMPTS[::-1], GROUPS[::-1], truncated=CUT[2:] + CUT[:2])
    scores = reward.components(swapped)["reward_model"]
    torch.testing.assert_close(scores.roll(2), reward.components(rollout)["reward_model"], rtol=1e-4, atol=1e-5)


def test_scores_are_standardised_by_what_the_checkpoint_says(tmp_path, tokenizer_folder, tiny_tokenizer, rollout):
    plain = save_reward_model(tmp_path / "plain", tokenizer_folder)
    scaled = save_reward_model(tmp_path / "scaled", tokenizer_folder, reward_mean=0.25, reward_std=4.0)
    raw = loaded(plain, tiny_tokenizer).components(rollout)["reward_model"]
    found = loaded(scaled, tiny_tokenizer, name="proxy").components(rollout)["proxy"]
    torch.testing.assert_close(found, (raw - 0.25) / 4.0)


@pytest.mark.parametrize("std", [0.0, float("nan")])
def test_a_score_that_is_no_finite_number_is_an_error_and_no_completion_without_a_reward(
    tmp_path, tokenizer_folder, tiny_tokenizer, rollout, std
):
    folder = save_reward_model(tmp_path / "reward", tokenizer_folder, reward_mean=0.25)
    reward = loaded(folder, tiny_tokenizer)
    reward.model.config.reward_std = std
    with pytest.raises(TrainingError, match=r"score (-?inf|nan) for a completion of 'write about the fox'"):
        reward.components(rollout)


def test_mixed_precision_around_it_changes_no_bit(reward_folder, tiny_tokenizer, rollout):
    reward = loaded(reward_folder, tiny_tokenizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = reward.components(rollout)["reward_model"]
    assert torch.equal(mixed, reward.components(rollout)["reward_model"])


def test_it_is_frozen_and_loaded_once(reward_folder, tiny_tokenizer, rollout):
    reward = loaded(reward_folder, tiny_tokenizer)
    model = reward.model
    reward.load(tiny_tokenizer)
    assert reward.model is model and not model.training
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    assert not reward.components(rollout)["reward_model"].requires_grad


def test_it_starts_unloaded_and_checks_its_folder_before_loading(reward_folder, tmp_path):
    RewardModel(str(reward_folder)).check()
    with pytest.raises(UserError, match=r"reward model .*nothing_here: no such folder"):
        RewardModel(str(tmp_path / "nothing_here")).check()


def test_a_batch_size_of_0_is_refused(reward_folder):
    with pytest.raises(UserError, match="batch_size: got 0, expected at least 1"):
        RewardModel(str(reward_folder), batch_size=0)


class TestSequencesThatAreTooLong:
    """A reward model with 8 positions; the policy's vocabulary or, as text, that of an encoder."""

    PROMPTS = ("write about the small red boat and the river", "a cat")
    GROUPS = (("fox", "the fox runs"), ("sleeps", "dog"))

    @staticmethod
    def save(tokenizer, folder, positions):
        language_model("gpt2", tokenizer, n_positions=positions).save_pretrained(folder / "policy")
        module = TestAnEndTokenThatIsPaddingToo.with_head(folder / "policy")
        module.save_pretrained(str(folder / "reward"))
        return folder / "reward"

    @pytest.fixture
    def decoder(self, tiny_tokenizer, tmp_path):
        return self.save(tiny_tokenizer, tmp_path, 8)

    @pytest.fixture
    def long(self, tiny_tokenizer):
        return rollout_of_words(tiny_tokenizer, self.PROMPTS, self.GROUPS, truncated=[False, True, False, False])

    def test_are_an_error_by_default_that_names_the_prompt(self, decoder, tiny_tokenizer, long):
        with pytest.raises(UserError, match=r"a completion of prompt 'write about .*: got 11 tokens, but .* has 8"):
            loaded(decoder, tiny_tokenizer).components(long)

    def test_lose_the_left_part_of_the_prompt_where_that_is_set(self, decoder, tiny_tokenizer, long, caplog):
        found = loaded(decoder, tiny_tokenizer, truncate="prompt").components(long)["reward_model"]
        texts = [f"{self.PROMPTS[i // 2]} {text}" for i, text in enumerate(t for group in self.GROUPS for t in group)]
        rows = [tiny_tokenizer(text)["input_ids"] + ([] if i == 1 else [1]) for i, text in enumerate(texts)]
        assert [len(row) for row in rows] == [11, 12, 4, 4]
        torch.testing.assert_close(found, direct_scores(decoder, [row[-8:] for row in rows]), rtol=1e-4, atol=1e-5)
        (message,) = said(caplog)
        assert "2 of 4 sequences are longer than the 8 tokens" in message

    def test_are_counted_for_each_step_and_evaluation_by_itself(self, decoder, tiny_tokenizer, long):
        reward = CompositeReward([RewardFunction(letters), NormalisedReward(model := RewardModel(str(decoder)))])
        model.truncate = "prompt"
        reward.load(tiny_tokenizer)
        reward.parts[1].fit([long])
        held_out, later = (replace(long, step=step) for step in (HELD_OUT_STEP, 1))
        for rollout in (long, held_out, held_out, later):
            reward.components(rollout)
        key = "rewards/reward_model/truncated"
        assert reward.learn(later, seed=1).metrics == {key: 2.0}
        assert reward.progress() == {key: 4.0} and reward.progress() == {key: 0.0}
        assert not reward.learn(later, seed=1).changed

    def test_an_encoder_keeps_the_special_tokens_at_both_ends(self, tiny_tokenizer, long, tmp_path):
        config = BertConfig(vocab_size=60, num_labels=1, max_position_embeddings=8, initializer_range=0.5, **TINY)
        torch.manual_seed(1)
        BertForSequenceClassification(config).save_pretrained(tmp_path)
        tokenizer = framed_tokenizer("[CLS]", "[SEP]", eos_token=None, cls_token="[CLS]", sep_token="[SEP]")
        tokenizer.save_pretrained(tmp_path)
        found = loaded(tmp_path, tiny_tokenizer, truncate="prompt").components(long)["reward_model"]
        expected = ["red boat and the river fox", "and the river the fox runs", "a cat sleeps", "a cat dog"]
        torch.testing.assert_close(found, direct_scores(tmp_path, [tokenizer(t)["input_ids"] for t in expected]))

    def test_a_run_logs_how_many_at_each_step(self, tiny_tokenizer, policy_folder, tmp_path):
        folder = self.save(tiny_tokenizer, tmp_path, 12)  # a prompt of the table is longer
        train(grpo(policy_folder, RewardModel(str(folder), truncate="prompt")), tmp_path, 2)
        counts = scalars(tmp_path)["rewards/reward_model/truncated"]
        assert sorted(counts) == [0, 1] and max(counts.values()) > 0


def letters(prompts, completions, completion_ids):
    return [float(len(text)) for text in completions]


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def test_a_label_of_several_is_the_reward(tmp_path, tokenizer_folder, tiny_tokenizer, rollout):
    config = LlamaConfig(vocab_size=len(tiny_tokenizer), num_labels=2, pad_token_id=0, initializer_range=0.3, **TINY)
    torch.manual_seed(4)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    first, second = (
        loaded(tmp_path, tiny_tokenizer, label=label).components(rollout)["reward_model"] for label in (0, "LABEL_1")
    )
    model = LlamaForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([row])).logits for row in joined(tiny_tokenizer)])
    torch.testing.assert_close(torch.stack([first, second], dim=1), expected, rtol=1e-4, atol=1e-5)
