"""The command `grpovi replay`: from a run and the YAML of other methods to a table."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from grpovi_lightning.errors import UserError
from grpovi_lightning.kept_steps import kept_steps
from grpovi_lightning.models import LanguageModel, PretrainedCausalLM
from grpovi_lightning.modules import GRPOModule
from grpovi_lightning.one_line_parser import OneLineParser
from grpovi_lightning.paths import check_output
from grpovi_lightning.randomness import resolve_seed
from grpovi_lightning.replaying import GRPO, Method, compare, reproduced
from grpovi_lightning.run import RunCLI
from grpovi_lightning.run_record.layout import CONFIG_FILE, MODEL_FOLDER, replace_file

RUN = "this run"
_SAMPLED_BY = ("policy", "reward", "group_size", "sampling", "resampling", "seed")
"""Settings of the module that decide which completions and rewards there are."""
_METHOD = ("selection", "adjustment", "advantage", "loss")
"""Those that make a method; `updates.token_selection` is one more."""
_NEGLIGIBLE = 1e-5
"""Difference of advantages that another order of summation explains, in units of the largest."""
_WIDTH = 120


@dataclass(frozen=True)
class _Arm:
    name: str
    cli: RunCLI

    @property
    def module(self) -> GRPOModule:
        return self.cli.model


def run(arguments: list[str]) -> int:
    """Print what each method makes of a run's completions.

    Returns:
        the exit status: 1 where the run's own method gives other advantages than the run logged.

    Raises:
        UserError: the request is wrong.
    """
    given = _parser().parse_args(arguments)
    if given.output is not None:
        check_output(given.output.parent, "output")
        if given.output.exists():
            raise UserError(f"output {given.output}: exists already and is not overwritten; choose another name")
    arms = _arms(given.run, given.config)
    own, seed = arms[0].module, resolve_seed(arms[0].module.seed)
    steps = kept_steps(given.run, seed)
    methods = {GRPO: Method.grpo(own.updater.temperature)} | {arm.name: Method.of(arm.module) for arm in arms}
    policy = None if given.no_gradient else _policy(given.run)
    if policy is not None:
        arms[0].cli.datamodule.setup("fit")
    table, made = compare(methods, steps, seed, policy, arms[0].cli.datamodule)
    equal, count, largest = reproduced(steps, made[RUN])
    scale = max(float(step.advantages.nan_to_num(nan=0.0).abs().max()) for step in steps)
    print(f"replay: {given.run}: {len(steps)} steps, {sum(len(step.pool.rollout.texts) for step in steps)} completions")
    print(f"advantages of the run: {equal} of {count} are reproduced to the last bit", end="")
    print("" if equal == count else f"; the largest difference is {largest:.3g}")
    _show(table)
    if given.output is not None:
        replace_file(given.output, table.to_csv())
    return int(largest > _NEGLIGIBLE * scale)


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="grpovi replay",
        description="Takes the completions that a run kept and computes what GRPO, the run's own method and others "
        "make of them, without training: advantages, kept tokens, variance, and the cosine of the gradients at the "
        "run's exported policy. Run it in the folder in which the run was started.",
    )
    parser.add_argument("run", type=Path, help="folder of a run of `grpovi fit` with GRPO")
    parser.add_argument(
        "--config",
        action="append",
        nargs="+",
        default=[],
        metavar="ARM.yaml",
        help="another method: one or more YAML files, in this order, over plain GRPO with the completions of the run; "
        "repeat it for further methods",
    )
    parser.add_argument("--no_gradient", action="store_true", help="leave out the gradients, which take the policy")
    parser.add_argument("--output", type=Path, default=None, help="a new CSV file for the table")
    return parser


def _arms(folder: Path, overlays: Sequence[Sequence[str]]) -> list[_Arm]:
    """Return the run as it was, and what each overlay makes of it.

    Raises:
        UserError: there is no run, its reward learned, or a method would have sampled other completions.
    """
    config = folder / CONFIG_FILE
    if not config.is_file():
        raise UserError(f"{folder}: no {CONFIG_FILE} in it; expected the folder of a run of `grpovi fit`")
    own = _Arm(RUN, _built([config]))
    if not isinstance(own.module, GRPOModule):
        raise UserError(f"{folder}: a run of {type(own.module).__name__}, expected one of GRPOModule")
    if own.module.reward.learns:
        raise UserError(
            f"{folder}: its reward learned while it ran, and when its ranges began anew was not kept; replay a run "
            "with a reward that stays as it is"
        )
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / CONFIG_FILE
        _write_plain(config, plain)
        return [own, *_others(own, plain, overlays)]


def _others(own: _Arm, plain: Path, overlays: Sequence[Sequence[str]]) -> list[_Arm]:
    arms: list[_Arm] = []
    for files in overlays:
        name = "+".join(Path(file).stem for file in files)
        if name in (GRPO, RUN, *(arm.name for arm in arms)):
            name = "+".join(files)
        arm = _Arm(name, _built([plain, *map(Path, files)]))
        for setting in _SAMPLED_BY:
            before, after = (_setting(each.cli, setting) for each in (own, arm))
            if before != after:
                raise UserError(
                    f"{name}: sets model.{setting}, with which the run would have sampled other completions or scored "
                    "them otherwise; only what comes after the rewards can be replayed"
                )
        arms.append(arm)
    return arms


def _built(files: Iterable[Path]) -> RunCLI:
    return RunCLI([f"--config={file}" for file in files], training=False)


def _write_plain(config: Path, target: Path) -> None:
    """Write the settings of a run without those of its method, which leaves GRPO."""
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    of_module = settings["model"]["init_args"]
    for name in _METHOD:
        of_module.pop(name, None)
    of_module["updates"].pop("token_selection", None)
    target.write_text(yaml.safe_dump(settings), encoding="utf-8")


def _setting(cli: RunCLI, name: str) -> Any:
    value = cli.config.model.init_args.get(name)
    return value.as_dict() if hasattr(value, "as_dict") else value


def _policy(folder: Path) -> LanguageModel:
    model = folder / MODEL_FOLDER
    if not model.is_dir():
        raise UserError(f"{folder}: no {MODEL_FOLDER}/ in it, at which gradients are taken; add --no_gradient")
    return PretrainedCausalLM(str(model)).load()


def _show(table: pd.DataFrame) -> None:
    shown = Table(box=SIMPLE_HEAD)
    heads = {
        "completions": "{:.1%}",
        "tokens": "{:.1%}",
        "variance": "{:.4g}",
        "effective": "{:.2f}",
        "magnitude": "{:.3f}",
        "cosine": "{:.3f}",
        "sign_flips": "{:.1%}",
        "gradient_cosine": "{:.3f}",
    }
    for head in ("method", *heads):
        side = "left" if head == "method" else "right"
        shown.add_column(head.replace("_", " "), justify=side, overflow="fold")
    for name, *values in table[[*heads]].itertuples():
        cells = ("" if isnan(value) else form.format(value) for value, form in zip(values, heads.values(), strict=True))
        shown.add_row(str(name), *cells)
    Console(width=_WIDTH).print(shown)
