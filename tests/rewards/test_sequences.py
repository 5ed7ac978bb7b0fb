"""Token lists for a reward's own model."""

import pytest
import torch
from helpers.framed import framed_tokenizer
from helpers.rollouts import rollout_of_words
from transformers import AutoTokenizer, BertConfig, BertModel

from grpovi_lightning.models.encoding import frame
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.rewards.sequences import SequenceReader, in_batches, text_rows

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def encoder_tokenizer():
    """One that frames every text as BERT's does, with the same words under other numbers."""
    return framed_tokenizer("[CLS]", "[SEP]", eos_token=None, cls_token="[CLS]", sep_token="[SEP]")


def test_an_encoder_reads_a_table_as_it_reads_a_rollout(encoder_tokenizer, tiny_tokenizer):
    prompts, completions = ["write about the fox", "a dog"], ["the fox runs", "dog"]
    rows = text_rows(encoder_tokenizer, prompts, completions)
    opening, closing = encoder_tokenizer.cls_token_id, encoder_tokenizer.sep_token_id
    assert rows[0][0] == opening and rows[0][-1] == closing and rows[0].count(closing) == 1 == rows[0].count(opening)
    assert rows == [encoder_tokenizer(f"{p} {c}")["input_ids"] for p, c in zip(prompts, completions, strict=True)]
    rollout = rollout_of_words(tiny_tokenizer, prompts, [[text] for text in completions], truncated=[False, True])
    limits = InputLimits(BertModel(BertConfig(vocab_size=len(encoder_tokenizer), **TINY)), encoder_tokenizer, None)
    assert SequenceReader(encoder_tokenizer, tiny_tokenizer, limits).rows(rollout) == rows


def test_most_language_models_close_with_nothing(tiny_tokenizer, encoder_tokenizer):
    assert frame(tiny_tokenizer) == ([], []) and frame(encoder_tokenizer) == ([3], [4])


def test_a_pair_of_texts_becomes_the_prompt_the_completion_and_an_end_token(tiny_tokenizer):
    rows = text_rows(tiny_tokenizer, ["the fox", "a"], ["runs .", "boat"])
    encode = AutoTokenizer.from_pretrained(tiny_tokenizer.name_or_path)
    assert rows == [[*encode(text)["input_ids"], encode.eos_token_id] for text in ("the fox runs .", "a boat")]


def test_rows_of_like_length_go_together_and_come_back_in_their_order():
    rows, seen = [[1] * n for n in (5, 1, 3, 2, 4)], []

    def compute(some):
        seen.append([len(row) for row in some])
        return torch.tensor([[float(len(row)), 1.0] for row in some])

    assert in_batches(rows, 2, compute)[:, 0].tolist() == [5, 1, 3, 2, 4]
    assert seen == [[1, 2], [3, 4], [5]]
