"""One Lightning run from YAML: parsed, checked, and given this package's callbacks."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from grpovi_lightning.callbacks import (
    CompletionFiles,
    CompletionSamples,
    Diagnoses,
    EvaluateAtStart,
    ExportModel,
    RankWatch,
    RewardWatch,
    RoundingWatch,
    RunCheckpoint,
    RunStatus,
    StopOnSigterm,
    TensorBoardTabs,
    Throughput,
    TimeLimit,
)
from grpovi_lightning.callbacks.stopping import SIGTERM_STATUS
from grpovi_lightning.continuation import (
    check_checkpoint,
    check_unused,
    clear_attempt,
    folder_to_itself,
)
from grpovi_lightning.data.base import TextDataModule
from grpovi_lightning.errors import TrainingError, UserError, failed_write
from grpovi_lightning.modules import GRPOModule
from grpovi_lightning.overlays import own_defaults
from grpovi_lightning.parser_messages import check_objects, mistakes_in_one_line
from grpovi_lightning.paths import check_output, expanded
from grpovi_lightning.run_record.checkpoints import last_checkpoint
from grpovi_lightning.run_record.layout import CHECKPOINTS_FOLDER, MODEL_FOLDER, RecordError
from grpovi_lightning.run_settings import check_run
from grpovi_lightning.strategies import read_folders
from grpovi_lightning.trainer_arguments import (
    RUN_DEFAULTS,
    check_arguments,
    check_interval,
    check_trainer,
    own_strategy,
)
from grpovi_lightning.trainer_state import (
    batches_of_run,
    place_logger,
    read_loggers_without_a_place,
    read_whole_numbers_first,
    stopped_early,
)
from grpovi_lightning.yaml_files import check_config_files


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
        find_user_code()
        check_config_files(arguments)
        try:
            with mistakes_in_one_line():
                super().__init__(
                    L.LightningModule,
                    L.LightningDataModule,
                    subclass_mode_model=True,
                    subclass_mode_data=True,
                    run=False,
                    args=arguments,
                    seed_everything_default=False,
                    trainer_defaults=RUN_DEFAULTS,
                    save_config_callback=SaveConfigCallback if training else None,
                    save_config_kwargs={"overwrite": True},
                    parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
                    auto_configure_optimizers=False,
                    load_from_checkpoint_support=False,
                )
        except MisconfigurationException as error:
            raise UserError(" ".join(str(error).split())) from error
        check_trainer(self.trainer)
        read_folders(self.trainer)
        self.model.check_settings(self.trainer, self.datamodule)
        if self.config.trainer.check_val_every_n_epoch is not None and self.trainer.limit_val_batches:
            check_interval(self.config.trainer.val_check_interval, batches_of_run(self.trainer, self.model))
        if isinstance(self.model, GRPOModule):
            interval, updates = self.config.checkpoint.every_n_train_steps, self.model.updates_per_rollout
            if interval and interval % updates:
                raise UserError(
                    f"checkpoint.every_n_train_steps counts updates: got {interval} with {updates} updates on "
                    "each rollout, after which alone a run can be saved; choose a multiple"
                )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--study_dir", type=str, default="runs", help="What ${study_dir} stands for in the YAML.")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint to continue from.")
        parser.add_argument("--restart", action="store_true", help="Begin a run anew that left no checkpoint.")
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
        parser.add_class_arguments(CompletionFiles, "completions")
        parser.add_class_arguments(RankWatch, "ranks")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with own_defaults():
            self.config = expanded(parser.parse_args(args))
        check_objects(self.config)
        check_run(self.config)
        own_strategy(self.config.trainer.strategy)
        check_arguments(vars(self.config.trainer))

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
            return self._build_trainer(logger=False, enable_checkpointing=False)
        if config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(str(self.folder), name="", version="", default_hp_metric=False)
        self.status = RunStatus(self.folder, self.config.seed_everything)
        config.ranks.on_lost = lambda reason: self.status.ended_by(self.trainer, reason)
        callbacks = [
            config.ranks,  # before the status, which says who is gone
            StopOnSigterm(),
            *(config.trainer.callbacks or []),
            ExportModel(self.folder / MODEL_FOLDER),  # before the status, which says that all is done
            config.completions,
            self.status,
            TensorBoardTabs(self.folder, self.config.seed_everything),
            EvaluateAtStart(),
            config.samples,
            RewardWatch(),
            Diagnoses(),
            RoundingWatch(),
            Throughput(),
        ]
        if config.trainer.enable_checkpointing is not False:
            callbacks.append(config.checkpoint)
        return self._build_trainer(callbacks=callbacks, **kwargs)

    def _build_trainer(self, **kwargs: Any) -> L.Trainer:
        max_time = self.config.trainer.max_time
        try:
            if self.training and max_time is not None:
                kwargs |= {"max_time": None, "callbacks": [TimeLimit(max_time), *kwargs["callbacks"]]}
            return super().instantiate_trainer(**kwargs)
        except Exception as error:  # whatever its type, it is about an argument of the trainer
            hardware = ("accelerator", "devices", "strategy", "precision")
            given = ", ".join(f"{name} {self.config.trainer[name]}" for name in hardware)
            raise UserError(f"trainer: {' '.join(str(error).split())} (got {given})") from error

    def check(self, command: Literal["fit", "validate", "test"]) -> None:
        """Check what can be told before anything is loaded: checkpoints, data files, the folders written to.

        Raises:
            UserError: something is missing or in the way.
        """
        if command == "fit":
            self._check_outputs()
        else:
            self._check_table(command)
        if self.trainer.strategy.root_device.type == "mps":
            raise UserError("device mps has no float64, which the adjustment is solved in; set `accelerator: cpu`")
        self.model.check_inputs()
        self.datamodule.check(self.trainer.world_size)
        if isinstance(self.model, GRPOModule):
            self.model.check_columns(self.datamodule)

    def _check_outputs(self) -> None:
        check_output(self.folder / MODEL_FOLDER, "trainer.default_root_dir")
        check_output(self.config.checkpoint.dirpath, "checkpoint.dirpath")
        for logger in self.trainer.loggers:
            if logger.save_dir:
                check_output(logger.save_dir, "trainer.logger")
        if self.config.ckpt_path is None:
            check_unused(self.folder, Path(self.config.checkpoint.dirpath), self.config.restart)

    def _check_table(self, command: Literal["validate", "test"]) -> None:
        table, limit = {"validate": ("validation", "limit_val_batches"), "test": ("test", "limit_test_batches")}[
            command
        ]
        if isinstance(self.datamodule, TextDataModule) and self.datamodule.lacks(table):
            raise UserError(
                f"no {table} table: got {table} null, expected a file; add `{table}: FILE` under `data.init_args`"
            )
        if self.config.trainer[limit] == 0:
            raise UserError(f"nothing to {command}: got trainer.{limit} 0; leave it out")

    def execute(self, command: Literal["fit", "validate", "test"]) -> None:
        """Train, or evaluate and print the means; from `ckpt_path` where it is given."""
        checkpoint = Path(self.config.ckpt_path) if self.config.ckpt_path else None
        self.check(command)
        if checkpoint:
            check_checkpoint(checkpoint, self.model, self.trainer.max_steps if self.training else None)
        try:
            keep = lambda: bool(checkpoint or self.trainer.global_step)  # noqa: E731
            alone = self.training and self.trainer.is_global_zero
            with folder_to_itself(self.folder, keep) if alone else nullcontext():
                self._execute(command, checkpoint)
        except RecordError as error:
            raise UserError(str(error)) from error
        if command != "fit" and not self.trainer.callback_metrics:
            raise UserError(f"{command}: {type(self.model).__name__} logged no metric, so there is nothing to show")
        if not self.trainer.is_global_zero:
            return
        if command != "fit":
            for name, value in sorted(self.trainer.callback_metrics.items()):
                print(f"{name:40s} {float(value):.6g}")
        elif stopped_early(self.trainer):
            self._tell_how_to_go_on()

    def _execute(self, command: Literal["fit", "validate", "test"], checkpoint: Path | None) -> None:
        if self.config.restart and self.trainer.is_global_zero:
            clear_attempt(self.folder)
            self.config.restart = False  # not for the next run that uses this run's config.yaml
        run = {"fit": self.trainer.fit, "validate": self.trainer.validate, "test": self.trainer.test}[command]
        try:
            # weights_only: a checkpoint is data; loading it must not run code.
            run(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)
        except SIGTERMException:
            if self.training and self.trainer.is_global_zero:
                self._tell_how_to_go_on()
            raise SystemExit(SIGTERM_STATUS) from None
        except MisconfigurationException as error:
            raise UserError(" ".join(str(error).split())) from error
        except Exception as error:
            if self.training and (lost := self.config_init.ranks.lost) is not None:  # type: ignore[union-attr]
                if not self.config_init.ranks.speaks:  # type: ignore[union-attr]
                    raise SystemExit(1) from None
                raise TrainingError(f"{lost}; mend the cause, then {self._how_to_go_on()}") from error
            if (reason := failed_write(error)) is None:
                raise
            raise TrainingError(f"cannot write: {reason}; make room, then {self._how_to_go_on()}") from error

    def _how_to_go_on(self) -> str:
        last = last_checkpoint(Path(self.config.checkpoint.dirpath))
        return f"continue it with --ckpt_path {last}" if last else "begin it anew with --restart: it left no checkpoint"

    def _tell_how_to_go_on(self) -> None:
        go_on = self._how_to_go_on()
        where = f"step {self.trainer.global_step} of {self.trainer.max_steps}"
        print(f"grpovi: the run was {self.status.content['error']}, at {where}; {go_on}", file=sys.stderr)


def find_user_code() -> None:
    """Let reward functions be found in the folder where the command runs; installed packages come first."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
