"""Sample completions as text in TensorBoard."""

from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from grpovi_lightning.errors import UserError


class CompletionSamples(L.Callback):
    """Writes a table of prompts and completions: training ones with reward, adjusted reward and advantage."""

    def __init__(self, every_n_steps: int = 25, n_prompts: int = 2, n_held_out: int = 8) -> None:
        """Chooses how much is written.

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
        """Writes the first groups of the step."""
        if batch_idx % self.every_n_steps or not isinstance(outputs, dict) or "advantages" not in outputs:
            return
        group_size = outputs["rewards"].shape[1]
        rows = []
        for p, prompt in enumerate(outputs["prompts"][: self.n_prompts]):
            for g in range(group_size):
                numbers = [f"{outputs[name][p, g]:.3f}" for name in ("rewards", "adjusted", "advantages")]
                rows.append([prompt, outputs["completions"][p * group_size + g], *numbers])
        header = ["prompt", "completion", "reward", "adjusted reward", "advantage"]
        self._write(trainer, "completions", markdown_table(header, rows), batch_idx)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Writes the first completions of the evaluation."""
        if batch_idx or not isinstance(outputs, dict) or "completions" not in outputs or trainer.sanity_checking:
            return
        columns = zip(outputs["prompts"], outputs["completions"], outputs["rewards"][:, 0].tolist(), strict=True)
        rows = [[prompt, text, f"{reward:.3f}"] for prompt, text, reward in columns][: self.n_held_out]
        table = markdown_table(["prompt", "completion", "reward"], rows)
        step = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self._write(trainer, "eval/completions", table, step)

    @staticmethod
    def _write(trainer: L.Trainer, tag: str, text: str, step: int) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_text(tag, text, step)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose cells show their text literally, whatever a model wrote into them."""
    lines = [header, ["---"] * len(header), *[[_literal(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _literal(text: str) -> str:
    """Everything but letters, digits, spaces and full stops becomes an HTML entity: no markup, no new row."""
    return "".join(c if c.isalnum() or c in " .,-" else f"&#{ord(c)};" for c in text)
