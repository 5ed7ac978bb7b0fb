"""Random checkpoints of several families, without a head, that reward models start from."""

import torch
from helpers.framed import framed_tokenizer
from models.tiny_models import CONFIGS, language_model
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

_ENCODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4} | {
    "max_position_embeddings": 64
}
ENCODERS = {
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "albert": _ENCODER | {"embedding_size": 16},
    "electra": _ENCODER | {"embedding_size": 32},
    "deberta-v2": _ENCODER | {"pooler_hidden_size": 32},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    "modernbert": _ENCODER | {"cls_token_id": 3, "sep_token_id": 4, "reference_compile": False},
}


def encoder_tokenizer():
    """Writes [CLS] before each text and [SEP] behind it, and has no end token."""
    return framed_tokenizer("[CLS]", "[SEP]", eos_token=None, cls_token="[CLS]", sep_token="[SEP]")


def save_encoder(family, folder, auto_class=AutoModelForMaskedLM, seed=3):
    """Writes an encoder as it was pretrained: with the head of a masked LM, or bare."""
    tokenizer = encoder_tokenizer()
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": None, "bos_token_id": None}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **special | ENCODERS[family])
    config.initializer_range = 0.2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        auto_class.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_body(family, tokenizer, folder):
    """Writes a causal LM, or an encoder of one of `ENCODERS`, that a reward model can start from."""
    if family in ENCODERS:
        return save_encoder(family, folder)
    assert family in CONFIGS
    language_model(family, tokenizer).save_pretrained(folder)
    return str(folder)


def bare_encoder(family, folder):
    """Writes an encoder with its pooling, as sentence encoders are published."""
    return save_encoder(family, folder, AutoModel)
