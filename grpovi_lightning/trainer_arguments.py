"""What `trainer` may be told: arguments of Lightning's `Trainer` that would not do here what they say are refused."""

import inspect
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from grpovi_lightning.errors import UserError, at_least_one
from grpovi_lightning.strategies import FSDP2, FSDP2Strategy

RUN_DEFAULTS = {
    "max_epochs": -1,  # one epoch is the whole run; `max_steps` says how long it is
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # each step's rows are a function of (seed, step, rank) already
    "enable_model_summary": False,
}
"""What a run has instead of Lightning's defaults."""

_LENGTH = "a run is one epoch, as long as `max_steps` says; set that"
REFUSED = {
    "fast_dev_run": "it leaves no run behind; set `max_steps: 2` and another `default_root_dir`",
    "max_epochs": _LENGTH,
    "min_epochs": _LENGTH,
    "min_steps": _LENGTH,
    "limit_train_batches": "it would train on the same rows again and again; set `max_steps` to the number of updates",
    "limit_predict_batches": "nothing here predicts; leave it out",
    "overfit_batches": "it would train on the same rows again and again; give the data a small `train` file",
    "check_val_every_n_epoch": "a run is one epoch; set `val_check_interval` to a number of steps",
    "num_sanity_val_steps": "each run evaluates its initial policy; leave it out",
    "use_distributed_sampler": "each process has its own rows already; leave it out",
    "barebones": "it leaves no run behind; leave it out",
    "reload_dataloaders_every_n_epochs": "a run is one epoch; leave it out",
    "model_registry": "checkpoints are not uploaded; leave it out",
}
"""Arguments that have to keep their default, and why."""

_MEANS_DEFAULT = {"max_epochs": None, "limit_train_batches": 1.0, "overfit_batches": 0, "check_val_every_n_epoch": None}
"""Other words for a default."""

STRATEGIES = {
    SingleDeviceStrategy: ("auto",),
    DDPStrategy: ("ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"),
    FSDP2Strategy: (FSDP2,),
}
"""The strategies whose training is known to be right, and the names under which Lightning makes them."""


def defaults() -> dict[str, Any]:
    """Return what each argument of the trainer is in a run that does not name it."""
    parameters = list(inspect.signature(L.Trainer.__init__).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters} | RUN_DEFAULTS


def check_arguments(given: Mapping[str, Any]) -> None:
    """Check the arguments of a trainer before it is built.

    Args:
        given: all of them, by name; objects as what the YAML says of them.

    Raises:
        UserError: one of them would not do what it says, or is out of range.
    """
    default = defaults()
    for name, why in REFUSED.items():
        means_default = (default[name], _MEANS_DEFAULT.get(name, default[name]))
        if repr(given[name]) not in map(repr, means_default):  # 1 batch is not 1.0, all batches
            raise UserError(f"trainer.{name}: got {given[name]!r}, expected {default[name]!r}: {why}")
    at_least_one("trainer.", **{name: given[name] for name in ("max_steps", "num_nodes", "accumulate_grad_batches")})
    interval = given["val_check_interval"]
    if interval is not None and not (isinstance(interval, int | float) and interval > 0):
        raise UserError(
            f"trainer.val_check_interval: got {interval!r}, expected a number of steps above 0, or a part of the run "
            "such as 0.25; `limit_val_batches: 0` switches evaluations off"
        )
    for name in ("gradient_clip_val", "log_every_n_steps"):
        if given[name] is not None and not 0 <= given[name] < float("inf"):
            raise UserError(f"trainer.{name}: got {given[name]}, expected a finite number of at least 0")
    strategy = given["strategy"]
    name = strategy if isinstance(strategy, str) else strategy["class_path"].rpartition(".")[2]
    if name not in _strategy_names():
        raise _refused_strategy(name)
    if name == FSDP2Strategy.__name__:
        _check_sizes({} if isinstance(strategy, str) else dict(strategy.get("init_args") or {}), given)


def check_trainer(trainer: L.Trainer) -> None:
    """Check a trainer that was built, whoever built it, before anything is loaded.

    Raises:
        UserError: it would train on the same rows again, or its processes would not train together as one does.
    """
    limit, strategy = trainer.limit_train_batches, trainer.strategy
    if repr(limit) != "1.0":
        raise UserError(f"trainer.limit_train_batches: got {limit}, expected None: {REFUSED['limit_train_batches']}")
    # Processes that are copies of this one, as of `ddp_spawn`, would not hand back what they trained.
    copies = isinstance(strategy.launcher, _MultiProcessingLauncher)
    if type(strategy) not in STRATEGIES or copies:
        raise _refused_strategy(type(strategy).__name__ + " whose processes are copies of this one" * copies)


def check_interval(interval: float | None, n_batches: int) -> None:
    """Raise `UserError` for an evaluation every so many of a run's batches that would never come."""
    if isinstance(interval, int) and interval > n_batches:
        raise UserError(
            f"trainer.val_check_interval: got {interval}, expected at most {n_batches}, the steps of the run; choose "
            "fewer, or leave it out to evaluate at the end"
        )


def own_strategy(strategy: Any) -> None:
    """Have a parsed `ModelParallelStrategy` be made as this package's own, which is one and takes the same arguments.

    By itself Lightning's would train the processes apart: it has those of one node share a batch, not the data.
    """
    if not isinstance(strategy, str) and strategy["class_path"].rpartition(".")[2] == ModelParallelStrategy.__name__:
        strategy["class_path"] = f"{FSDP2Strategy.__module__}.{FSDP2Strategy.__name__}"


def _check_sizes(sizes: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise `UserError` for a way of sharing the work that is not offered."""
    if (tensors := sizes.get("tensor_parallel_size", "auto")) not in ("auto", 1):
        raise UserError(
            f"trainer.strategy.tensor_parallel_size: got {tensors}, expected 1: weights are sharded, and each process "
            "computes with whole ones; leave it out"
        )
    data, devices = sizes.get("data_parallel_size", "auto"), given["devices"]
    count = devices * given["num_nodes"] if isinstance(devices, int) and devices > 0 else None
    if data != "auto" and count is not None and data != count:
        raise UserError(
            f"trainer.strategy.data_parallel_size: got {data} for {count} processes, expected {count}: all of them "
            "share the batch; leave it out"
        )


def _strategy_names() -> list[str]:
    return [name for made_by in STRATEGIES.values() for name in made_by] + [each.__name__ for each in STRATEGIES]


def _refused_strategy(name: str) -> UserError:
    return UserError(
        f"trainer.strategy: got {name}, expected one of {', '.join(_strategy_names())}; with others the processes may "
        "train apart: set `strategy: ddp` or `fsdp2`, or `devices: 1` and no strategy"
    )
