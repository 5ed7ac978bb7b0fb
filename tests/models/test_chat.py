"""Conversations become tokens by the model's own chat template: once, with every token where it belongs."""

import pytest
from helpers.chat import assistant, chat_tokenizer, system, user
from helpers.framed import framed_tokenizer
from helpers.rollouts import rollout_of_words
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny_models import language_model

from grpovi_lightning.conversations import Conversation
from grpovi_lightning.errors import UserError
from grpovi_lightning.models.chat import demonstration, marks_turns, prompt_rows, set_chat_template, turn_end
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.rewards.sequences import SequenceReader, text_rows

QUESTION = Conversation([user("write about the fox")])
WORDS = st.lists(st.sampled_from(["a", "red", "fox", "runs"]), min_size=1, max_size=4).map(" ".join)


def tokens(tokenizer, text):
    return tokenizer.convert_tokens_to_ids(text.split())


@pytest.fixture
def tokenizer():
    return chat_tokenizer()


@pytest.fixture
def encoder():
    """A tokenizer of an encoder, with a frame and without a template."""
    return framed_tokenizer("[CLS]", "[SEP]", eos_token=None, cls_token="[CLS]", sep_token="[SEP]")


class TestPrompts:
    def test_no_token_is_doubled(self, tokenizer):
        found = language_model("llama", tokenizer).prompt_tokens([QUESTION])
        assert found == [tokens(tokenizer, "<s> <|user|> write about the fox <|end|> <|assistant|>")]

    def test_they_are_those_of_transformers(self, tokenizer):
        conversation = [system("ten words"), user("a dog"), assistant("sees"), user("a cat")]
        theirs = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
        assert prompt_rows(tokenizer, [Conversation(conversation)], []) == [theirs]

    def test_tools_and_variables_reach_the_template(self, tokenizer):
        conversation = Conversation([user("a dog")], tools=[{"name": "river"}], template_kwargs={"quick": True})
        found = prompt_rows(tokenizer, [conversation], [])
        assert found == [tokens(tokenizer, "<s> <|tools|> river <|user|> a dog <|end|> <|assistant|> ten")]

    def test_left_padding_is_the_only_difference_between_a_batch_and_its_rows(self, tokenizer):
        policy = language_model("llama", tokenizer)
        ids, mask = policy.encode_prompts([QUESTION, Conversation([user("a")])])
        assert [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)] == policy.prompt_tokens(
            [QUESTION, Conversation([user("a")])]
        )

    def test_the_end_of_a_turn_ends_a_completion_beside_the_ends_that_are_named(self, tokenizer):
        policy = language_model("llama", tokenizer)
        assert turn_end(tokenizer) == tokens(tokenizer, "<|end|>")
        assert policy.end_token_ids == tokens(tokenizer, "<eos> <|end|>")

    def test_a_tokenizer_without_a_template_has_no_turn_end(self):
        policy = language_model("llama", chat_tokenizer(None))
        assert policy.end_token_ids == [policy.tokenizer.eos_token_id]


class TestDemonstrations:
    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
    def test_what_the_assistant_says_is_what_transformers_marks(self, turns):
        tokenizer = chat_tokenizer()
        messages = [message for question, answer in turns for message in (user(question), assistant(answer))]
        theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, said = demonstration(tokenizer, Conversation([]), messages, [1])
        assert (ids, list(map(int, said))) == (theirs["input_ids"], theirs["assistant_masks"])

    def test_turns_of_the_prompt_are_not_said_by_the_answer(self, tokenizer):
        prompt = Conversation([user("a"), assistant("dog"), user("the")])
        ids, said = demonstration(tokenizer, prompt, [assistant("fox runs")], [1])
        assert [i for i, is_said in zip(ids, said, strict=True) if is_said] == tokens(tokenizer, "fox runs <|end|>")

    def test_what_stands_behind_the_last_turns_end_is_left_out(self, tokenizer):
        tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|end|> in")
        ids, said = demonstration(tokenizer, QUESTION, [assistant("a fox")], [1])
        assert ids == tokens(tokenizer, "<s> <|user|> write about the fox <|end|> in <|assistant|> a fox <|end|>")
        assert said == [False] * (len(ids) - 3) + [True] * 3

    def test_an_answer_that_the_template_does_not_end_gets_the_tokenizers_end_token(self, tokenizer):
        tokenizer.chat_template = tokenizer.chat_template.replace(" <|end|>{% endgeneration", "{% endgeneration")
        ids, said = demonstration(tokenizer, QUESTION, [assistant("a fox")], [1])
        assert ids[-3:] == tokens(tokenizer, "a fox <eos>") and said[-3:] == [True] * 3 and not any(said[:-3])

    def test_a_template_that_writes_another_opening_with_the_answer_is_refused(self, tokenizer):
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "{% endif %}{% endif %}", "{% endif %} sad{% endif %}"
        )
        with pytest.raises(UserError, match=r"changes with the answer.*'.*<\|assistant\|> sad' is not in"):
            demonstration(tokenizer, QUESTION, [assistant("a fox")], [1])


