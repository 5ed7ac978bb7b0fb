"""Passes over completions with `torch.compile`."""

import torch
from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.passes.forward import ForwardPasses
from grpovi_lightning.models.passes.torch_compiler import compiling, reproducible_inductor
from grpovi_lightning.structures import Rollout

_MAX_VARIANTS = 64


class CompiledPasses:
    """`ForwardPasses.group_states` and its backward pass as compiled code.

    Prompts and completions of all lengths run the same code: sizes are variables in it. A few sizes get code of their
    own, such as a single prompt, or over 4,096 tokens (`torch` sums those more carefully). Which code runs depends on
    the sizes alone and not on what was compiled before, so a resumed run computes the same bits.
    """

    def __init__(self) -> None:
        # Nothing is compiled here: the first pass does that.
        self._group_states = torch.compile(
            ForwardPasses.group_states, backend=reproducible_inductor, dynamic=True, fullgraph=True
        )

    def take(self, rollout: Rollout) -> bool:
        """Return whether these completions are worth code of their own."""
        # Held-out completions, one for each prompt, and those of one or two tokens are few, and would be compiled anew.
        return rollout.group_size > 1 and rollout.completion_ids.shape[1] > 2

    def states(self, passes: ForwardPasses, rollout: Rollout) -> Tensor:
        """Return the states that predict the completions, [B, T, D].

        Raises:
            UserError: the model cannot be compiled, or does not run prompts once for their groups.
        """
        name = type(passes.model).__name__
        if not passes.runs_prompts_once:
            raise UserError(
                f"compile_passes: got a {name} that cannot run a prompt once for its group (see the warning), or "
                "gradient_checkpointing; leave one of the two out"
            )
        grouped = rollout.grouped(rollout.completion_ids), rollout.grouped(rollout.completion_mask)
        inputs = [tensor.contiguous() for tensor in (rollout.prompt_ids, rollout.prompt_mask, *grouped)]
        with compiling(f"compile_passes: {name}", _MAX_VARIANTS, "leave it out"):
            return self._group_states(passes, *inputs)
