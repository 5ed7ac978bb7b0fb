"""Decoding with torch.compile: real compilation, so it needs a C++ compiler."""

import pytest
import torch
from helpers.compilers import needs_compiler
from helpers.tracing import untraced  # noqa: F401  applies to all tests here

from grpovi_lightning.errors import UserError
from grpovi_lightning.rollout import CompiledDecoder, GroupDecoder, RolloutEngine, SamplingConfig, StaticDecoder
from grpovi_lightning.structures import PromptBatch

PROMPTS = PromptBatch(["the old house", "write about the red fox and the boat", "a"], torch.arange(3), {})
SAMPLING = SamplingConfig(max_completion_length=12, temperature=0.9)


@needs_compiler
class TestCompiled:
    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    def test_completions_are_those_of_the_default_decoder_whatever_block_they_are_in(self, policy):
        decoder = CompiledDecoder(block=4)
        for step in (0, 1):
            expected = RolloutEngine(SAMPLING, GroupDecoder()).generate(policy, PROMPTS, 4, 1, step)
            found = RolloutEngine(SAMPLING, decoder).generate(policy, PROMPTS, 4, 1, step)
            assert torch.equal(found.completion_ids, expected.completion_ids)
            torch.testing.assert_close(found.old_logprobs, expected.old_logprobs, atol=1e-5, rtol=0)

    def test_weights_that_changed_between_two_rollouts_are_the_ones_that_sample(self, policy):
        decoder = CompiledDecoder()
        engine = RolloutEngine(SAMPLING, decoder)
        before = engine.generate(policy, PROMPTS, 4, 1, 0)
        with torch.no_grad():
            for weights in policy.model.parameters():
                weights.mul_(1.5)

        after = engine.generate(policy, PROMPTS, 4, 1, 0)

        expected = RolloutEngine(SAMPLING).generate(policy, PROMPTS, 4, 1, 0)
        assert torch.equal(after.completion_ids, expected.completion_ids)
        assert not torch.equal(before.old_logprobs, after.old_logprobs)

    def test_gradients_can_be_taken_after_a_compiled_rollout(self, policy):
        rollout = RolloutEngine(SAMPLING, CompiledDecoder()).generate(policy, PROMPTS, 4, 1, 0)
        statistics = policy.completion_statistics(rollout, 0.9)
        statistics.logprobs.sum().backward()
        torch.testing.assert_close(statistics.logprobs.detach(), rollout.old_logprobs, atol=1e-5, rtol=0)
        assert all(weights.grad is not None for weights in policy.model.parameters())

    def test_more_shapes_than_allowed_are_an_error_and_no_silent_slowness(self, policy):
        engine = RolloutEngine(SAMPLING, CompiledDecoder(block=32, max_shapes=1))
        engine.generate(policy, PROMPTS, 4, 1, 0)
        with pytest.raises(
            UserError, match=r"CompiledDecoder: got sizes .* than the 1 allowed; raise decoder\.max_shapes"
        ):
            engine.generate(policy, PROMPTS, 3, 1, 0)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: StaticDecoder(block=0), "decoder.block: got 0, expected at least 1"),
    (lambda: CompiledDecoder(max_shapes=0), "decoder.max_shapes: got 0, expected at least 1"),
    (lambda: GroupDecoder(drop_share=1.5), "decoder.drop_share: got 1.5, expected between 0 and 1"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(UserError) as refused:
        make()
    assert message in str(refused.value)