class TestWithoutMarks:
    """The template `plain` writes no special tokens: its text is framed and ended as any other."""

    def test_an_encoder_reads_question_and_answer_in_its_frame(self, encoder):
        set_chat_template(encoder, "plain")
        assert not marks_turns(encoder) and turn_end(encoder) == []
        found = text_rows(encoder, [QUESTION], [[assistant("a red fox")]])
        assert found == [tokens(encoder, "[CLS] write about the fox a red fox [SEP]")]

    def test_a_causal_model_reads_them_with_the_end_token_of_one_that_ended(self):
        tokenizer = chat_tokenizer(None)
        set_chat_template(tokenizer, "plain")
        found = text_rows(tokenizer, [QUESTION, QUESTION], [[assistant("a fox")], [assistant("a")]], [True, False])
        assert found == [
            tokens(tokenizer, "<s> write about the fox a fox <eos>"),
            tokens(tokenizer, "<s> write about the fox a"),
        ]
        policy = language_model("llama", tokenizer)
        ids, said = policy.demonstrations([QUESTION], [[assistant("a fox")]])[0]
        assert ids == found[0] and said == [False] * 5 + [True] * 3

    def test_an_answer_of_several_messages_is_refused(self):
        tokenizer = chat_tokenizer(None)
        set_chat_template(tokenizer, "plain")
        with pytest.raises(UserError, match="the 3 messages of an answer"):
            text_rows(tokenizer, [QUESTION], [[assistant("a"), user("fox"), assistant("runs")]])


class TestRewardModels:
    """A reward model reads a conversation through its own template, not the policy's markup."""

    def rows(self, tokenizer, policy_tokenizer, completions, truncated):
        rollout = rollout_of_words(policy_tokenizer, ["write"], [completions], truncated=truncated)
        rollout.prompts.contents[0] = QUESTION
        limits = InputLimits(language_model("llama", tokenizer).model, tokenizer, None)
        return SequenceReader(tokenizer, policy_tokenizer, limits).rows(rollout)

    @pytest.mark.parametrize("policy_template", ["the policy's", "the model's"])
    def test_one_that_ended_is_closed_and_one_that_was_cut_off_is_not(self, tokenizer, policy_template):
        policy_tokenizer = chat_tokenizer(
            "{{ messages }}" if policy_template == "the policy's" else tokenizer.chat_template
        )
        ended, cut = self.rows(tokenizer, policy_tokenizer, ["a fox", "a fox"], [False, True])
        head = "<s> <|user|> write about the fox <|end|> <|assistant|> a fox"
        assert (ended, cut) == (tokens(tokenizer, f"{head} <|end|>"), tokens(tokenizer, head))

    def test_one_that_was_cut_off_before_it_said_anything_ends_with_the_opening(self, tokenizer):
        (row,) = self.rows(tokenizer, chat_tokenizer(), [""], [True])
        assert row == tokens(tokenizer, "<s> <|user|> write about the fox <|end|> <|assistant|>")

    def test_one_that_was_cut_off_is_read_also_where_the_template_changes_what_was_said(self, tokenizer):
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "message['content'] }} <|end|>{% endgen", "'ten' }} <|end|>{% endgen"
        )
        (row,) = self.rows(tokenizer, chat_tokenizer(), ["a fox"], [True])
        assert row == tokens(tokenizer, "<s> <|user|> write about the fox <|end|> <|assistant|> a fox")

    def test_preference_rows_are_read_as_completions_are(self, tokenizer):
        row = text_rows(tokenizer, [QUESTION], [[assistant("a fox")]])
        assert row == self.rows(tokenizer, chat_tokenizer(), ["a fox"], [False])

    def test_an_encoder_without_a_template_is_refused_with_the_remedy(self, encoder):
        with pytest.raises(UserError, match=r"has no chat template.*chat_template.*plain for the bare contents"):
            text_rows(encoder, [QUESTION], [[assistant("a fox")]])


class TestTemplates:
    def test_a_file_takes_the_place_of_the_tokenizers_own(self, tokenizer, tmp_path):
        (tmp_path / "own.jinja").write_text("<|user|> {{ messages[0]['content'] }}")
        set_chat_template(tokenizer, str(tmp_path / "own.jinja"))
        assert prompt_rows(tokenizer, [QUESTION], []) == [tokens(tokenizer, "<|user|> write about the fox")]

    @pytest.mark.parametrize("name", ["nowhere.jinja", "."])
    def test_a_file_that_cannot_be_read_is_one_line(self, tokenizer, name):
        with pytest.raises(UserError, match=r"chat_template .*cannot be read.*expected a Jinja file or 'plain'"):
            set_chat_template(tokenizer, name)

    @pytest.mark.parametrize(
        ("template", "told"),
        [
            ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
            ("{% if %}", "TemplateSyntaxError"),
            ("{{ messages[9]['content'] }}", "UndefinedError"),
        ],
    )
    def test_one_that_fails_is_one_line_with_its_error(self, template, told):
        with pytest.raises(UserError, match=f"chat template of .* fails: .*{told}") as raised:
            prompt_rows(chat_tokenizer(template), [QUESTION], [])
        assert "\n" not in str(raised.value)
