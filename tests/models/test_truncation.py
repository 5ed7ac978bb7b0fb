"""One rule for sequences that are too long: the prompt loses its left part, the completion stays whole."""

import pytest
from helpers.framed import framed_tokenizer
from helpers.tiny_checkpoints import WORDS
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.models.truncation import PromptCut
from grpovi_lightning.rewards.sequences import text_rows

TOKENIZER = framed_tokenizer("[CLS]", "[SEP]", eos_token=None, cls_token="[CLS]", sep_token="[SEP]")
TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
MODEL = BertModel(BertConfig(vocab_size=len(TOKENIZER), max_position_embeddings=12, **TINY))
LIMITS = InputLimits(MODEL, TOKENIZER, None)
CUT = PromptCut(LIMITS, TOKENIZER)
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)


def read(row):
    return TOKENIZER.convert_ids_to_tokens(row)


@given(st.lists(st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join), texts), min_size=1))
def test_special_tokens_and_the_completion_stay_and_the_end_of_the_prompt(pairs):
    prompts, completions = zip(*pairs, strict=True)
    rows, count = CUT(text_rows(TOKENIZER, prompts, completions), completions, str)

    lengths = [2 + len(f"{p} {c}".split()) for p, c in pairs]
    assert count == sum(length > 12 for length in lengths)
    for row, prompt, completion, length in zip(rows, prompts, completions, lengths, strict=True):
        words = f"{prompt} {completion}".split()
        assert read(row) == ["[CLS]", *(words if length <= 12 else words[-10:]), "[SEP]"]


def test_a_completion_that_is_too_long_by_itself_is_refused_with_both_numbers():
    completion = " ".join(["fox"] * 10)
    rows = text_rows(TOKENIZER, ["write"], [completion])
    message = r"row 0: got a completion of 10 tokens, but .* has 12 positions, 3 of them for special tokens, and only"
    with pytest.raises(UserError, match=message):
        CUT(rows, [completion], lambda i: f"row {i}")


def test_it_is_refused_for_a_model_without_a_limit():
    free = LIMITS.of_any_length()
    with pytest.raises(UserError, match=r"truncate: .* reads sequences of any length; leave it out"):
        PromptCut(free, TOKENIZER)
    assert LIMITS.positions == 12
