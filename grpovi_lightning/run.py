"""One Lightning run from YAML: the parser, the trainer with this package's callbacks, the checks before it starts."""

import argparse
import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from grpovi_lightning.callbacks import CompletionSamples, EvaluateAtStart, ExportModel, RewardWatch, RunStatus
from grpovi_lightning.callbacks.status import STATUS_FILE
from grpovi_lightning.errors import UserError
from grpovi_lightning.parser_messages import one_line

_TRAINER_DEFAULTS = {
    "max_epochs": 1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # each step's rows are a function of (seed, step, rank) already
    "enable_model_summary": False,
}


class RunCLI(LightningCLI):
    """Parses `--config A.yaml --config B.yaml --key value ...` and builds trainer, module and data.

    Later files overlay earlier ones. `${study_dir}` in a value stands for the argument of that name.
    """

    def __init__(self, arguments: list[str]) -> None:
        """Parses and builds; nothing is loaded or trained yet.

        Raises:
            UserError: the configuration is wrong; the message is one line.
        """
        try:
            super().__init__(
                L.LightningModule,
                L.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                run=False,
                args=arguments,
                seed_everything_default=False,
                trainer_defaults=_TRAINER_DEFAULTS,
                save_config_callback=SaveConfigCallback,
                save_config_kwargs={"overwrite": True},
                parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except argparse.ArgumentError as error:
            raise UserError(one_line(str(error))) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds this package's own arguments."""
        parser.add_argument("--study_dir", type=str, default="runs", help="What ${study_dir} stands for in the YAML.")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint to continue from.")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {"checkpoint.save_last": True, "checkpoint.save_top_k": -1, "checkpoint.filename": "{step}"}
        )
        parser.add_class_arguments(CompletionSamples, "samples")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, then checks what the parser cannot."""
        self.config = parser.parse_args(args)
        seed = self.config.seed_everything
        if isinstance(seed, bool):
            raise UserError(
                f"no seed: got seed_everything {seed}, expected an integer; add `seed_everything: 1` to the YAML"
            )
        if self.config.trainer.default_root_dir is None:
            raise UserError(
                "no run folder: got trainer.default_root_dir null, expected where the run is written; "
                "add `default_root_dir: runs/my-run/seed_1` under `trainer`"
            )

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.trainer.default_root_dir)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds TensorBoard, the run's record, samples, warnings, checkpoints and the exported model."""
        config: Any = self.config_init
        # An empty name and version put the event files into the run folder itself: TensorBoard then shows
        # runs as `arms/grpo/seed_1`.
        if config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(str(self.folder), name="", version="", default_hp_metric=False)
        self.status = RunStatus(self.folder, self.config.seed_everything)
        callbacks = [
            *(config.trainer.callbacks or []),
            self.status,
            EvaluateAtStart(),
            config.samples,
            RewardWatch(),
            ExportModel(self.folder / "model"),
        ]
        config.checkpoint.dirpath = config.checkpoint.dirpath or str(self.folder / "checkpoints")
        if config.trainer.enable_checkpointing is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def check(self) -> None:
        """Checks what can be told before anything is loaded: checkpoints, data files, the run folder.

        Raises:
            UserError: something is missing or in the way.
        """
        status = self.folder / STATUS_FILE
        if status.exists() and self.config.ckpt_path is None:
            state = json.loads(status.read_text()).get("state")
            raise UserError(
                f"run folder {self.folder} holds a {state} run already; choose another trainer.default_root_dir, or "
                f"continue it with --ckpt_path {self.folder}/checkpoints/last.ckpt"
            )
        if self.config.ckpt_path is not None and not Path(self.config.ckpt_path).is_file():
            raise UserError(
                f"checkpoint {self.config.ckpt_path}: no such file; expected one of <run>/checkpoints/*.ckpt"
            )
        self.model.check_inputs()
        self.datamodule.setup("fit")

    def fit(self) -> None:
        """Trains, or continues from `ckpt_path`."""
        self.check()
        # weights_only: a checkpoint is data; loading it must not run code.
        self.trainer.fit(self.model, self.datamodule, ckpt_path=self.config.ckpt_path, weights_only=True)

    def validate(self) -> None:
        """Evaluates on the held-out table."""
        self.model.check_inputs()
        self.trainer.validate(self.model, self.datamodule, ckpt_path=self.config.ckpt_path, weights_only=True)
