import pytest
import torch
from with_vllm.policies import ENDS, generate, loaded, moved

from grpovi_lightning.models import LoRA, PretrainedCausalLM
from grpovi_lightning.rollout.vllm import ColocatedVLLM, VLLMDecoder


@pytest.fixture(scope="module")
def decoder():
    return VLLMDecoder(ColocatedVLLM(kv_cache_gb=0.05, options={"enforce_eager": True}))


def assert_logprobs_are_those_of_the_trainer(policy, rollout, temperature=1.0):
    with torch.no_grad():
        expected = policy.completion_statistics(rollout, temperature).logprobs
    difference = (rollout.old_logprobs - expected)[rollout.completion_mask].abs().max()
    assert difference < 1e-3
    return float(difference)


def test_after_each_of_five_updates_the_logprobs_are_those_of_our_own_pass(vllm_policy_folder, decoder):
    policy = loaded(vllm_policy_folder)
    found = []
    for _ in range(6):
        rollout = generate(policy, decoder)
        found.append(assert_logprobs_are_those_of_the_trainer(policy, rollout))
        moved(policy)
    print("largest differences", found)
