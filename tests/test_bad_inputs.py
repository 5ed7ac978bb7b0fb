"""Bad inputs of every kind: one line with what was got, expected and to be done, status 2, and nothing changed.

Each goes through `main`, as a person's would. No model may be loaded before the line is printed.
"""

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.commands import refusal
from helpers.own_input import run_config, write_own_input
from transformers import PreTrainedModel

from grpovi_lightning.cli import main

GL = "grpovi_lightning"
MODEL, DATA = "model.init_args", "data.init_args"
POLICY, REWARD = f"{MODEL}.policy.init_args", f"{MODEL}.reward.init_args"
GONE = object()
"""Takes a setting away."""


@dataclass(frozen=True)
class Bad:
    """One bad input, and the line that it gets."""

    name: str
    line: str
    """A regular expression for the line from its beginning, without `grpovi: error: `."""
    arguments: tuple[str, ...]
    write: Callable[[Path], None]
    """Puts what it needs into the working folder."""


def command(line: str, said: str, write: Callable[[Path], None] = lambda here: None) -> Bad:
    """A command line by itself; `write` makes the files that it names."""
    return Bad(line, said, tuple(line.split()), write)


def files(**contents: str | bytes) -> Callable[[Path], None]:
    """Writes files: `a_yaml="x"` is the file `a.yaml` with `x` in it."""

    def write(here: Path) -> None:
        for name, content in contents.items():
            file = here / name.replace("_", ".")
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def fit(name: str, settings: dict[str, Any], said: str, *arguments: str, write=lambda here: None) -> Bad:
    """A run of GRPO with some settings changed, by their dotted names."""

    def write_all(here: Path) -> None:
        config = run_config(Path("."), Path("run"))
        for key, value in settings.items():
            put(config, key, value)
        (here / "run.yaml").write_text(yaml.safe_dump(config))
        write(here)

    return Bad(name, said, ("fit", "--config", "run.yaml", *arguments), write_all)


