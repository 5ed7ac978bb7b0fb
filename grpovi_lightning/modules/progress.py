"""How far a run is, for reward functions that ask."""

from collections.abc import Sized

import lightning as L

from grpovi_lightning.structures import RunProgress
from grpovi_lightning.trainer_state import data_of


def run_progress(module: L.LightningModule, step: int, updates_per_step: int) -> RunProgress | None:
    """Return how far the run is before its step `step`; None for a module without a trainer."""
    if module._trainer is None:
        return None
    data = data_of(module)
    table, rows = getattr(data, "tables", {}).get("train"), getattr(data, "batch_size", 0)
    # As `step_indices` deals them out: what is left over at the end of a pass is skipped.
    per_pass = len(table) // rows if isinstance(table, Sized) and rows else 0
    return RunProgress(
        step=step,
        global_step=step * updates_per_step,
        max_steps=module.trainer.max_steps,
        epoch=step / per_pass if per_pass else 0.0,
    )
