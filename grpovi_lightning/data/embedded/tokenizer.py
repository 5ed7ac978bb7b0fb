"""The word-level tokenizer of a task, in the form that every Hugging Face checkpoint carries."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from grpovi_lightning.data.embedded.prompts import prompt_words
from grpovi_lightning.data.embedded.size import TaskSize

PAD_TOKEN, END_TOKEN, UNKNOWN_TOKEN = "<pad>", "<eos>", "<unk>"


def word_types(size: TaskSize) -> tuple[str, ...]:
    """Return every word type of prompts and completions, without special tokens, in a fixed order."""
    return tuple(dict.fromkeys((*prompt_words(size), *size.lexicon().text_words())))


def build_tokenizer(size: TaskSize) -> PreTrainedTokenizerFast:
    """Make the tokenizer: one token a word, prompts padded on the left, decoding to words joined by single spaces."""
    vocabulary = {word: i for i, word in enumerate((PAD_TOKEN, END_TOKEN, UNKNOWN_TOKEN, *word_types(size)))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        unk_token=UNKNOWN_TOKEN,
        padding_side="left",
        # Otherwise decoding would glue full stops and commas to the word before them.
        clean_up_tokenization_spaces=False,
    )