def put(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    if value is GONE:
        del config[last]
    else:
        config[last] = value


def study(name: str, changes: dict[str, Any], said: str, *arguments: str) -> Bad:
    """A study of one arm with something changed."""

    def write(here: Path) -> None:
        content = {"name": "small", "seeds": [1], "arms": {"plain": {"configs": ["run.yaml"]}}}
        for key, value in changes.items():
            put(content, key, value)
        (here / "study.yaml").write_text(yaml.safe_dump(content))
        (here / "run.yaml").write_text(yaml.safe_dump(run_config(Path("."), Path("run"))))

    return Bad(name, said, ("compare", "study.yaml", *arguments), write)


def of(class_path: str, /, **init_args: Any) -> dict[str, Any]:
    """What the YAML says of an object."""
    return {"class_path": class_path, "init_args": init_args}


def loss(name: str, **settings: Any) -> dict[str, Any]:
    return {f"{MODEL}.loss": of(f"{GL}.losses.{name}", **settings)}


def reward(**settings: Any) -> dict[str, Any]:
    return {f"{MODEL}.reward": of(f"{GL}.rewards.RewardFunction", **settings)}


def composite(*weights: float) -> dict[str, Any]:
    part = of(f"{GL}.rewards.RewardFunction", function="my_rewards.digits_in_common")
    return {f"{MODEL}.reward": of(f"{GL}.rewards.CompositeReward", rewards=[part], reward_weights=list(weights))}


def data(name: str, content: str | bytes, said: str) -> Bad:
    """A table that is not what it should be; `name` is its file's."""
    file = name.split()[-1]
    write = files(**{file.replace(".", "_"): content})
    return fit(
        name, {f"{DATA}.train": file, f"{DATA}.validation": None}, f"data file {re.escape(file)}{said}", write=write
    )


def checkpoint(name: str, content: Any, said: str) -> Bad:
    """Something to continue from that is no checkpoint of this run."""

    def write(here: Path) -> None:
        torch.save(content, here / "a.ckpt")

    return fit(name, {}, said, "--ckpt_path", "a.ckpt", write=write)


def model_folder(name: str, change: Callable[[Path], object], said: str) -> Bad:
    """A policy's checkpoint folder after a change."""
    return fit(name, {}, said, write=lambda here: change(here / "checkpoint"))


def used(status: str, said: str) -> Bad:
    """A run folder in which something is already."""

    def write(here: Path) -> None:
        (here / "run").mkdir()
        (here / "run" / "status.json").write_text(status)

    return fit(f"a run folder with the status {status}", {}, said, write=write)


ROW = '{"question": "a", "answer": "1"}\n'
RUN = {"global_step": 1, "state_dict": {}, "loops": {}, "optimizer_states": []}
EVIL = "!!python/object/apply:os.system ['touch evil']"
ADJUST = "adjust t.csv --lower 0 --upper 1"
NAMES_A_FOLDER = "cannot name a folder; expected at most 100 letters, digits and . _ - , "

COMMANDS = [
    command("grow", "unknown command 'grow', expected one of fit, validate, .*; see grpovi --help"),
    command("fit", "the following arguments are required: data, model; give them in a YAML file, with --config"),
    command("fit run.yaml", "unrecognized arguments: run.yaml"),
    command("fit --config", r"argument -c/--config: expected one argument"),
    command("fit --config none.yaml", "Parser key \"config\": File does not exist: '.*none.yaml'"),
    command("fit --config a.yaml", "a.yaml is not valid YAML: .* line 1, column 5", files(a_yaml="a: [")),
    command("fit --config b.yaml", "b.yaml is empty, expected a mapping of keys to values", files(b_yaml="")),
    command("fit --config c.yaml", "c.yaml holds a list, expected a mapping", files(c_yaml="- 1\n")),
    command("fit --config d.yaml", "d.yaml cannot be read: .*; expected a YAML file", files(d_yaml=b"\xff\xfea")),
    command("fit --config=e.yaml", "e.yaml: key 'a' appears twice .* line 2", files(e_yaml="a: 1\na: 2\n")),
    command("fit --config f.yaml", "f.yaml is not valid YAML: could not determine a constructor", files(f_yaml=EVIL)),
    command("compare", "the following arguments are required: study; see grpovi compare --help"),
    command("compare none.yaml", "study file none.yaml does not exist; give the path of one"),
    command("compare .", ". is a folder, expected a study file such as study.yaml"),
    command("report none", "none: no such folder; expected a study or a folder of runs"),
    command("report checkpoint", "checkpoint: no runs in it; expected folders with status.json"),
    command("report finished --metric gain", "no run logged 'gain'; the metrics that exist are "),
    command("report finished --baseline grpo", "baseline 'grpo' is no arm; the arms are finished"),
    command("power finished", "finished: no comparison has 3 seeds that count in both arms; run a pilot of that many"),
    command("diagnose finished --gold taste", "--gold: got 'taste', expected a reward that the runs logged: digits_in"),
    command("methods all", "unrecognized arguments: all; see grpovi methods --help"),
    command("task", "the following arguments are required: output; give them in a YAML file"),
    command(
        "task --output questions.jsonl", "output: cannot write to questions.jsonl: .* is not a folder; choose a fold"
    ),
    command("task --output t --min_words 0", "got min_words=0: expected 5 to 99; choose a number in that range"),
    command("task --output checkpoint", "got the output folder 'checkpoint', which holds other files and no task.json"),
    command("adjust none.csv --lower 0 --upper 1", "none.csv: no such file; expected CSV or Parquet with the columns"),
    command("adjust t.csv --lower 1 --upper 0", "bounds: got --lower 1.0 and --upper 0.0, expected finite numbers"),
    command(ADJUST, "t.csv, line 2: reward: got 'x', expected a finite number", files(t_csv="group,reward\n1,x\n")),
    command(f"{ADJUST} --output t.csv", "output t.csv: exists already", files(t_csv="group,reward\n1,1\n")),
    command("push finished mine", "got repository 'mine', expected user/name, such as ada/my-policy"),
    command("push checkpoint ada/mine", "checkpoint is no run: no status.json in it, expected the folder of a run"),
    command("replay checkpoint", "checkpoint: no config.yaml in it; expected the folder of a run of `grpovi fit`"),
    command(
        "replay finished --output questions.jsonl", "output questions.jsonl: exists already and is not overwritten"
    ),
    command("sample --output x", "the following arguments are required: "),
    command("relabel --config none.yaml --output x", 'Parser key "config": File does not exist'),
]

SETTINGS = [
    fit("an unknown section", {"trainr": 1}, "Option 'trainr' is not accepted; see --print_config"),
    fit("an unknown setting", {f"{MODEL}.grup_size": 4}, ".*'grup_size' is not accepted; did you mean 'group_size'"),
    fit("trust_remote_code", {f"{POLICY}.trust_remote_code": True}, ".*Option 'trust_remote_code' is not accepted"),
    fit("no module", {"model": GONE}, "the following arguments are required: model; give them in a YAML file"),
    fit(
        "a module that is none", {"model.class_path": "os.system"}, ".*os.system does not correspond to a subclass of L"
    ),
    fit("a module from nowhere", {"model.class_path": "nowhere.M"}, ".*No module named 'nowhere'"),
    fit("an empty section", {"trainer": None}, "trainer: got None, expected settings, a line each below it; or leave"),
    fit(
        "a name that stands for nothing", {"trainer.default_root_dir": "${here}"}, r"settings: .*'here'.*\$\{study_dir}"
    ),
    fit("a name that does not end", {"trainer.default_root_dir": "${study_dir"}, "settings: .*`.{name}` stands for an"),
    fit("a value that stands for itself", {"trainer.max_steps": "${trainer.max_steps}"}, "settings: .*[Rr]ecursive"),
    fit("text for a number", {f"{MODEL}.group_size": "four"}, '.*Parser key "group_size": Expected .*int.*four'),
    fit(
        "nothing for a number",
        {f"{MODEL}.group_size": None},
        "model.init_args.group_size: got null, expected int; leave",
    ),
    fit(
        "a number for settings",
        {f"{MODEL}.sampling": 5},
        "model.init_args.sampling: got 5, expected settings, a line each",
    ),
    fit("a group of one", {f"{MODEL}.group_size": 1}, "group_size: got 1, expected at least 2; the advantage of a"),
    fit("no seed", {"seed_everything": GONE}, "no seed: got seed_everything .*, expected an integer; add `seed"),
    fit("a seed of null", {"seed_everything": None}, "no seed: got seed_everything None, expected an integer; add"),
    fit("a seed below 0", {"seed_everything": -1}, "seed_everything: got -1, expected a whole number from 0 to"),
    fit("no length", {"trainer.max_steps": None}, "no length: got trainer.max_steps None, expected at least 1; add"),
    fit("a length of 0", {"trainer.max_steps": 0}, "no length: got trainer.max_steps 0, expected at least 1; add"),
    fit("no run folder", {"trainer.default_root_dir": ""}, "no run folder: got trainer.default_root_dir '', expected"),
    fit(
        "a run folder that is a file",
        {"trainer.default_root_dir": "questions.jsonl"},
        "trainer.default_root_dir: cannot w",
    ),
    fit("epochs", {"trainer.max_epochs": 3}, "trainer.max_epochs: got 3, expected -1: a run is one epoch, as long as"),
    fit("no devices", {"trainer.devices": 0}, r"trainer: .*devices=0.* \(got accelerator cpu, devices 0"),
    fit(
        "a device that is not there", {"trainer.accelerator": "quantum"}, "trainer: You selected an invalid accelerator"
    ),
    fit(
        "sharding without fsdp2", {f"{MODEL}.sharding": {"gather": "layers"}}, "sharding: got Sharding.* without `strat"
    ),
    fit(
        "compiled passes of sharded weights",
        {"trainer.strategy": "fsdp2", f"{MODEL}.compile_passes": True},
        "compile_passes: got it with strategy fsdp2, whose weights it cannot gather; leave it out",
    ),
    fit(
        "a decoder that cannot gather",
        {"trainer.strategy": "fsdp2", f"{MODEL}.decoder": of(f"{GL}.rollout.StaticDecoder")},
        "decoder: got StaticDecoder with strategy fsdp2, whose weights it cannot gather; use GroupDecoder",
    ),
    fit(
        "held-out prompts one by one",
        {"trainer.strategy": "fsdp2", "trainer.devices": 2, f"{DATA}.validation_batch_size": 1},
        "data.validation_batch_size: got 1 with strategy fsdp2.*; set at least 2",
    ),
    fit(
        "a strategy that is none", {"trainer.strategy": "magic"}, "trainer.strategy: got magic, expected one of auto, "
    ),
    fit(
        "clipping that has no effect",
        {"trainer.gradient_clip_val": 1.0},
        "trainer.gradient_clip_val: got 1.0, which has",
    ),
    fit("a precision that is none", {"trainer.precision": "64-wrong"}, 'Parser key "trainer.precision": Expected'),
    fit(
        "a temperature of 0", {f"{MODEL}.sampling.temperature": 0.0}, "sampling.temperature: got 0.0, expected a number"
    ),
    fit("a top_p above 1", {f"{MODEL}.sampling.top_p": 1.5}, "sampling.top_p: got 1.5, expected above 0 and at most 1"),
    fit(
        "no tokens",
        {f"{MODEL}.sampling.max_completion_length": 0},
        "sampling.max_completion_length: got 0, expected at",
    ),
    fit("a beta that is no number", loss("GRPOLoss", beta=float("nan")), "beta: got nan, expected a finite number of"),
    fit(
        "a clip range below 0",
        loss("DAPOLoss", epsilon_high=-1.0),
        "clip range: got epsilon 0.2, epsilon_high -1.0; exp",
    ),
    fit(
        "a loss that is an advantage", {f"{MODEL}.loss": of(f"{GL}.advantages.GroupAdvantage")}, ".*subclass of PolicyL"
    ),
    fit(
        "bounds turned round",
        {
            f"{MODEL}.adjustment": of(
                f"{GL}.adjustment.VarianceIncrease", range=of(f"{GL}.adjustment.FixedRange", lower=1.0, upper=0.0)
            )
        },
        "reward range: got lower 1.0, upper 0.0; expected finite",
    ),
    fit(
        "a rate below 0",
        {f"{MODEL}.optimizer": of("torch.optim.AdamW", lr=-1.0)},
        "optimizer: Invalid learning rate: -1",
    ),
    fit(
        "an optimizer with a closure",
        {f"{MODEL}.optimizer": of("torch.optim.LBFGS")},
        "optimizer: .*closure.*; set it in",
    ),
    fit(
        "an optimizer of sparse gradients",
        {f"{MODEL}.optimizer": of("torch.optim.SparseAdam")},
        "optimizer: RuntimeErr",
    ),
    fit(
        "a schedule of no steps",
        {f"{MODEL}.lr_scheduler": of("torch.optim.lr_scheduler.StepLR", step_size=0)},
        "lr_scheduler: ZeroDivisionError: .*; set it in the YAML",
    ),
    fit(
        "a schedule by a metric",
        {f"{MODEL}.lr_scheduler": of("torch.optim.lr_scheduler.ReduceLROnPlateau")},
        "lr_scheduler: got ReduceLROnPlateau, expected a schedule that depends on the number of updates alone",
    ),
    fit(
        "updates of nothing",
        {f"{MODEL}.updates.num_iterations": 0},
        "updates.num_iterations: got 0, expected at least 1",
    ),
    fit(
        "saving by no order",
        {"checkpoint.save_top_k": 3},
        r"ModelCheckpoint\(save_top_k=3, monitor=None\) is not a valid",
    ),
    fit(
        "a checkpoint outside",
        {"checkpoint.filename": "../b"},
        "checkpoint.filename: got '../b', expected a name within",
    ),
    fit(
        "completions of no size", {"completions.max_megabytes": -1}, "completions.max_megabytes: got -1.0, expected at"
    ),
]

REWARDS = [
    fit(
        "a reward from nowhere",
        reward(function="nowhere.f"),
        "reward function nowhere.f: no module named 'nowhere'; run",
    ),
    fit(
        "a reward that is not there",
        reward(function="my_rewards.no"),
        "reward function my_rewards.no: module my_rewards has",
    ),
    fit(
        "a reward that is a number",
        reward(function="math.pi"),
        "reward function math.pi: got a float, expected a functi",
    ),
    fit(
        "a reward with a mistake",
        reward(function="torn.f"),
        r"reward function torn.f: .*SyntaxError.* \(torn.py, line 1\)",
        write=files(torn_py="def f(:\n"),
    ),
    fit(
        "a reward whose file ends the process",
        reward(function="leaves.f"),
        "reward function leaves.f: .*SystemExit",
        write=files(leaves_py="raise SystemExit(0)\n"),
    ),
    fit(
        "a reward that wants a column",
        reward(function="wants.f"),
        "reward function f needs the argument 'taste', but the",
        write=files(wants_py="def f(taste): return taste\n"),
    ),
    fit(
        "a factory that makes none",
        reward(factory="math.sqrt"),
        "reward factory math.sqrt raised TypeError: .*; look at",
    ),
    fit(
        "no reward and no factory", reward(), "reward function: got function None and factory None, expected one of the"
    ),
    fit(
        "no time",
        reward(function="my_rewards.digits_in_common", time_limit=0),
        "reward function: got time_limit 0.0, exp",
    ),
    fit(
        "no attempt",
        reward(function="my_rewards.digits_in_common", retry={"attempts": 0}),
        "retry.attempts: got 0, expect",
    ),
    fit(
        "an error that is none",
        reward(function="my_rewards.digits_in_common", retry={"errors": ["Oops"]}),
        "retry.errors: got 'Oops', expected the name of an exception such as ConnectionError",
    ),
    fit(
        "no calls at a time",
        reward(function="my_rewards.digits_in_common", max_concurrency=0),
        "reward function: max_concurrency: got 0, expected at least 1",
    ),
    fit(
        "a reward without a name",
        {
            f"{MODEL}.reward": of(
                f"{GL}.rewards.CompositeReward", rewards=[of(f"{GL}.rewards.RewardModel", path="none", name="")]
            )
        },
        "reward: got no name, expected a word",
    ),
    fit(
        "a reward that only says what one is",
        {f"{MODEL}.reward": of(f"{GL}.rewards.Reward")},
        "Reward: got the base class",
    ),
    fit(
        "weights of 0",
        composite(0.0),
        r"reward_weights: got \[0.0\], expected at least one that is not 0; nothing would",
    ),
    fit("a weight that is no number", composite(float("nan")), r"reward_weights: got \[nan\], expected finite numbers"),
    fit("a weight too many", composite(1.0, 2.0), "reward_weights: got 2 weights for 1 rewards, expected one each"),
    fit(
        "a reward model that is none",
        {f"{MODEL}.reward": of(f"{GL}.rewards.RewardModel", path="checkpoint")},
        "reward model checkpoint: got LlamaForCausalLM, expected a trained sequence classifier; train one",
    ),
]

FILES = [
    fit("no table", {f"{DATA}.train": ""}, "data .*: no path; expected `path`"),
    fit(
        "a table that is not there",
        {f"{DATA}.train": "none.jsonl"},
        "data file none.jsonl: no such file; expected JSON",
    ),
    fit(
        "a column that is not there",
        {f"{DATA}.prompt_column": "prompt"},
        "data file questions.jsonl: no column 'prompt', it",
    ),
    fit(
        "too many rows a step",
        {f"{DATA}.prompts_per_step": 4000},
        "too few rows: got 40, expected at least the 4000 of",
    ),
    fit(
        "all rows held out",
        {f"{DATA}.preparation": {"held_out_fraction": 2.0}},
        "preparation.held_out_fraction: got 2.0, e",
    ),
    data("an empty q.jsonl", "", ": no rows; expected at least one"),
    data("half of a q1.jsonl", ROW + '{"question": ', ", line 2: no valid JSON .*; one object a line"),
    data("lists in q2.jsonl", "[1]\n", ", line 1: got int, expected a JSON object"),
    data(
        "no prompt in q3.jsonl",
        ROW + '{"question": null}\n',
        r": question in row 1 \(line 2\): got None, expected text",
    ),
    data("other letters in q4.jsonl", ROW.encode() + b'{"question": "\xff"}\n', ": cannot be read: .*utf-8"),
    data(
        "semicolons in q5.csv",
        "question;answer\na;1\n",
        ", line 1: got columns separated by ';', expected commas; save",
    ),
    data("a short line in q6.csv", "question,answer\na\n", ", line 2: got 1 values, expected 2 as in the header"),
    data("half of a q7.parquet", b"PAR1xxPAR1", ": cannot be read: Parquet file size"),
    data("another kind, q8.txt", "a\n", ": got ending '.txt', expected .jsonl, .json or .csv"),
    fit(
        "a policy that is not there",
        {f"{POLICY}.path": "./none"},
        "policy ./none: no such folder; expected a Hugging Face",
    ),
    fit(
        "a template that is not there",
        {f"{POLICY}.chat_template": "none.jinja"},
        "chat_template none.jinja: cannot be read",
    ),
    fit(
        "an adapter that is not there", {f"{POLICY}.adapter": "none"}, "adapter none: no such folder; expected a folder"
    ),
    model_folder(
        "no config", lambda at: (at / "config.json").unlink(), "policy checkpoint: a folder without config.json"
    ),
    model_folder("half a config", lambda at: (at / "config.json").write_text("{"), ".*config.json.*"),
    model_folder(
        "a model that nobody knows",
        lambda at: (at / "config.json").write_text('{"model_type": "no"}'),
        "model checkpoint cannot be loaded: .*model type `no`",
    ),
    model_folder(
        "a model with code",
        lambda at: (at / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}'),
        "model checkpoint cannot be loaded: .*custom code",
    ),
    model_folder(
        "no weights", lambda at: (at / "model.safetensors").unlink(), "policy checkpoint: no .*safetensors in it; c"
    ),
    model_folder(
        "pickled weights",
        lambda at: (at / "model.safetensors").rename(at / "pytorch_model.bin"),
        "policy checkpoint: no .*safetensors in it; convert the weights, other formats can carry code",
    ),
    model_folder(
        "half of the weights",
        lambda at: (at / "model.safetensors").write_bytes(b"1234"),
        "policy checkpoint/model.safetensors cannot be loaded: SafetensorError",
    ),
    model_folder(
        "a pointer",
        lambda at: (at / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "policy checkpoint/model.safetensors: a Git-LFS pointer, expected weights; run git lfs pull",
    ),
    model_folder(
        "half a tokenizer",
        lambda at: (at / "tokenizer.json").write_text("{"),
        "policy checkpoint/tokenizer.json cannot be loaded: ",
    ),
    fit("no checkpoint", {}, "ckpt_path: got no name, expected <run>/checkpoints/last.ckpt; or leave", "--ckpt_path="),
    fit("a checkpoint that is not there", {}, "checkpoint none.ckpt: no such file; expected", "--ckpt_path=none.ckpt"),
    fit(
        "a checkpoint that is weights",
        {},
        "checkpoint checkpoint/model.safetensors: got a file that is no checkpoint or w",
        "--ckpt_path",
        "checkpoint/model.safetensors",
    ),
    checkpoint("a checkpoint of nothing", {}, "checkpoint a.ckpt: holds no run to continue; expected one of <run>"),
    checkpoint(
        "a checkpoint without a step", RUN | {"global_step": "one"}, "checkpoint a.ckpt: holds no run to continue"
    ),
    checkpoint(
        "a checkpoint beyond the end", RUN | {"global_step": 8}, "checkpoint a.ckpt: it is of step 8, beyond trainer"
    ),
    checkpoint(
        "a checkpoint of another run", RUN, "checkpoint a.ckpt is not of this run: it has no n_steps; expected one"
    ),
    checkpoint(
        "a checkpoint with code", RUN | {"state_dict": Path}, "checkpoint a.ckpt: cannot be read: it is damaged, or ho"
    ),
    used(
        '{"state": "finished"}', "run folder run holds a finished run already, without a checkpoint .* with --restart"
    ),
    used('{"state": "fin', "run folder run holds a damaged run already, without a checkpoint to continue from; choose"),
    used('{"schema": 99}', "run/status.json has layout 99, and this version of grpovi reads layouts 1 to"),
]

STUDIES = [
    study("a study without a name", {"name": GONE}, "study.yaml: no name; add `name: ...`, it becomes the name of the"),
    study("a study outside", {"name": "../small"}, f"study.yaml: name '../small' {NAMES_A_FOLDER}"),
    study("a study elsewhere", {"name": "/small"}, f"study.yaml: name '/small' {NAMES_A_FOLDER}"),
    study("an arm outside", {"arms": {"../a": {"configs": ["run.yaml"]}}}, f"study.yaml: arm '../a' {NAMES_A_FOLDER}"),
    study("no seeds", {"seeds": []}, r"study.yaml: no seeds; add `seeds: \[1, 2, 3\]` to it or give --seeds 1,2,3"),
    study("a seed twice", {"seeds": [1, 1]}, "study.yaml: seeds: seed 1 is given twice; a run repeated under one seed"),
    study("no arms", {"arms": {}}, "study.yaml: no arms; add `arms:` with at least one"),
    study(
        "an arm of nothing", {"arms": {"a": {}}}, "study.yaml: arm 'a': configs is empty, expected a list of YAML files"
    ),
    study(
        "an arm of no file",
        {"arms": {"a": {"configs": ["none.yaml"]}}},
        "study.yaml: arm 'a': config file 'none.yaml' doe",
    ),
    study("no such baseline", {"arms.plain.baseline": "b"}, "study.yaml: arm 'plain': baseline 'b' is not another arm"),
    study(
        "an unknown command",
        {"prepare": {"a": {"command": "rm"}}},
        "study.yaml: prepare stage 'a': unknown command 'rm'",
    ),
    study(
        "an unknown key", {"arm": {}}, r"study.yaml: unknown key 'arm' \(did you mean 'arms'\?\); expected one of name"
    ),
    study(
        "a grid over the run's folder",
        {"arms.plain.values": {"trainer.default_root_dir": ["a"]}, "tuning_seeds": [5]},
        "study.yaml: arm 'plain': values: trainer.default_root_dir is set by the study; leave it out",
    ),
    study(
        "a grid over nothing",
        {"arms.plain.values": {"nothing": [1, 2]}, "tuning_seeds": [5]},
        "arm 'plain': values: its configuration has no nothing",
    ),
    study("no jobs", {}, "--jobs is 0, expected a whole number of at least 1", "--jobs", "0"),
    study("seeds in words", {}, "argument --seeds: got 'one', expected integers such as 1,2,3", "--seeds", "one"),
    study(
        "no verdict", {}, "--until-decided: no arm has a baseline and there are no contrasts", "--until-decided", "3"
    ),
    study(
        "an output that is a file",
        {},
        "--output: cannot write to study.yaml/small/.* is not a folder",
        "--output",
        "study.yaml",
    ),
]

BAD = [*COMMANDS, *SETTINGS, *REWARDS, *FILES, *STUDIES]


@pytest.fixture(scope="module")
def ground(tmp_path_factory, request) -> Path:
    """What a person brings, and a run of one step."""
    root = tmp_path_factory.mktemp("ground")
    write_own_input(root)
    config = run_config(Path("."), Path("finished"))
    config["trainer"] |= {"max_steps": 1, "val_check_interval": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        (root / "run.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "--config", "run.yaml"]) == 0
    (root / "run.yaml").unlink()
    shutil.rmtree(root / "finished" / "checkpoints")
    return root


@pytest.fixture
def here(ground, tmp_path, monkeypatch) -> Path:
    shutil.copytree(ground, tmp_path / "here", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sys.path", [*sys.path])  # the command adds the folder in which it runs
    return tmp_path / "here"


def contents(folder: Path) -> dict[str, bytes | None]:
    caches = "__pycache__", ".scalars.parquet"  # not what anybody reads
    found = (path for path in sorted(folder.rglob("*")) if not {*path.parts} & {*caches})
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def load_nothing(*arguments: Any, **settings: Any) -> None:
    raise AssertionError("a model was loaded before the mistake was told")


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_input_gets_one_line_before_anything_is_loaded_and_changes_nothing(bad, here, monkeypatch, capsys):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", load_nothing)
    bad.write(here)
    before = contents(here)
    capsys.readouterr()
    assert main([*bad.arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("grpovi: error: ")] == said[-1:]
    assert re.match(bad.line, said[-1].removeprefix("grpovi: error: ")), said[-1]
    assert all(re.match("data file|validation table|train table|grpovi: error: ", line) for line in said)
    assert contents(here) == before


def test_the_list_is_long_and_says_each_thing_once():
    assert len(BAD) >= 60 and len({bad.name for bad in BAD}) == len(BAD)


LATE = [
    fit(
        "completions longer than the model",
        {f"{MODEL}.sampling.max_completion_length": 600},
        "train table, row 0: got .* to",
    ),
    fit("layers that are not there", {f"{POLICY}.lora": {"target_modules": ["nothing"]}}, "lora: got target_modules"),
    fit(
        "a limit below all rows",
        {f"{DATA}.preparation": {"max_tokens": 1}},
        "train table: none of its 40 rows has at most",
    ),
]


@pytest.mark.parametrize("logger", [None, of("lightning.pytorch.loggers.CSVLogger")], ids=["TensorBoard", "CSV"])
@pytest.mark.parametrize("bad", LATE, ids=lambda bad: bad.name)
def test_what_is_seen_only_when_models_are_loaded_leaves_nothing_behind(bad, logger, here, capsys):
    bad.write(here)
    config = yaml.safe_load((here / "run.yaml").read_text())
    config["trainer"]["logger"] = logger
    (here / "run.yaml").write_text(yaml.safe_dump(config))
    before = contents(here)
    for _ in range(2):  # the second time it is the same line, and not that there is a run already
        assert re.match(bad.line, refusal(capsys, *bad.arguments))
    assert contents(here) == before


def test_what_was_in_the_folder_of_a_run_that_is_refused_stays(here, capsys):
    (here / "run" / "checkpoints").mkdir(parents=True)
    (here / "run" / "notes.txt").write_text("mine")
    (here / "run" / "config.yaml").write_text("mine: 1")
    LATE[0].write(here)
    refusal(capsys, *LATE[0].arguments)
    assert sorted(path.name for path in (here / "run").iterdir()) == ["checkpoints", "config.yaml", "notes.txt"]
