import pytest
import torch
from with_vllm.policies import eager, generate, loaded, moved

from grpovi_lightning.models import LoRA, NewCausalLM
from grpovi_lightning.models.handover import HandedOver
from grpovi_lightning.rollout.vllm import VLLMDecoder

LORA = LoRA(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "down_proj"])
PLAIN = {
    "lora": LORA,
    "all linear layers, rslora": LoRA(r=4, use_rslora=True),
    "a rank of its own": LoRA(r=4, options={"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 3.0}}),
}
MERGED = {
    "dora": LoRA(r=4, options={"use_dora": True}),
    "pissa": LoRA(r=4, options={"init_lora_weights": "pissa"}),
    "a trained output layer": LoRA(r=4, target_modules=["q_proj"], options={"modules_to_save": ["lm_head"]}),
}


@pytest.fixture
def decoder():
    return VLLMDecoder(eager())


def difference(policy, rollout, temperature=1.0):
    """The largest between the sampler's log-probabilities and those of a pass of ours."""
    with torch.no_grad():
        expected = policy.completion_statistics(rollout, temperature).logprobs
    return float((rollout.old_logprobs - expected)[rollout.completion_mask].abs().max())


def differences(policy, decoder, updates):
    found = []
    for _ in range(updates + 1):
        rollout = generate(policy, decoder)
        found.append(difference(policy, rollout))
        moved(policy)
    print("largest differences", found)
    return found


def test_after_each_of_five_updates_the_logprobs_are_those_of_our_own_pass(vllm_policy_folder, decoder):
    policy = loaded(vllm_policy_folder)
    before = generate(policy, decoder)

    assert max(differences(policy, decoder, updates=5)) < 1e-3

    assert difference(policy, before) > 0.1  # the updates moved the policy far


def test_tied_embeddings_are_handed_over(tmp_path, tokenizer_folder, decoder):
    from helpers.tiny_checkpoints import save_policy

    folder = save_policy(tmp_path / "tied", tokenizer_folder, head_dim=32, tie_word_embeddings=True)

    assert max(differences(loaded(folder), decoder, updates=2)) < 1e-3


def test_a_policy_without_a_checkpoint_is_handed_over(tokenizer_folder, decoder):
    config = {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}

    assert max(differences(NewCausalLM(config, str(tokenizer_folder)).load(), decoder, updates=2)) < 1e-3


@pytest.mark.parametrize("lora", PLAIN.values(), ids=PLAIN)
def test_of_plain_lora_the_adapter_alone_is_handed_over(vllm_policy_folder, decoder, lora, monkeypatch):
    policy = loaded(vllm_policy_folder, lora=lora)
    generate(policy, decoder)
    model = decoder.engine._loaded[1]
    whole = []
    monkeypatch.setattr(type(model), "take_base", lambda *arguments: whole.append(arguments))
    moved(policy)

    assert max(differences(policy, decoder, updates=5)) < 1e-3

    assert model.lora_rank == 8
    assert not whole


@pytest.mark.parametrize("lora", MERGED.values(), ids=MERGED)
def test_adapters_that_vllm_does_not_take_are_merged(vllm_policy_folder, decoder, lora):
    policy = loaded(vllm_policy_folder, lora=lora)

    assert max(differences(policy, decoder, updates=2)) < 1e-3

    assert HandedOver.of(policy.model, adapters=True).adapter is None


def test_plain_lora_is_merged_where_there_is_no_room_for_it(vllm_policy_folder):
    decoder = VLLMDecoder(eager(lora_rank=0))
    policy = loaded(vllm_policy_folder, lora=LORA)

    assert max(differences(policy, decoder, updates=2)) < 1e-3
    assert decoder.engine._loaded[1].versions.adapter is None


def test_weights_that_did_not_change_are_not_handed_over_again(vllm_policy_folder, decoder, monkeypatch):
    policy = loaded(vllm_policy_folder)
    generate(policy, decoder)
    model = decoder.engine._loaded[1]
    taken = []
    take = type(model).take_base
    monkeypatch.setattr(type(model), "take_base", lambda self, *args: taken.append(args[0]) or take(self, *args))

    generate(policy, decoder, step=3)
    assert not taken
    with torch.no_grad():
        policy.model.lm_head.weight.data[7, 3] += 1e-6  # past autograd's counter of versions
    generate(policy, decoder, step=4)
    assert len(taken) == 1


def test_a_prompt_that_was_cached_under_other_weights_is_computed_anew(vllm_policy_folder, decoder):
    texts = ["the red fox " * 24]  # more than one block of 32 tokens
    policy = loaded(vllm_policy_folder)
    generate(policy, decoder, texts=texts)
    moved(policy)

    assert difference(policy, generate(policy, decoder, texts=texts)) < 1e-3


def test_the_training_process_stays_as_it_was(vllm_policy_folder, decoder):
    torch.manual_seed(5)
    numbers, threads, sets = torch.get_rng_state(), torch.get_num_threads(), torch.set_num_threads

    generate(loaded(vllm_policy_folder), decoder)

    assert torch.equal(torch.get_rng_state(), numbers)
    assert torch.get_num_threads() == threads
    assert torch.set_num_threads is sets


def test_under_autocast_vllm_computes_in_the_precision_of_the_weights(vllm_policy_folder, decoder):
    policy = loaded(vllm_policy_folder)
    with torch.autocast("cpu", torch.bfloat16):
        rollout = generate(policy, decoder)

    assert difference(policy, rollout) < 1e-5


def test_bfloat16_weights_are_sampled_in_bfloat16(vllm_policy_folder, decoder):
    policy = loaded(vllm_policy_folder, dtype="bfloat16")

    assert 1e-4 < max(differences(policy, decoder, updates=2)) < 0.2
