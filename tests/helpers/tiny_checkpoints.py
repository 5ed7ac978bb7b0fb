"""Random checkpoints of a few thousand parameters, for the fixtures of `conftest.py` and tests that need a variant."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

TEXT = (
    "write about the a red blue green old small fox boat house river tree dog cat and with happy sad calm ten "
    "five words runs sleeps sings sees finds likes . , to in on under near it"
)
WORDS = TEXT.split()
SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")


def save_tokenizer(folder: Path, words=WORDS) -> Path:
    """Writes a word-level tokenizer that pads on the left; decoding joins words by single spaces."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate((*SPECIAL_TOKENS, *words))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    return folder


def save_policy(folder: Path, tokenizer_folder: Path, seed: int = 1, **config) -> Path:
    """Writes a random two-layer Llama causal LM with its tokenizer; `config` goes into its `config.json`."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(_config(tokenizer, **config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_reward_model(folder: Path, tokenizer_folder: Path, seed: int = 2, **config) -> Path:
    """Writes a random two-layer Llama classifier with one label; `config` goes into its `config.json`."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForSequenceClassification(_config(tokenizer, num_labels=1, **config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _config(tokenizer, **settings):
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.2,
        **settings,
    )
