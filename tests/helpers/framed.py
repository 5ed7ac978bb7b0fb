"""Tokenizers that put special tokens around a text, of the words that all tests share."""

from helpers.tiny_checkpoints import SPECIAL_TOKENS, WORDS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


def framed_tokenizer(opening="", closing="", **special) -> PreTrainedTokenizerFast:
    """Returns a tokenizer that writes `opening` before each text and `closing` behind it.

    `special` names further special tokens, such as `bos_token`. "<eos>" is the end token unless it says otherwise.
    """
    tokens = list(dict.fromkeys([*SPECIAL_TOKENS, *filter(None, (opening, closing)), *WORDS]))
    numbers = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    frame = [token for token in (opening, "$A", closing) if token]
    tokenizer.post_processor = TemplateProcessing(
        " ".join(frame), special_tokens=[(token, numbers[token]) for token in (opening, closing) if token]
    )
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names)
