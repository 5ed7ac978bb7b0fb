import pytest
import torch
from helpers.rollouts import rollout_of_words
from helpers.tiny_checkpoints import WORDS, save_reward_model, save_tokenizer
from transformers import AutoModelForSequenceClassification

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards import RewardModel

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
