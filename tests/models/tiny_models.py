"""Random two-layer models of several families, and rollouts of given lengths for them."""

from dataclasses import replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from grpovi_lightning.models import LanguageModel
from grpovi_lightning.models.passes import ForwardPasses
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
    # Attention that does not go through the attention interface; GPT-J's does from `transformers` 5.24 on.
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": _COMMON,
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    # Logits are scaled behind the output embedding.
    "cohere": _GROUPED | {"logit_scale": 0.3},
    "granite": _GROUPED | {"logits_scaling": 0.5, "attention_multiplier": 0.3, "embedding_multiplier": 2.0},
    # Experts; windows that are longer than what the capabilities are tried out on.
    "mixtral": _GROUPED | {"num_local_experts": 4, "sliding_window": 9},
    "phimoe": _GROUPED | {"num_local_experts": 4, "sliding_window": 9},
    "qwen2_moe": _GROUPED
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    # Attention sinks, and keys that are cached compressed.
    "gpt_oss": _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9},
    "deepseek_v3": _COMMON
    | {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    | {"v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    | {"moe_intermediate_size": 16, "first_k_dense_replace": 1},
    # Positions that are turned otherwise where a sequence is longer than what was trained on first.
    "phi3": _COMMON
    | {"num_key_value_heads": 2, "original_max_position_embeddings": 16}
    | {
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0}
        | {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16}
    },
    # Recurrent ones; the first four keep padding out of their state, the others do not.
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
    "jamba": _GROUPED
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    | {"num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "qwen3_next": _GROUPED
    | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    | {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    | {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2": _GROUPED | {"layer_types": ["conv", "full_attention"]},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64},
    "recurrent_gemma": _GROUPED | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 9},
    # A layer between the body and the output embedding, and absolute positions that do not know of padding.
    "rembert": _COMMON | {"is_decoder": True, "input_embedding_size": 16, "output_embedding_size": 48},
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    | {"max_position_embeddings": 64, "is_decoder": True},
}


def language_model(family, tokenizer, seed=3, **settings) -> LanguageModel:
    """A random model whose logits are far from uniform."""
    common = {"vocab_size": len(tokenizer), "bos_token_id": None}
    common |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(family, **common | CONFIGS[family] | settings)
    config.initializer_range = 0.2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
    return LanguageModel(model, tokenizer)


def set_capabilities(policy, **changes) -> None:
    """Has a policy run its model otherwise than the trial allows."""
    policy._passes = ForwardPasses(policy.model, replace(policy.passes.capabilities, **changes))


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
