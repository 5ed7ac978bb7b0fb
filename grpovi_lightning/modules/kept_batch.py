"""The batch of a step that failed, which is kept in the run folder for a person to look at."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L

from grpovi_lightning.errors import TrainingError, without_secrets
from grpovi_lightning.randomness import HELD_OUT_STEP
from grpovi_lightning.structures import Rollout


def batch_file(trainer: L.Trainer, reason: str, step: int, ending: str) -> Path:
    """Return where this rank keeps its part of the batch, in a folder that is there."""
    folder = Path(trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    when = "held_out" if step == HELD_OUT_STEP else f"step_{step}"
    return folder / f"{reason}_{when}_rank_{trainer.global_rank}{ending}"


@contextmanager
def kept_if_scoring_fails(module: L.LightningModule, rollout: Rollout, by: str = "reward") -> Iterator[None]:
    """Write the rollout to a JSON file where scoring, adjusting or comparing its completions fails in training.

    `by` says what failed, in the file's name and in the message.

    Raises:
        TrainingError: the failure, with the name of the file.
    """
    try:
        yield
    except TrainingError as error:
        if module.trainer.state.fn != "fit":  # an evaluation only prints
            raise
        prompts, size = rollout.prompts, rollout.group_size
        rows = [
            {
                "row": number,
                "prompt": prompts.texts[p],
                "columns": {name: values[p] for name, values in prompts.columns.items()},
                "completions": list(rollout.texts[p * size : (p + 1) * size]),
            }
            for p, number in enumerate(prompts.indices.tolist())
        ]
        content = {"step": rollout.step, "error": without_secrets(str(error)), "rows": rows}
        try:
            file = batch_file(module.trainer, f"failed_{by}", rollout.step, ".json")
            file.write_text(json.dumps(content, indent=1, default=repr))
            kept = f"its batch is in {file}"
        except (OSError, TypeError, ValueError) as failure:  # the error of the reward is the one to tell
            kept = f"its batch could not be written ({failure})"
        raise TrainingError(
            f"{error}; {kept}; mend the {by} and continue the run from its last checkpoint with --ckpt_path"
        ) from error
