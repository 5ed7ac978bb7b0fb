"""TensorBoard's tabs beside the scalars: what tells runs apart (HParams), and scalars in groups (Custom Scalars)."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import custom_scalars, hparams

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.modules import GRPOModule
from grpovi_lightning.run_record.layout import folder_arm
from grpovi_lightning.run_record.sweeps import values_of

Setting = bool | int | float | str


def _both(*names: str) -> list[str]:
    """Return patterns of training scalars and of what is measured of them on any held-out set."""
    return [f"^({keys.EVAL_PREFIX}(.+/)?)?{name}$" for name in names]


CHARTS = {
    "Rewards": {
        "held out": ["Multiline", [f"^{keys.EVAL_PREFIX}(.+/)?({keys.REWARD}|{keys.rewards_mean('[^/]+')})$"]],
        "training": ["Multiline", [f"^({keys.REWARD}|{keys.rewards_mean('[^/]+')})$"]],
        "spread within groups": ["Multiline", _both(keys.REWARD_STD)],
        "groups without spread": ["Multiline", _both(keys.FRAC_REWARD_ZERO_STD)],
    },
    "Policy": {
        "KL": ["Multiline", _both(keys.KL)],
        "entropy": ["Multiline", _both(keys.ENTROPY)],
        "gradient norm": ["Multiline", _both(keys.GRAD_NORM)],
        "clipped": ["Multiline", [r"^clip_ratio/.*mean$"]],
    },
    "Adjustment": {
        "variance": ["Multiline", [f"^({keys.ADJUSTMENT_VARIANCE_BEFORE}|{keys.ADJUSTMENT_VARIANCE_AFTER})$"]],
        "groups changed": ["Multiline", [f"^{keys.ADJUSTMENT_FRAC_CHANGED}$"]],
        "signs flipped": ["Multiline", [f"^{keys.ADJUSTMENT_SIGN_FLIPS}$"]],
        "effective weights": ["Multiline", [f"^{keys.ADJUSTMENT_EFFECTIVE_WEIGHTS}$"]],
    },
    "Completions": {
        "mean length": ["Multiline", _both(keys.COMPLETIONS_MEAN_LENGTH)],
        "cut off": ["Multiline", _both(keys.COMPLETIONS_CLIPPED_RATIO)],
    },
    "Cost": {
        "seconds of a step": ["Multiline", [f"^{keys.STEP_TIME}(/.+)?$"]],
        "tokens a second": ["Multiline", [f"^{keys.COMPLETION_TOKENS_PER_SECOND}$"]],
        "memory": ["Multiline", [f"^{keys.PEAK_MEMORY_GB}$"]],
    },
}
"""Group -> chart -> its kind and the patterns of its scalars; a chart has one line a selected run and scalar."""


def told_apart_by(folder: Path, seed: int | None, module: L.LightningModule, rate: float | None) -> dict[str, Setting]:
    """Return the settings that tell a run from the others of its study; those that it does not have are left out.

    Args:
        folder: The run's. Where it is called `seed_<k>`, the folder above names the arm, and the values of its point.
        seed: The run's.
        module: What is trained.
        rate: The learning rate at the beginning.
    """
    arm = folder_arm(folder.resolve())
    found: dict[str, Any] = {"arm": arm, "seed": seed}
    if isinstance(module, GRPOModule):
        loss = module.updater.loss
        parts = {"adjustment": module.adjustment, "advantage": module.advantage, "loss": loss}
        found |= {name: type(part).__name__ for name, part in parts.items()}
        found |= {"beta": loss.beta, "group_size": module.group_size}
    found |= {"lr": rate} | {name: _number_or_text(text) for name, text in values_of(arm).items()}
    return {name: value for name, value in found.items() if value is not None}


def _number_or_text(text: str) -> Setting:
    try:
        return float(text)
    except ValueError:
        return text


class TensorBoardTabs(L.Callback):
    """Writes a session of the HParams tab and a layout of the Custom Scalars tab; hands the settings to other loggers.

    The tab shows every setting and every scalar that any run of its folder has, the last value of each: no list of them
    is written, because TensorBoard would take the one of the first run for all.
    """

    def __init__(self, folder: str | Path, seed: int | None) -> None:
        self.folder, self.seed = Path(folder), seed

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the settings and the layout; a resumed run writes the same again."""
        group = trainer.optimizers[0].param_groups[0] if trainer.optimizers else {}
        settings = told_apart_by(self.folder, self.seed, pl_module, group.get("initial_lr", group.get("lr")))
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, TensorBoardLogger):
                _, session, _ = hparams(settings, {})
                logger.experiment.file_writer.add_summary(session)
                logger.experiment.file_writer.add_summary(custom_scalars(CHARTS))
            else:
                logger.log_hyperparams(settings)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the run came to its end; without this note the tab says that its state is not known."""
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, TensorBoardLogger):
                *_, end = hparams({}, {})
                logger.experiment.file_writer.add_summary(end)
