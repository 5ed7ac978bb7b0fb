"""Token lists for a reward's own model."""

import pytest
import torch
from helpers.rollouts import rollout_of_words
from helpers.tiny_checkpoints import WORDS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from grpovi_lightning.rewards.sequences import SequenceReader, closing_tokens, in_batches, text_rows


@pytest.fixture
def encoder_tokenizer():
    """One that frames every text as BERT's does, with the same words under other numbers."""
    words = {word: i for i, word in enumerate(("<pad>", "<unk>", "[CLS]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="[CLS]", sep_token="[SEP]"
    )


def test_an_encoder_reads_a_table_as_it_reads_a_rollout(encoder_tokenizer, tiny_tokenizer):
    prompts, completions = ["write about the fox", "a dog"], ["the fox runs", "dog"]
    rows = text_rows(encoder_tokenizer, prompts, completions)
    assert rows[0][0] == 2 and rows[0][-1] == 3 and rows[0].count(3) == 1 == rows[0].count(2)
    assert rows == [encoder_tokenizer(f"{p} {c}")["input_ids"] for p, c in zip(prompts, completions, strict=True)]
    rollout = rollout_of_words(tiny_tokenizer, prompts, [[text] for text in completions], truncated=[False, True])
    assert SequenceReader(encoder_tokenizer, tiny_tokenizer).rows(rollout) == rows


def test_most_language_models_close_with_nothing(tiny_tokenizer, encoder_tokenizer):
    assert closing_tokens(tiny_tokenizer) == [] and closing_tokens(encoder_tokenizer) == [3]


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
