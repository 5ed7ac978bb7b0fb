"""Token lists for a reward's own model."""

import torch
from transformers import AutoTokenizer

from grpovi_lightning.rewards.sequences import in_batches, text_rows


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
