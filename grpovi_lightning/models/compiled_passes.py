"""Passes over completions with `torch.compile`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.structures import Rollout

if TYPE_CHECKING:
    from grpovi_lightning.models.language_model import LanguageModel

_MAX_VARIANTS = 64


class CompiledPasses:
    """The forward pass of `LanguageModel.completion_statistics`, and its backward pass, as compiled code.

    Prompts and completions of all lengths run the same code: sizes are variables in it. A few sizes get code of their
    own, such as a single prompt, or over 4,096 tokens (`torch` sums those more carefully). Which code runs depends on
    the sizes alone and not on what was compiled before, so a resumed run computes the same bits.

    Held-out completions, one for each prompt, are left to the plain code, as are those of one or two tokens: they are
    few, and would be compiled anew.
    """

    def __init__(self, model: "LanguageModel") -> None:
        """Compiles nothing yet: the first pass does."""
        self.model = model
        self._states = torch.compile(model.group_states, backend=reproducible_inductor, dynamic=True, fullgraph=True)

    def take(self, rollout: Rollout) -> bool:
        """Whether these completions are worth code of their own."""
        return rollout.group_size > 1 and rollout.completion_ids.shape[1] > 2

    def states(self, rollout: Rollout) -> Tensor:
        """What the head reads to predict the completions, [B, T, D].

        Raises:
            UserError: the model cannot be compiled, or does not run prompts once for their groups.
        """
        name = type(self.model.model).__name__
        if self.model.is_sharded:
            raise UserError("compile_passes: got sharded weights, which compiled code cannot gather; leave it out")
        if not self.model.runs_prompts_once:
            raise UserError(
                f"compile_passes: got a {name} that cannot run a prompt once for its group (see the warning), or "
                "gradient_checkpointing; leave one of the two out"
            )
        grouped = rollout.grouped(rollout.completion_ids), rollout.grouped(rollout.completion_mask)
        inputs = [tensor.contiguous() for tensor in (rollout.prompt_ids, rollout.prompt_mask, *grouped)]
        with compiling(f"compile_passes: {name}", _MAX_VARIANTS, "leave it out"):
            return self._states(*inputs)


def reproducible_inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
    """`torch.compile`'s own backend, but for the gradient of embeddings.

    It would add up that gradient in whatever order its threads come, so that two runs would differ in their last bits.
    The operation of `torch` itself does not. The cache on disk does not see the difference, hence the tag.

    The backward pass is compiled with the forward pass, so that what goes wrong with it is found in `compiling`.
    """
    from torch._functorch import config as gradients_config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.lowering import lowerings, make_fallback, require_contiguous

    kept_whole = torch.ops.aten.embedding_dense_backward.default
    if kept_whole not in lowerings:
        # Left to itself the compiler takes this for an oversight of its own, an error where the variable CI is set.
        make_fallback(kept_whole, require_contiguous, warn=False, override_decomp=True)
    decompositions = {operation: code for operation, code in select_decomp_table().items() if operation != kept_whole}
    tag = torch.compiler.config.patch(  # pyright: ignore[reportAttributeAccessIssue]
        cache_key_tag="embedding_dense_backward kept whole"
    )
    backward_now = gradients_config.patch(force_non_lazy_backward_lowering=True)
    with tag, backward_now:
        return compile_fx(graph, inputs, decompositions=decompositions)


@contextmanager
def compiling(what: str, max_variants: int, instead: str) -> Iterator[None]:
    """Inside, compiled functions may be called; what goes wrong is one line, and never plain code in silence.

    Args:
        what: names the setting and what is compiled, for errors.
        max_variants: of the code of one function, for different sizes, modes and so on.
        instead: what to do where there are more.

    Raises:
        UserError: compilation fails, or there are more variants.
    """
    from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit, Unsupported  # loads the compiler
    from torch.fx.experimental import _config as sizes_config

    limits = torch._dynamo.config.patch(recompile_limit=max_variants, fail_on_recompile_limit_hit=True)
    # Two sizes that happen to be equal once would else have to be equal always.
    sizes = sizes_config.patch(use_duck_shape=False)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with limits, sizes:
            yield
    except FailOnRecompileLimitHit:
        raise UserError(
            f"{what}: got sizes that need one more variant of compiled code than the {max_variants} allowed; {instead}"
        ) from None
    except (BackendCompilerFailed, Unsupported) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{what}: torch.compile failed: {' '.join(lines)[:300]}") from error
