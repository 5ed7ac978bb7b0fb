"""Tiny checkpoints that every room's tests share; built once a session, never written to."""

from pathlib import Path

import pytest

WORDS = (
    "write about the a red blue green old small fox boat house river tree dog cat and with happy sad calm ten "
    "five words runs sleeps sings sees finds likes . , to in on under near it"
).split()
SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A saved word-level tokenizer of about 40 words, padding on the left; decoding joins words by spaces."""
    folder = tmp_path_factory.mktemp("tokenizer")
    _tokenizer((*SPECIAL_TOKENS, *WORDS)).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_tokenizer(tokenizer_folder):
    """The tokenizer of `tokenizer_folder`, loaded afresh."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory, tokenizer_folder) -> Path:
    """A checkpoint of a random two-layer Llama causal LM with the tokenizer of `tokenizer_folder`."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("policy")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory, tokenizer_folder) -> Path:
    """A checkpoint of a random two-layer Llama classifier with one label, with the policy's tokenizer."""
    folder = tmp_path_factory.mktemp("reward")
    return save_reward_model(folder, tokenizer_folder)


def save_reward_model(folder: Path, tokenizer_folder: Path, seed: int = 2, **config) -> Path:
    """Writes a random classifier with one label; `config` goes into its `config.json`."""
    import torch
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(_config(tokenizer, num_labels=1, **config))
        # The default initialisation is so small that all scores would be nearly 0.
        torch.nn.init.normal_(model.score.weight, std=1.0)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(vocabulary):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _config(tokenizer, **settings):
    from transformers import LlamaConfig

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
