"""Rows in the formats that TRL reads, told by their content: text, messages, and prompts that answers begin with."""

import json
import logging

import pytest
from helpers.chat import assistant, system, user, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.conversations import Conversation
from grpovi_lightning.data import DemonstrationDataModule, PreferenceDataModule, PromptDataModule
from grpovi_lightning.data.conversations import Conversations, shared_opening
from grpovi_lightning.errors import UserError

ASK, TELL, OTHER = user("What is two and two?"), assistant("Four."), assistant("Five.")
TOOLS = [{"name": "sum"}]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "rows.jsonl"


def read(kind, file, row, **settings):
    data = kind(write_jsonl(file, [row]), **settings)
    data._read_tables()
    batch = data.collate([data.tables["train"][0]])
    return batch.contents[0] if kind is PromptDataModule else {role: values[0] for role, values in batch.items()}


class TestMessages:
    def test_a_prompt(self, file):
        assert read(PromptDataModule, file, {"prompt": [ASK]}) == Conversation([ASK])

    @pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
    def test_tools_and_variables_of_a_row_go_to_the_template(self, file, tools):
        row = {"prompt": [ASK], "tools": tools, "chat_template_kwargs": {"enable_thinking": True}}
        settings = Conversations(template_kwargs={"enable_thinking": False, "depth": 2})
        found = read(PromptDataModule, file, row, conversations=settings)
        assert found == Conversation([ASK], TOOLS, {"enable_thinking": True, "depth": 2})

    def test_a_demonstration(self, file):
        found = read(DemonstrationDataModule, file, {"prompt": [ASK], "completion": [TELL]})
        assert found == {"prompt": Conversation([ASK]), "completion": [TELL]}

    def test_a_whole_conversation_is_imitated_in_all_that_the_assistant_says(self, file):
        row = {"messages": [system("Be brief."), ASK, TELL, user("Sure?"), assistant("Yes.")]}
        found = read(DemonstrationDataModule, file, row)
        assert found == {"prompt": Conversation(row["messages"][:1]), "completion": row["messages"][1:]}

    def test_a_preference(self, file):
        row = {"prompt": [ASK], "chosen": [TELL], "rejected": [OTHER]}
        found = read(PreferenceDataModule, file, row)
        assert found == {"prompt": Conversation([ASK]), "chosen": [TELL], "rejected": [OTHER]}

    def test_a_preference_whose_answers_begin_with_the_prompt(self, file):
        opening = [ASK, assistant("Hm."), user("Go on.")]
        row = {"chosen": [*opening, TELL], "rejected": [*opening, OTHER]}
        found = read(PreferenceDataModule, file, row)
        assert found == {"prompt": Conversation(opening), "chosen": [TELL], "rejected": [OTHER]}

    def test_answers_that_share_the_assistants_first_turn_are_parted_before_it(self, file):
        row = {"chosen": [ASK, TELL, user("Sure?"), TELL], "rejected": [ASK, TELL, user("Why?"), OTHER]}
        found = read(PreferenceDataModule, file, row)
        assert found["prompt"] == Conversation([ASK]) and found["chosen"] == row["chosen"][1:]

    def test_keys_that_a_table_fills_with_nothing_are_left_out(self, file):
        message = ASK | {"tool_calls": None, "name": None}
        assert read(PromptDataModule, file, {"prompt": [message]}) == Conversation([ASK])

    def test_a_system_prompt_opens_those_that_have_none(self, file):
        settings = Conversations(system_prompt="Be brief.")
        assert read(PromptDataModule, file, {"prompt": [ASK]}, conversations=settings).messages == [
            system("Be brief."),
            ASK,
        ]
        own = {"prompt": [system("Rhyme."), ASK]}
        assert read(PromptDataModule, file, own, conversations=settings).messages == own["prompt"]


class TestText:
    def test_it_stays_text(self, file):
        assert read(PromptDataModule, file, {"prompt": "Why?"}) == "Why?"
        row = {"prompt": "Why?", "chosen": " So.", "rejected": ""}
        assert read(PreferenceDataModule, file, row) == row

    def test_it_becomes_messages_where_that_is_asked_for(self, file):
        settings = Conversations(text_as_messages=True, system_prompt="Be brief.")
        row = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
        found = read(PreferenceDataModule, file, row, conversations=settings)
        assert found["prompt"] == Conversation([system("Be brief."), user("Why?")])
        assert (found["chosen"], found["rejected"]) == ([assistant("So.")], [assistant("No.")])

    def test_answers_that_begin_with_the_prompt_are_parted_at_the_last_space(self, file):
        row = {"chosen": "Two and two? Four.", "rejected": "Two and two? Five."}
        found = read(PreferenceDataModule, file, row)
        assert found == {"prompt": "Two and two?", "chosen": " Four.", "rejected": " Five."}

    @given(st.text("ab ", min_size=1), st.text("ab "), st.text("ab "))
    def test_parted_answers_give_the_whole_ones_again(self, opening, chosen, rejected):
        parted = shared_opening(opening + chosen, opening + rejected)
        if parted is not None:
            prompt, *answers = parted
            assert [prompt + answer for answer in answers] == [opening + chosen, opening + rejected]
            assert prompt


