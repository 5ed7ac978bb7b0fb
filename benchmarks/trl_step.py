"""Time TRL's GRPO steps on a workload: trl-env/bin/python benchmarks/trl_step.py DIR --steps 12; see README.md.

Runs where TRL is installed and this project need not be; `--record FILE` notes what it trained on, for against_trl.py.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: everything is in the folder

import torch
from command import InputError, run_command
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]
from workload import LEAST, Workload, read_workload, step_parser, step_result

ROLLOUT = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


class StepEnds(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def trainer_class(self) -> type:
        """Return the class that trains."""
        return GRPOTrainer

    def on_step_end(self, *_: object, **__: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter())


class Recorder(StepEnds):
    """The weights before the first step and after each, and the rollouts that `trainer_class` notes."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[str, Tensor] = {}

    def on_train_begin(self, *_: object, model: Any = None, **__: object) -> None:
        self._note("start", model)

    def on_step_end(self, *_: object, model: Any = None, **__: object) -> None:
        super().on_step_end()
        self._note(f"{len(self.seconds) - 1}", model)

    def _note(self, when: str, model: Any) -> None:
        weights = [parameter.detach().flatten() for _, parameter in sorted(model.named_parameters())]
        self.tensors[f"{when}/weights"] = torch.cat(weights).clone()

    def trainer_class(self) -> type:
        """Return a GRPOTrainer that notes the rollout of each step, rows of one prompt adjacent."""
        tensors = self.tensors

        class RecordingTrainer(GRPOTrainer):
            def _generate_and_score_completions(self, inputs: Any) -> Any:
                found = super()._generate_and_score_completions(inputs)
                step = self.state.global_step
                tensors.update({f"{step}/{name}": found[name].detach().clone() for name in ROLLOUT})
                return found

        return RecordingTrainer


def train(work: Workload, steps: int, seed: int, ends: StepEnds) -> list[dict[str, float]]:
    """Train with TRL's defaults wherever the workload says nothing; return what TRL logged at each step."""
    gpu = torch.cuda.is_available()
    sizes = {
        "per_device_train_batch_size": work.prompts_per_step * work.group_size,
        "num_generations": work.group_size,
        "max_completion_length": work.completion,
        "loss_type": work.loss,
    }
    same = {name: getattr(work, name) for name in ("temperature", "learning_rate", "beta", "num_iterations")}
    machine = {"use_cpu": not gpu, "bf16": gpu, "gradient_checkpointing": False}
    nothing_but_steps = {"logging_steps": 1, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    prompts = [json.loads(line) for line in (work.folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as output:
        trainer = ends.trainer_class()(
            model=str(work.folder / "model"),
            processing_class=AutoTokenizer.from_pretrained(work.folder / "model"),
            reward_funcs=work.reward,
            train_dataset=Dataset.from_list(prompts),
            callbacks=[ends],
            args=GRPOConfig(
                output_dir=output, max_steps=steps, seed=seed, **sizes, **same, **machine, **nothing_but_steps
            ),
        )
        trainer.train()
    return [row for row in trainer.state.log_history if "reward" in row]


def run(arguments: argparse.Namespace) -> None:
    """Train, write the record if one is wanted, and print the JSON line last, after TRL's own."""
    work, record = read_workload(arguments.directory), arguments.record
    if record and record.exists():
        raise InputError(f"--record: got {record}, which is there already; name a new file")
    torch.set_num_threads(arguments.threads)
    ends = Recorder() if record else StepEnds()
    history = train(work, arguments.steps, arguments.seed, ends)
    if isinstance(ends, Recorder):
        logged = [{name: row.get(name) for name in ("kl", "reward")} for row in history]
        save_file(ends.tensors, record, {"logged": json.dumps(logged)})
    last = history[-1]
    print(step_result("trl", work, ends.seconds, last["completions/mean_length"], last.get("kl"), last["reward"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status, 2 for input that does not do."""
    parser = step_parser("trl_step.py", "Time the steps of TRL's GRPOTrainer on a workload.")
    parser.add_argument("--record", type=Path, metavar="FILE", help="a new file for completions and weights")
    return run_command(parser, run, argv, least=LEAST)


if __name__ == "__main__":
    sys.exit(main())
