"""Features are the states of the model that the folder holds, whatever the batch, and cost nothing the second time."""

import sqlite3

import pytest
import torch
from helpers.tiny_checkpoints import save_policy
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards.online import FeatureModel, LastToken, MeanOverTokens

ROWS = [[3, 4, 5], [7, 8], [9, 10, 11, 12, 13, 1], [4], [7, 8]]


def states(folder, rows):
    """Last hidden states of each row by itself, without padding."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return [model(torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0] for row in rows]


def loaded(folder, **settings):
    features = FeatureModel(str(folder), **settings)
    features.load()
    return features


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_they_are_the_last_states_at_the_last_token_and_their_mean(policy_folder, batch_size):
    features = loaded(policy_folder, poolings=[LastToken(), MeanOverTokens()], batch_size=batch_size)
    expected = torch.stack([torch.cat([state[-1], state.mean(dim=0)]) for state in states(policy_folder, ROWS)])
    assert features.dim == 64 == expected.shape[1]
    torch.testing.assert_close(features(ROWS), expected, rtol=1e-4, atol=1e-5)


def test_equal_sequences_have_equal_features_whatever_batch_they_would_be_in(policy_folder):
    rows = [[3, 4, 5], [6, 7, 8], [9, 10, 11], [3, 4, 5], [12, 13, 14], [3, 4, 5]]
    found = loaded(policy_folder, batch_size=2)(rows)
    assert torch.equal(found[0], found[3]) and torch.equal(found[0], found[5]) and not torch.equal(found[0], found[1])


def test_the_last_token_is_the_default(policy_folder):
    expected = torch.stack([state[-1] for state in states(policy_folder, ROWS)])
    torch.testing.assert_close(loaded(policy_folder)(ROWS), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_without_a_pooler_will_do(tmp_path, tokenizer_folder, tiny_tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(tiny_tokenizer), **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    features = loaded(tmp_path, poolings=[MeanOverTokens()])
    alone = torch.cat([features([row]) for row in ROWS])
    assert alone.shape == (5, 16) and alone[0].std() > 0.1
    torch.testing.assert_close(features(ROWS), alone, rtol=1e-4, atol=1e-5)


def test_mixed_precision_around_it_changes_no_bit(policy_folder):
    features = loaded(policy_folder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = features(ROWS)
    assert torch.equal(mixed, features(ROWS))


def test_nothing_of_it_is_trained(policy_folder):
    features = loaded(policy_folder)
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert not features(ROWS).requires_grad and not features.model.training


def test_the_fingerprint_follows_weights_and_poolings(policy_folder, tmp_path, tokenizer_folder):
    same, again = loaded(policy_folder), loaded(policy_folder)
    pooled = loaded(policy_folder, poolings=[MeanOverTokens()])
    other = loaded(save_policy(tmp_path, tokenizer_folder, seed=7))
    assert same.fingerprint == again.fingerprint
    assert len({same.fingerprint, pooled.fingerprint, other.fingerprint}) == 3


class TestCache:
    def test_what_was_computed_once_comes_from_the_file_with_equal_bits(self, policy_folder, tmp_path):
        file = tmp_path / "folder" / "features.sqlite"
        first = loaded(policy_folder, cache=str(file))
        expected = first(ROWS)
        second = loaded(policy_folder, cache=str(file))
        second._compute = lambda rows: pytest.fail("computed again")
        assert torch.equal(second(ROWS[::-1]), expected.flip(0))
        assert torch.equal(expected, loaded(policy_folder)(ROWS)[[0, 1, 2, 3, 1]])

    def test_only_what_is_missing_is_computed_and_each_sequence_once(self, policy_folder, tmp_path):
        features = loaded(policy_folder, cache=str(tmp_path / "features.sqlite"))
        features(ROWS[:2])
        asked, compute = [], features._compute
        features._compute = lambda rows: (asked.extend(rows), compute(rows))[1]
        features(ROWS)
        assert asked == [[9, 10, 11, 12, 13, 1], [4]]

    def test_other_weights_do_not_read_what_these_left(self, policy_folder, tmp_path, tokenizer_folder):
        file = str(tmp_path / "features.sqlite")
        loaded(policy_folder, cache=file)(ROWS)
        other = save_policy(tmp_path / "other", tokenizer_folder, seed=7)
        assert torch.equal(loaded(other, cache=file)(ROWS[:1]), loaded(other)(ROWS[:1]))

    def test_more_sequences_than_one_query_takes(self, policy_folder, tmp_path):
        features = loaded(policy_folder, cache=str(tmp_path / "features.sqlite"))
        rows = [[3 + i % 30, 3 + i // 30] for i in range(700)]
        assert torch.equal(features(rows), features(rows)) and features([]).shape == (0, 32)

    def test_a_file_that_is_none_of_its_own_is_left_alone(self, policy_folder, tmp_path):
        file = tmp_path / "notes.txt"
        file.write_text("a text that is long enough to be looked at as a header of a database file " * 20)
        before = file.read_bytes()
        with pytest.raises(UserError, match=r"feature cache .*notes.txt: .*delete the file or name another"):
            loaded(policy_folder, cache=str(file))(ROWS)
        assert file.read_bytes() == before

    def test_a_value_of_another_length_is_named(self, policy_folder, tmp_path):
        file = tmp_path / "features.sqlite"
        features = loaded(policy_folder, cache=str(file))
        features(ROWS)
        with sqlite3.connect(file) as database:
            database.execute("UPDATE features SET value = x'00'")
        with pytest.raises(UserError, match="got 1 bytes for a sequence, expected 128; the file is damaged"):
            features(ROWS)


def test_a_state_that_is_not_finite_ends_the_run(policy_folder):
    features = loaded(policy_folder)
    next(features.model.parameters()).data.fill_(torch.nan)
    with pytest.raises(TrainingError, match="a feature is not finite"):
        features(ROWS)


def test_settings_that_cannot_work_are_refused(policy_folder, tmp_path):
    with pytest.raises(UserError, match="batch_size: got 0, expected at least 1"):
        FeatureModel(str(policy_folder), batch_size=0)
    with pytest.raises(UserError, match="poolings: got none, expected at least one"):
        FeatureModel(str(policy_folder), poolings=[])
    with pytest.raises(UserError, match=r"feature model .*nothing: no such folder"):
        FeatureModel(str(tmp_path / "nothing")).check()
