"""One rule for special tokens and for the end of a completion, wherever texts become tokens."""

import json

import pytest
from helpers.framed import framed_tokenizer
from helpers.rollouts import rollout_of_words
from models.tiny_models import language_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpovi_lightning.models import PretrainedCausalLM, load_classifier
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.modules import SFTModule
from grpovi_lightning.rewards.sequences import SequenceReader, text_rows


def words(tokenizer, text):
    return tokenizer.convert_tokens_to_ids(text.split())


def sft_rows(policy, prompt, completion):
    module = SFTModule(None)
    module.policy = policy
    ((ids, _),) = module._rows({"prompt": [prompt], "completion": [completion]})
    return ids


def reader(tokenizer, policy_tokenizer):
    """One whose model has no limits."""
    limits = InputLimits(language_model("llama", tokenizer).model, tokenizer, None)
    limits.positions = limits.n_embeddings = None
    return SequenceReader(tokenizer, policy_tokenizer, limits)


class TestSpecialTokensThatTheTextHasAlready:
    """Each of the texts has, or has not, special tokens that the tokenizer adds by itself."""

    @pytest.mark.parametrize("prompt", ["write", "<s> write"])
    @pytest.mark.parametrize("completion", ["a fox", "a fox <eos>"])
    def test_they_are_not_doubled_for_a_causal_lm(self, prompt, completion):
        tokenizer = framed_tokenizer("<s>", bos_token="<s>")
        policy = language_model("llama", tokenizer)
        expected = words(tokenizer, "<s> write a fox <eos>")

        assert policy.prompt_tokens([prompt]) == [words(tokenizer, "<s> write")]
        assert policy.encode_prompts([prompt])[0].tolist() == [words(tokenizer, "<s> write")]
        assert sft_rows(policy, prompt, completion) == expected
        assert text_rows(tokenizer, [prompt], [completion]) == [expected]

    @pytest.mark.parametrize("prompt", ["write", "[CLS] write", "write [SEP]", "[CLS] write [SEP]"])
    @pytest.mark.parametrize("completion", ["a fox", "a fox [SEP]"])
    def test_nor_for_an_encoder(self, prompt, completion):
        tokenizer = framed_tokenizer("[CLS]", "[SEP]", eos_token=None, cls_token="[CLS]", sep_token="[SEP]")
        expected = words(tokenizer, "[CLS] write a fox [SEP]")
        assert text_rows(tokenizer, [prompt], [completion]) == [expected]

    @pytest.mark.parametrize("prompt", ["write", "<s> write"])
    def test_nor_where_a_rollout_is_tokenised_anew(self, tiny_tokenizer, prompt):
        tokenizer = framed_tokenizer("<s>", bos_token="<s>")
        rollout = rollout_of_words(tiny_tokenizer, ["write"], [["a fox", "a fox"]], truncated=[False, True])
        rollout.prompts.contents[0] = prompt
        found = reader(tokenizer, tiny_tokenizer).rows(rollout)
        assert found == [words(tokenizer, "<s> write a fox <eos>"), words(tokenizer, "<s> write a fox")]

    def test_a_prompt_does_not_end_for_a_table_as_it_does_not_for_the_policy(self):
        tokenizer = framed_tokenizer("<s>", "<eos>", bos_token="<s>")
        expected = words(tokenizer, "<s> write a <eos>")
        for prompt in ("write", "write <eos>", "<s> write"):
            assert text_rows(tokenizer, [prompt], ["a"]) == [expected]
            assert language_model("llama", tokenizer).prompt_tokens([prompt]) == [expected[:2]]

    def test_texts_of_nothing_else_keep_theirs(self):
        tokenizer = framed_tokenizer("<s>", bos_token="<s>")
        policy = language_model("llama", tokenizer)
        assert policy.prompt_tokens(["<s>", "<s> <s>"]) == [[3], [3, 3]]


class TestTheEndThatIsWritten:
    @pytest.fixture
    def ends(self, policy_folder, tmp_path):
        """A checkpoint whose generation config names another end token before the tokenizer's."""
        policy = PretrainedCausalLM(str(policy_folder)).load()
        policy.model.generation_config.eos_token_id = [7, policy.tokenizer.eos_token_id]
        policy.save_pretrained(tmp_path)
        return tmp_path

    def test_it_is_the_tokenizers_in_fine_tuning_and_in_tables(self, ends):
        policy = PretrainedCausalLM(str(ends)).load()
        assert policy.end_token_ids == [7, 1]
        assert sft_rows(policy, "write", "a fox")[-1] == 1 == text_rows(policy.tokenizer, ["write"], ["a fox"])[0][-1]

    def test_a_completion_that_names_an_end_of_its_own_keeps_it(self, ends):
        policy = PretrainedCausalLM(str(ends)).load()
        word = policy.tokenizer.convert_ids_to_tokens(7)
        assert sft_rows(policy, "write", f"a fox {word}")[-2:] == [*words(policy.tokenizer, "fox"), 7]

    def test_a_completion_that_ended_otherwise_is_scored_with_it(self, ends, tiny_tokenizer):
        rollout = rollout_of_words(tiny_tokenizer, ["write"], [["a fox", "a fox"]], truncated=[False, True])
        rollout.completion_ids[0, -1] = 7
        rows = reader(tiny_tokenizer, tiny_tokenizer).rows(rollout)
        assert rows == [words(tiny_tokenizer, "write a fox <eos>"), words(tiny_tokenizer, "write a fox")]

    def test_a_tokenizer_without_one_takes_the_models(self, policy_folder, tmp_path):
        AutoModelForCausalLM.from_pretrained(policy_folder).save_pretrained(tmp_path)
        framed_tokenizer(eos_token=None).save_pretrained(tmp_path)
        policy = PretrainedCausalLM(str(tmp_path)).load()
        _, tokenizer = load_classifier(str(tmp_path), new_head=True)
        assert policy.tokenizer.eos_token == tokenizer.eos_token == "<eos>"
        policy.save_pretrained(tmp_path / "trained")
        assert AutoTokenizer.from_pretrained(tmp_path / "trained").eos_token == "<eos>"
        assert json.loads((tmp_path / "trained" / "tokenizer_config.json").read_text())["eos_token"] == "<eos>"
