"""Sample completions as text in TensorBoard."""

from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.modules.evaluation import held_out_names
from grpovi_lightning.modules.outcome import outcome_of
from grpovi_lightning.selection import ScoredRollout
from grpovi_lightning.trainer_state import batches_begun


class CompletionSamples(L.Callback):
    """Writes a table of prompts and completions: training ones with reward, adjusted reward and advantage."""

    def __init__(self, every_n_steps: int = 25, n_prompts: int = 2, n_held_out: int = 8) -> None:
        """Choose how much is written.

        Args:
            every_n_steps: training samples are written at every n-th step; held-out ones at every evaluation.
            n_prompts: groups written of a training step.
            n_held_out: completions written of an evaluation.
        """
        if every_n_steps < 1:
            raise UserError(f"samples.every_n_steps: got {every_n_steps}, expected at least 1")
        self.every_n_steps, self.n_prompts, self.n_held_out = every_n_steps, n_prompts, n_held_out

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the first groups of the step."""
        outcome = outcome_of(outputs)
        if batch_idx % self.every_n_steps or outcome is None:
            return
        rollout = outcome.rollout
        values = (outcome.rewards, outcome.adjusted.rewards, outcome.advantages)
        rows = []
        for p, prompt in enumerate(rollout.prompts.texts[: self.n_prompts]):
            for g in range(rollout.group_size):
                numbers = [f"{value[p, g]:.3f}" for value in values]
                rows.append([prompt, rollout.texts[p * rollout.group_size + g], *numbers])
        header = ["prompt", "completion", "reward", "adjusted reward", "advantage"]
        self._write(trainer, "completions", markdown_table(header, rows), batch_idx)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the first completion of each of the first prompts of the held-out set."""
        if batch_idx or not isinstance(outputs, ScoredRollout) or trainer.sanity_checking:
            return
        rollout = outputs.rollout
        texts = rollout.texts[:: rollout.group_size]
        columns = zip(rollout.prompts.texts, texts, outputs.rewards[:, 0].tolist(), strict=True)
        rows = [[prompt, text, f"{reward:.3f}"] for prompt, text, reward in columns][: self.n_held_out]
        table = markdown_table(["prompt", "completion", "reward"], rows)
        tag = keys.held_out(keys.of_set(held_out_names(trainer)[dataloader_idx], "completions"))
        self._write(trainer, tag, table, batches_begun(trainer))

    @staticmethod
    def _write(trainer: L.Trainer, tag: str, text: str, step: int) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_text(tag, text, step)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table whose cells show their text literally, whatever a model wrote into them."""
    lines = [header, ["---"] * len(header), *[[_literal(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _literal(text: str) -> str:
    """Return the text with all but letters, digits and ` .,-` as HTML entities: no markup, no new row."""
    return "".join(c if c.isalnum() or c in " .,-" else f"&#{ord(c)};" for c in text)
