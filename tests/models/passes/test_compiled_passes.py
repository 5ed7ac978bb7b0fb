"""Passes with torch.compile: real compilation, so it needs a C++ compiler."""

from contextlib import contextmanager

import pytest
import torch
from helpers.compilers import OLD, needs_compiler, needs_torch
from helpers.threads import two_threads  # noqa: F401  applies to all tests here
from helpers.tracing import untraced  # noqa: F401  likewise
from models.tiny_models import language_model, rollout
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config
from torch._inductor.lowering import lowerings

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.passes import compiled_passes
from grpovi_lightning.models.passes.torch_compiler import compiling, reproducible_inductor

SMALL = rollout([4, 2], [[3, 3], [7, 6]])
LARGE = rollout([3, 9, 1], [[5, 1, 8], [2, 8, 3], [4, 6, 1]])


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def run(policy, data):
    """Log-probabilities and entropies where there are tokens, and the gradient of a weighted sum."""
    weights = torch.randn(data.completion_ids.shape, generator=torch.Generator().manual_seed(1))
    policy.zero_grad()
    statistics = policy.completion_statistics(data, 0.7)
    (statistics.logprobs * weights)[data.completion_mask].sum().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])
    mask = data.completion_mask
    return statistics.logprobs[mask].detach(), statistics.entropies[mask], gradient


def assert_same(found, expected):
    for first, second in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    assert float((found[2] - expected[2]).norm() / expected[2].norm()) < 1e-5


@contextmanager
def nothing_compiled_before():
    with torch._inductor.config.patch(fx_graph_cache=False), functorch_config.patch(enable_autograd_cache=False):
        yield


@needs_compiler
def test_all_sizes_run_one_code_whose_numbers_are_the_plain_ones_whatever_was_compiled_first(
    tiny_tokenizer, monkeypatch
):
    """A run that is resumed meets sizes in another order than one that was not interrupted, and must go on as that."""
    monkeypatch.setenv("CI", "true")  # makes torch's compiler stricter
    found = {}
    for order in ("large first", "small first"):
        torch._dynamo.reset()
        counters.clear()
        policy = language_model("llama", tiny_tokenizer, num_hidden_layers=1)
        expected = run(policy, LARGE), run(policy, SMALL)
        policy.compile_passes()
        with nothing_compiled_before():  # it would make the two orders the same
            if order == "large first":
                large, small = run(policy, LARGE), run(policy, SMALL)
            else:
                small, large = run(policy, SMALL), run(policy, LARGE)
        assert_same(large, expected[0])
        assert_same(small, expected[1])
        assert counters["stats"]["unique_graphs"] == 1
        found[order] = (*large, *small)
    assert all(torch.equal(a, b) for a, b in zip(found["large first"], found["small first"], strict=True))
    for _ in range(30):
        assert all(torch.equal(a, b) for a, b in zip(run(policy, LARGE), large, strict=True))

    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.2)
    changed = run(policy, SMALL)
    policy._compiled = None
    assert_same(changed, run(policy, SMALL))
    assert not torch.allclose(changed[0], small[0], atol=1e-3)


@needs_torch
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_families_are_captured_as_one_graph_as_well(family, tiny_tokenizer, monkeypatch):
    """Captured and run operation by operation: code is made of it in the same way as for the family above."""
    monkeypatch.setattr(compiled_passes, "reproducible_inductor", "aot_eager")
    layers = {"n_layer": 1} if family == "gpt2" else {"num_hidden_layers": 1}
    policy = language_model(family, tiny_tokenizer, **layers)
    expected = run(policy, LARGE)
    policy.compile_passes()

    assert_same(run(policy, LARGE), expected)
    assert counters["stats"]["unique_graphs"] == 1


def test_held_out_completions_and_single_tokens_are_left_to_the_plain_code(tiny_tokenizer):
    policy = language_model("llama", tiny_tokenizer)
    policy.compile_passes()
    for data in (rollout([3, 9], [[5], [2]]), rollout([3, 2], [[1, 2], [2, 1]])):
        run(policy, data)
    assert not counters["stats"]


def test_a_model_that_cannot_run_a_prompt_once_is_refused(tiny_tokenizer):
    policy = language_model("mamba", tiny_tokenizer)
    policy.compile_passes()
    with pytest.raises(UserError, match="compile_passes: got a MambaForCausalLM that cannot run a prompt once"):
        policy.completion_statistics(SMALL, 1.0)


class TestErrorsAreOneLine:
    @pytest.mark.skipif(not OLD, reason="torch is new enough")
    def test_old_torch(self):
        expected = pytest.raises(
            UserError, match=r"it: got torch 2\.6.*, whose compiler lacks settings.*; leave it out"
        )
        with expected, compiling("it", 1, "leave it out"):
            pass

    @needs_torch
    def test_more_variants_than_allowed(self):
        doubled = torch.compile(lambda x: 2 * x, dynamic=False, backend="eager")
        with compiling("thing", 1, "do otherwise"):
            doubled(torch.ones(2))
        message = r"^thing: got sizes that need one more variant of compiled code than the 1 allowed; do otherwise$"
        with pytest.raises(UserError, match=message), compiling("thing", 1, "do otherwise"):
            doubled(torch.ones(3))

    @needs_torch
    def test_what_cannot_be_captured(self):
        odd = torch.compile(lambda x: torch.ones(2)[x.nonzero()[0]] if x.sum() > 0 else x, fullgraph=True)
        assert "\n" not in failure(odd, torch.ones(3))

    @needs_compiler
    def test_a_backward_pass_that_cannot_be_compiled_is_one_as_soon_as_the_forward_pass_is_called(self, monkeypatch):
        def broken(*arguments):
            raise NotImplementedError("no code for it")

        monkeypatch.setitem(lowerings, torch.ops.aten.embedding_dense_backward.default, broken)
        embedded = torch.compile(torch.nn.functional.embedding, backend=reproducible_inductor)
        with nothing_compiled_before():
            said = failure(embedded, torch.tensor([1, 0]), torch.ones(2, 3, requires_grad=True))
        assert "no code for it" in said

    @needs_torch
    def test_passes_that_cannot_be_compiled(self, tiny_tokenizer, monkeypatch):
        def broken(*arguments):
            raise NotImplementedError("no code for it")

        monkeypatch.setattr(compiled_passes, "reproducible_inductor", broken)
        policy = language_model("llama", tiny_tokenizer, num_hidden_layers=1)
        policy.compile_passes()
        message = "^compile_passes: LlamaForCausalLM: torch.compile failed: .*no code for it"
        with pytest.raises(UserError, match=message):
            policy.completion_statistics(SMALL, 1.0)

    @needs_compiler
    def test_no_compiler(self):
        doubled = torch.compile(lambda x: (2 * x).sin(), backend="inductor")
        with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
            assert "\n" not in failure(doubled, torch.ones(7))


def failure(compiled, *arguments):
    with pytest.raises(UserError, match=r"^thing: torch.compile failed: .+") as refused, compiling("thing", 1, ""):
        compiled(*arguments)
    return str(refused.value)
