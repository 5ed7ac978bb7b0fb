"""A logger as those of Weights & Biases and MLflow are to a run: of another class, with a place of its own."""

import json
from pathlib import Path

from lightning.pytorch.loggers import Logger


class RecordingLogger(Logger):
    """Appends what it receives to `recorded.jsonl` of its place."""

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__()
        self._file = Path(save_dir) / "recorded.jsonl"

    @property
    def name(self) -> str:
        return "recording"

    @property
    def version(self) -> str:
        return "0"

    @property
    def save_dir(self) -> str:
        return str(self._file.parent)

    def _append(self, what, content, step=None):
        with self._file.open("a") as file:
            file.write(json.dumps({"what": what, "step": step, "content": content}) + "\n")

    def log_metrics(self, metrics, step=None):
        self._append("metrics", metrics, step)

    def log_hyperparams(self, params, *args, **kwargs):
        self._append("settings", dict(params))
