"""Tiny models under published names, in the hub's cache of a machine that must not ask the hub."""

import json
from pathlib import Path

import pytest
import torch
from helpers.chat import chat_tokenizer, save_chat_policy, save_chat_reward_model
from helpers.framed import framed_tokenizer
from helpers.hub_cache import COMMIT, cached_by_datasets
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaModel

GROUPED = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
GPT_NEOX = {name: value for name, value in GROUPED.items() if name not in ("num_key_value_heads", "head_dim")}
GEMMA2 = GROUPED | {"query_pre_attn_scalar": 8, "num_labels": 1}


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of empty caches of models and data sets; nothing can be downloaded."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def cached_model(caches: Path, name: str) -> Path:
    """Return the folder in which the cache looks for a model of this name; it is not there yet."""
    folder = folder_of(caches, name)
    refs = folder.parents[1] / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    return folder


def folder_of(caches: Path, name: str) -> Path:
    """Return the folder of a published model."""
    return caches / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT


def save_random(folder: Path, auto_class, family: str, tokenizer, settings: dict, seed: int = 3) -> Path:
    """Write a random model of a family with its tokenizer."""
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **special | settings, initializer_range=0.2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        auto_class.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def publish_pythia(caches: Path) -> None:
    """Write EleutherAI/pythia-1b, which has no chat template."""
    folder = cached_model(caches, "EleutherAI/pythia-1b")
    save_random(folder, AutoModelForCausalLM, "gpt_neox", framed_tokenizer(), GPT_NEOX)


def publish_qwen(caches: Path) -> None:
    """Write Qwen/Qwen2.5-0.5B-Instruct."""
    folder = cached_model(caches, "Qwen/Qwen2.5-0.5B-Instruct")
    save_random(folder, AutoModelForCausalLM, "qwen2", chat_tokenizer(), GROUPED)


def publish_reward_models(caches: Path) -> None:
    """Write the two reward models of the GRPOVI paper, and ArmoRM in the layout of its own code."""
    gemma = cached_model(caches, "Ray2333/GRM-gemma2-2B-rewardmodel-ft")
    save_random(gemma, AutoModelForSequenceClassification, "gemma2", chat_tokenizer(), GEMMA2)
    save_chat_reward_model(cached_model(caches, "Ray2333/GRM-Llama3.2-3B-rewardmodel-ft"))
    _save_armorm(cached_model(caches, "RLHFlow/ArmoRM-Llama3-8B-v0.1"))


def _save_armorm(folder: Path) -> None:
    save_chat_policy(folder)
    settings = json.loads((folder / "config.json").read_text())
    code = {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"}
    settings |= {"architectures": ["LlamaForRewardModelWithGating"], "auto_map": code}
    (folder / "config.json").write_text(json.dumps(settings))
    body = LlamaModel.from_pretrained(folder)
    weights = {f"model.{name}": weight for name, weight in body.state_dict().items()}
    generator = torch.Generator().manual_seed(5)
    weights |= {
        "regression_layer.weight": torch.randn(19, 32, generator=generator),
        "gating.layers.0.weight": torch.randn(10, 32, generator=generator),
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def publish_ultrafeedback(caches: Path) -> None:
    """Write HuggingFaceH4/ultrafeedback_binarized with its columns and two of its splits."""
    words = ["fox", "dog", "cat", "tree", "boat", "house"]
    splits = {
        "train_prefs": [_comparison(f"write about {n} {word}") for n in ("five", "ten", "a", "the") for word in words],
        "test_prefs": [_comparison(f"the old {word}") for word in words],
    }
    cached_by_datasets(caches / "datasets", "HuggingFaceH4", "ultrafeedback_binarized", splits)


def _comparison(prompt: str) -> dict:
    ask = {"content": prompt, "role": "user"}
    chosen, rejected = (
        [ask, {"content": answer, "role": "assistant"}] for answer in ("the happy fox sings", "a sad dog sees it")
    )
    return {"prompt": prompt, "prompt_id": prompt, "chosen": chosen, "rejected": rejected, "messages": chosen} | {
        "score_chosen": 8.0,
        "score_rejected": 3.0,
    }


def publish_gsm8k(caches: Path) -> None:
    """Write openai/gsm8k, its configuration `main`."""
    rows = [
        {"question": f"the {word} sees ten and five", "answer": f"ten and {n} <<10+{n}={10 + n}>>\n#### {10 + n}"}
        for n, word in enumerate(["fox", "dog", "cat", "tree", "boat"])
    ]
    cached_by_datasets(caches / "datasets", "openai", "gsm8k", {"train": rows, "test": rows[:3]}, config="main")
