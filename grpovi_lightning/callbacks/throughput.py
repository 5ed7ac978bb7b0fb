"""What a training step gets out of the machine: tokens a second, where its time goes, memory, FLOP utilisation."""

import re
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.distributed import reduce_scalars
from grpovi_lightning.modules.logging import log_scalars
from grpovi_lightning.modules.outcome import PolicyWork, StepOutcome, cost_of, outcome_of
from grpovi_lightning.structures import Rollout
from grpovi_lightning.trainer_state import batches_begun

ON_THE_BAR = "tokens/s"
"""Short name of `COMPLETION_TOKENS_PER_SECOND` on the progress bar."""


class Throughput(L.Callback):
    """Logs `throughput/*` after each training step that says what it cost; `tokens/s` stands on the progress bar, too.

    The first step after continuing from a checkpoint that does not say how many tokens there were has no tokens per
    second.
    """

    def __init__(self) -> None:
        self._n_tokens: float | None = None
        self._peak = 0.0
        self._available: dict[torch.dtype, float | None] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget the tokens of an earlier run; those of a checkpoint are loaded later."""
        self._n_tokens = None

    def state_dict(self) -> dict[str, Any]:
        """Return the tokens so far: the first step of a continued run counts from there."""
        return {"n_tokens": self._n_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._n_tokens = state_dict["n_tokens"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from 0 in a run that starts anew."""
        if trainer.global_step == 0:
            self._n_tokens = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step, on the same x-axis as its other scalars."""
        outcome, cost = outcome_of(outputs), cost_of(outputs)
        if outcome is None or cost is None:
            return
        step_time = cost.seconds[keys.STEP_TIME]
        metrics = shares(cost.seconds)
        if self._n_tokens is not None:
            rate = (cost.n_tokens - self._n_tokens) / step_time
            metrics[keys.COMPLETION_TOKENS_PER_SECOND] = rate
            pl_module.log(ON_THE_BAR, rate, prog_bar=True, logger=False, batch_size=1)
        self._n_tokens = float(cost.n_tokens)
        device, dtype = trainer.strategy.root_device, cost.work.dtype
        if dtype not in self._available:
            self._available[dtype] = available_flops(device, dtype, pl_module.print)
        available = self._available[dtype]
        self._peak = max(self._peak, peak_memory(device))  # Linux counts by and by: its peak can fall by a few pages
        # Every rank takes part, whatever is known of its device.
        flops = 0.0 if available is None else step_flops(outcome, cost.work) / available
        of_ranks = reduce_scalars({keys.PEAK_MEMORY_GB: self._peak, keys.MFU: flops})
        metrics[keys.PEAK_MEMORY_GB] = of_ranks[keys.PEAK_MEMORY_GB] / 1e9
        if available is not None:
            metrics[keys.MFU] = of_ranks[keys.MFU] / step_time
        log_scalars(pl_module, metrics, batches_begun(trainer) - 1)


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each phase in the seconds of a step, and that of the rest; they sum to 1."""
    total = seconds[keys.STEP_TIME]
    found = {keys.step_share(phase): seconds[phase] / total for phase in keys.STEP_PHASES}
    return found | {keys.STEP_SHARE_REST: 1.0 - sum(found.values())}


def peak_memory(device: torch.device) -> float:
    """Return the most memory taken so far, bytes.

    On a GPU that of the tensors that this process had there; the allocator's reserve and CUDA's own do not count. Else
    the resident set of the process, whatever it held.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if found is not None:
        return 1024.0 * int(found[1])
    # On Linux this would be the peak of the process that started this one, where that was larger.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def available_flops(device: torch.device, dtype: torch.dtype, say: Callable[[str], None]) -> float | None:
    """Return the FLOPs a second that a GPU could do in a dtype, from Lightning's table.

    None where the table lacks the GPU, which `say` is told, and for other devices.
    """
    if device.type != "cuda":
        return None
    found = get_available_flops(device, dtype)
    if found is None:
        name = torch.cuda.get_device_name(device)
        say(f"{keys.MFU} is not logged: Lightning does not know how many FLOPs a second {name} can do in {dtype}")
    return found


def step_flops(outcome: StepOutcome, work: PolicyWork) -> float:
    """Return the FLOPs that the policy's matrices need for one training step on this rank.

    A matrix with W entries takes 2 W FLOPs a token forward, and twice that backward. Every token that is read goes
    through the body: a prompt's once for its whole group, those of a completion but for its last. The head makes each
    prediction: in sampling the first of a group once, since all members have it in common. Sampling is one such pass;
    the reference policy's log-probabilities are another; so are those before the updates, where they take a pass of
    their own; and each iteration over the rollout is one forward and one backward. Where the policy cannot share
    prompts, those passes run them once for each completion.

    Left out: attention scores (2 * 2 * width of attention * tokens seen, a layer and token), reward models, groups
    that resampling threw away, and all that is not needed, such as padding and recomputation under gradient
    checkpointing. All weights are taken to be trained, and of a mixture of experts all experts to be used.

    Args:
        outcome: of the step; the lengths of what was sampled and of what was trained on are read, and whether a
            reference policy saw it.
        work: how often the policy went over the rollout.
    """
    prompts: Tensor = outcome.rollout.prompt_mask.sum(dim=1).double()

    def forward(tokens_read: Tensor, predictions: Tensor) -> Tensor:
        return 2.0 * (work.body_weights * tokens_read + work.head_weights * predictions)

    def pass_over(rollout: Rollout) -> Tensor:
        group = rollout.grouped(rollout.lengths)
        copies = 1 if work.runs_prompts_once else group.shape[1]
        return forward(copies * prompts + (group - 1).sum(dim=1), group.sum(dim=1))

    pool = outcome.pool.rollout
    read = pool.grouped(pool.lengths - 1).sum(dim=1)
    sampling = forward(prompts + read, 1 + read).sum()
    reference = int(pool.ref_logprobs is not None) * pass_over(pool).sum()
    trained = pass_over(outcome.rollout)
    updates = 3 * work.num_iterations * trained[work.trained].sum()
    return float(sampling + reference + int(work.old_pass) * trained.sum() + updates)
