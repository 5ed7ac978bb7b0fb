"""Which checkpoint of a run belongs to a step."""

import re
from pathlib import Path

from grpovi_lightning.run_record.layout import CHECKPOINTS_FOLDER

_NAMES = re.compile(r"(?:.*[^0-9a-z])?step=(\d+)(?:-v\d+)?\.ckpt|checkpoint-(\d+)")
"""Lightning's files, and the folders of transformers' trainer."""


def kept_checkpoint(folder: Path, step: int, updates: int = 1) -> Path | None:
    """Return the checkpoint that a run keeps of a step; None where it keeps none of it.

    Args:
        folder: of the run. The trainer of transformers logs two folders below its checkpoints, so these are looked
            through as well.
        step: as the run's scalars count.
        updates: optimiser steps in one such step; checkpoints are named after those.
    """
    places = [folder / CHECKPOINTS_FOLDER, folder, *folder.parents[:2]]
    for path in (path for place in places if place.is_dir() for path in sorted(place.iterdir())):
        match = _NAMES.fullmatch(path.name)
        if match and int(match[1] or match[2]) == step * updates:
            return path
    return None
