"""One Lightning run from YAML: parsed, checked, and given this package's callbacks."""

import argparse
import zipfile
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from grpovi_lightning.callbacks import (
    CompletionSamples,
    EvaluateAtStart,
    ExportModel,
    RewardWatch,
    RunCheckpoint,
    RunStatus,
    Throughput,
)
from grpovi_lightning.errors import UserError
from grpovi_lightning.modules import GRPOModule
from grpovi_lightning.parser_messages import one_line
from grpovi_lightning.run_record.layout import CHECKPOINTS_FOLDER, MODEL_FOLDER, STATUS_FILE, RecordError
from grpovi_lightning.run_record.status import read_status
from grpovi_lightning.trainer_state import place_logger, read_loggers_without_a_place, read_whole_numbers_first

_TRAINER_DEFAULTS = {
    "max_epochs": -1,  # one epoch is the whole run; `max_steps` says how long it is
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # each step's rows are a function of (seed, step, rank) already
    "enable_model_summary": False,
}


class RunCLI(LightningCLI):
    """The trainer, module and data that `--config A.yaml --config B.yaml --key value ...` describe.

    Later files overlay earlier ones. `${study_dir}` in a value stands for the argument of that name.
    """

    def __init__(self, arguments: list[str], training: bool = True) -> None:
        """Parse and build; nothing is loaded or trained yet.

        Args:
            arguments: what follows the command.
            training: whether this run writes its folder; an evaluation only prints.

        Raises:
            UserError: the configuration is wrong; the message is one line.
        """
        self.training = training
        read_whole_numbers_first()
        read_loggers_without_a_place()
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
                save_config_callback=SaveConfigCallback if training else None,
                save_config_kwargs={"overwrite": True},
                parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except argparse.ArgumentError as error:
            raise UserError(one_line(str(error))) from error
        except ValueError as error:
            # The parser wraps what a constructor raises into "does not validate against any of the types".
            raise (_user_error(error) or error) from None
        except MisconfigurationException as error:
            raise UserError(" ".join(str(error).split())) from error
        if isinstance(self.model, GRPOModule):
            self.model.check_settings(self.trainer, self.datamodule)
            interval, updates = self.config.checkpoint.every_n_train_steps, self.model.updates_per_rollout
            if interval and interval % updates:
                raise UserError(
                    f"checkpoint.every_n_train_steps counts updates: got {interval} with {updates} updates on "
                    "each rollout, after which alone a run can be saved; choose a multiple"
                )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--study_dir", type=str, default="runs", help="What ${study_dir} stands for in the YAML.")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint to continue from.")
        parser.add_class_arguments(RunCheckpoint, "checkpoint")
        # The newest checkpoint is what resuming needs; `save_top_k: -1` keeps all. A step that is made again after a
        # resume replaces its superseded checkpoint.
        parser.set_defaults(
            {
                "checkpoint.save_last": "link",
                "checkpoint.save_top_k": 1,
                "checkpoint.filename": "{step}",
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.add_class_arguments(CompletionSamples, "samples")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)
        seed = self.config.seed_everything
        if isinstance(seed, bool):
            raise UserError(
                f"no seed: got seed_everything {seed}, expected an integer; add `seed_everything: 1` to the YAML"
            )
        if self.config.trainer.max_steps < 1:
            raise UserError(
                f"no length: got trainer.max_steps {self.config.trainer.max_steps}, expected at least 1; "
                "add `max_steps: 100` under `trainer`"
            )
        if self.training and self.config.trainer.limit_train_batches == 0:
            raise UserError("no length: got trainer.limit_train_batches 0, which trains nothing; leave it out")
        if self.config.trainer.default_root_dir is None:
            raise UserError(
                "no run folder: got trainer.default_root_dir null, expected where the run is written; "
                "add `default_root_dir: runs/my-run/seed_1` under `trainer`"
            )

    def before_instantiate_classes(self) -> None:
        self.config.checkpoint.dirpath = self.config.checkpoint.dirpath or str(self.folder / CHECKPOINTS_FOLDER)
        loggers = self.config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, Namespace):
                place_logger(logger, self.folder)

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(self.config.trainer.default_root_dir)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer with this package's logger and callbacks, or without any if nothing is written."""
        config: Any = self.config_init
        if not self.training:
            return super().instantiate_trainer(logger=False, enable_checkpointing=False, **kwargs)
        if config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(str(self.folder), name="", version="", default_hp_metric=False)
        self.status = RunStatus(self.folder, self.config.seed_everything)
        callbacks = [
            *(config.trainer.callbacks or []),
            ExportModel(self.folder / MODEL_FOLDER),  # before the status, which says that all is done
            self.status,
            EvaluateAtStart(),
            config.samples,
            RewardWatch(),
            Throughput(),
        ]
        if config.trainer.enable_checkpointing is not False:
            callbacks.append(config.checkpoint)
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def check(self, command: Literal["fit", "validate", "test"]) -> None:
        """Check what can be told before anything is loaded: checkpoints, data files, the run folder.

        Raises:
            UserError: something is missing or in the way.
        """
        if command != "fit":
            table, limit = {"validate": ("validation", "limit_val_batches"), "test": ("test", "limit_test_batches")}[
                command
            ]
            if getattr(self.datamodule, "paths", {}).get(table, "") is None:
                raise UserError(
                    f"no {table} table: got {table} null, expected a file; add `{table}: FILE` under `data.init_args`"
                )
            if self.config.trainer[limit] == 0:
                raise UserError(f"nothing to {command}: got trainer.{limit} 0; leave it out")
        ckpt_path = self.config.ckpt_path
        try:
            status = read_status(self.folder) if self.training else None
        except RecordError as error:
            raise UserError(str(error)) from error
        if self.training and (self.folder / STATUS_FILE).exists() and ckpt_path is None:
            raise UserError(
                f"run folder {self.folder} holds a {status.state if status else 'damaged'} run already; choose another "
                f"trainer.default_root_dir, or continue it with --ckpt_path {self.folder}/checkpoints/last.ckpt"
            )
        if ckpt_path is not None:
            self._check_checkpoint(Path(ckpt_path), command)
        if self.trainer.strategy.root_device.type == "mps":
            raise UserError("device mps has no float64, which the adjustment is solved in; set `accelerator: cpu`")
        self.model.check_inputs()
        self.datamodule.check(self.trainer.world_size)

    def _check_checkpoint(self, path: Path, command: str) -> None:
        if not path.exists():
            raise UserError(f"checkpoint {path}: no such file; expected one of <run>/checkpoints/*.ckpt")
        if path.is_dir():  # sharded
            return
        if not zipfile.is_zipfile(path):
            raise UserError(f"checkpoint {path}: cut short, or no checkpoint; expected one of <run>/checkpoints/*.ckpt")
        max_steps = self.config.trainer.max_steps
        if command == "fit" and (step := torch.load(path, weights_only=True, mmap=True)["global_step"]) > max_steps:
            raise UserError(f"checkpoint {path}: it is of step {step}, beyond trainer.max_steps {max_steps}")

    def execute(self, command: Literal["fit", "validate", "test"]) -> None:
        """Train, or evaluate and print the means; from `ckpt_path` where it is given."""
        self.check(command)
        run = {"fit": self.trainer.fit, "validate": self.trainer.validate, "test": self.trainer.test}[command]
        # weights_only: a checkpoint is data; loading it must not run code.
        run(self.model, datamodule=self.datamodule, ckpt_path=self.config.ckpt_path, weights_only=True)
        if command == "fit":
            return
        if not self.trainer.callback_metrics:
            raise UserError(f"{command}: {type(self.model).__name__} logged no metric, so there is nothing to show")
        if self.trainer.is_global_zero:
            for name, value in sorted(self.trainer.callback_metrics.items()):
                print(f"{name:40s} {float(value):.6g}")


def _user_error(error: BaseException) -> UserError | None:
    """Return the `UserError` from which `error` arose, if there is one."""
    arose_from: BaseException | None = error
    while arose_from is not None and not isinstance(arose_from, UserError):
        arose_from = arose_from.__cause__ or arose_from.__context__
    return arose_from