def test_the_log_says_what_the_rows_are(file, caplog):
    with caplog.at_level(logging.INFO):
        read(PreferenceDataModule, file, {"prompt": [ASK], "chosen": [TELL], "rejected": [OTHER]})
    assert "1 rows of messages in prompt, chosen, rejected" in caplog.text


PROMPT, DEMONSTRATION, PREFERENCE = PromptDataModule, DemonstrationDataModule, PreferenceDataModule
BAD = {
    "a message without a role": (PROMPT, {"prompt": [{"content": "Why?"}]}, "got the keys content, expected `role`"),
    "an unknown role": (
        PROMPT,
        {"prompt": [{"role": "bot", "content": "Why?"}]},
        "got the role 'bot', expected one of",
    ),
    "no content": (PROMPT, {"prompt": [{"role": "user"}]}, "got None as content, expected text"),
    "a picture": (
        PROMPT,
        {"prompt": [user([{"type": "image", "url": "x"}])]},  # type: ignore[arg-type]
        "got .* in its content, expected text",
    ),
    "half a character": (PROMPT, {"prompt": [user("\ud83d")]}, "half of a surrogate pair"),
    "a last message of an assistant": (PROMPT, {"prompt": [ASK, TELL]}, "last message of the role 'assistant'"),
    "a last message of the system": (PROMPT, {"prompt": [system("Be brief.")]}, "expected user or tool"),
    "an answer of the user": (DEMONSTRATION, {"prompt": [ASK], "completion": [ASK]}, "completion .*expected assistant"),
    "a conversation without an answer": (DEMONSTRATION, {"messages": [ASK]}, "messages .*expected assistant"),
    "messages after text": (DEMONSTRATION, {"prompt": "Why?", "completion": [TELL]}, "completion .*expected text"),
    "equal answers": (PREFERENCE, {"prompt": [ASK], "chosen": [TELL], "rejected": [TELL]}, "the same answer"),
    "equal texts": (PREFERENCE, {"prompt": "a", "chosen": "b", "rejected": "b"}, "the same answer"),
    "no prompt in two answers": (PREFERENCE, {"chosen": [TELL], "rejected": [OTHER]}, "another beginning"),
    "no prompt in two texts": (PREFERENCE, {"chosen": "Four.", "rejected": "Five."}, "another beginning"),
    "no column of prompts": (
        DEMONSTRATION,
        {"question": "a", "completion": "b"},
        "no column 'prompt', it has question",
    ),
    "no answers": (PREFERENCE, {"prompt": "a", "better": "b"}, "no column 'chosen'"),
}


@pytest.mark.parametrize(("kind", "row", "told"), BAD.values(), ids=BAD)
def test_a_wrong_row_is_one_line_with_its_number(file, kind, row, told):
    with pytest.raises(UserError, match=told) as raised:
        read(kind, file, row)
    assert "\n" not in str(raised.value)
    assert "no column" in told or "row 0 (line 1)" in str(raised.value)


def test_the_first_wrong_row_is_named_and_all_are_counted(file):
    rows = [{"prompt": [ASK]}, {"prompt": [TELL]}, {"prompt": "text"}, {"prompt": [ASK]}, {"prompt": []}]
    data = PromptDataModule(write_jsonl(file, rows))
    with pytest.raises(UserError, match=r"prompt in row 1 \(line 2\): got a last message .*; 3 rows are wrong"):
        data._read_tables()


@pytest.mark.parametrize("settings", [{"system_prompt": "Be brief."}, {"template_kwargs": {"enable_thinking": False}}])
def test_a_setting_of_messages_is_refused_where_prompts_are_text(file, settings):
    with pytest.raises(UserError, match=r"prompts are text.*set conversations.text_as_messages"):
        read(PromptDataModule, file, {"prompt": "Why?"}, conversations=Conversations(**settings))
