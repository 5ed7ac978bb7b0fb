"""Random two-layer models of several families, and rollouts of given lengths for them."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from grpovi_lightning.models import LanguageModel
from grpovi_lightning.ops import pad_left, pad_right
from grpovi_lightning.structures import PromptBatch, Rollout

_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "gpt_neox": _COMMON | {"rotary_pct": 0.5},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mistral": _GROUPED | {"sliding_window": 4},
    "gemma2": _GROUPED | {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": _GROUPED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
}


def language_model(family, tokenizer, seed=3, **settings) -> LanguageModel:
    """A random model whose logits are far from uniform."""
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **special | CONFIGS[family] | settings)
    config.initializer_range = 0.2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
    return LanguageModel(model, tokenizer)


def rollout(prompt_lengths, completion_lengths, vocabulary=40, seed=0, extra_padding=0) -> Rollout:
    """Random tokens; `completion_lengths` has one list of G lengths for each prompt."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count):
        return torch.randint(3, vocabulary, (count,), generator=generator).tolist()

    group_size = len(completion_lengths[0])
    prompts = [tokens(n) for n in prompt_lengths]
    completions = [tokens(n) for group in completion_lengths for n in group]
    prompt_ids, prompt_mask = pad_left(prompts, 0)
    if extra_padding:
        prompt_ids = torch.nn.functional.pad(prompt_ids, (extra_padding, 0), value=0)
        prompt_mask = torch.nn.functional.pad(prompt_mask, (extra_padding, 0), value=False)
    ids, mask = pad_right(completions, 0)
    count = len(completions)
    return Rollout(
        prompts=PromptBatch([f"prompt {i}" for i in range(len(prompts))], torch.arange(len(prompts)), {}),
        group_size=group_size,
        step=0,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=ids,
        completion_mask=mask,
        old_logprobs=torch.zeros(ids.shape),
        truncated=torch.zeros(count, dtype=torch.bool),
        texts=["?"] * count,
    )


def row_by_row_logprobs(model, data: Rollout, temperature=1.0) -> list[torch.Tensor]:
    """One unpadded forward pass a completion, through nothing but the `transformers` model."""
    result = []
    for row, (ids, kept) in enumerate(zip(data.completion_ids, data.completion_mask, strict=True)):
        p = row // data.group_size
        prompt, completion = data.prompt_ids[p][data.prompt_mask[p]], ids[kept]
        logits = model(torch.cat([prompt, completion])[None], use_cache=False).logits[0].double() / temperature
        predicting = logits[len(prompt) - 1 : -1]
        normaliser = predicting.exp().sum(-1).log()
        result.append(predicting[torch.arange(len(completion)), completion] - normaliser)
    return result
