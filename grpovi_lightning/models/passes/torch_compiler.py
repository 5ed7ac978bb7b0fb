"""The private parts of `torch.compile` that this project needs: a reproducible backend, and errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from grpovi_lightning.errors import UserError


def reproducible_inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
    """Compile a graph as `torch.compile` does by default, except for the gradient of embeddings.

    The default adds up that gradient in whatever order its threads come, so two runs would differ in their last bits.
    The operation of `torch` itself does not, so it is kept. The backward pass is compiled together with the forward
    pass, so that `compiling` catches what goes wrong with it.
    """
    # `torch.compile` has no public option for any of these: which operations are taken apart (`compile_fx` takes the
    # table), which are called as they are (`make_fallback`), and when the backward pass is compiled.
    from torch._functorch import config as gradients_config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.lowering import lowerings, make_fallback, require_contiguous

    kept_whole = torch.ops.aten.embedding_dense_backward.default
    if kept_whole not in lowerings:
        # Left to itself the compiler takes this for an oversight of its own, an error where the variable CI is set.
        make_fallback(kept_whole, require_contiguous, warn=False, override_decomp=True)
    decompositions = {operation: code for operation, code in select_decomp_table().items() if operation != kept_whole}
    # Compiled code is cached on disk under a key that does not contain the table; the tag keeps ours apart.
    tag = torch.compiler.config.patch(  # pyright: ignore[reportAttributeAccessIssue]
        cache_key_tag="embedding_dense_backward kept whole"
    )
    backward_now = gradients_config.patch(force_non_lazy_backward_lowering=True)
    with tag, backward_now:
        return compile_fx(graph, inputs, decompositions=decompositions)


@contextmanager
def compiling(what: str, max_variants: int, instead: str) -> Iterator[None]:
    """Allow compiled functions to be called; what goes wrong is one line, and never plain code in silence.

    Raises:
        UserError: compilation of `what` fails, or a function needs more than `max_variants` of its code, for different
            sizes, modes and so on; `instead` says what to do then.
    """
    # `torch.compiler` exports no exceptions. These imports load the compiler, which takes seconds, hence not above.
    from torch._dynamo import config as compiler_config
    from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit, Unsupported
    from torch.fx.experimental import _config as sizes_config

    # Not with torch 2.6, where the backward pass has no setting either.
    if not hasattr(compiler_config, "recompile_limit"):
        raise UserError(
            f"{what}: got torch {torch.__version__}, whose compiler lacks settings, expected 2.13 or newer; {instead}"
        )
    # In public there is `torch.compiler.set_stance`, which forbids every further variant or allows any number of them.
    limits = compiler_config.patch(recompile_limit=max_variants, fail_on_recompile_limit_hit=True)
    # By default two sizes that happen to be equal once would have to be equal always. No public setting changes that.
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
