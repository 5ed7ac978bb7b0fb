"""Times TRL's GRPO steps on a workload: trl-env/bin/python benchmarks/trl_step.py DIR --steps 12; see README.md.

Runs where TRL is installed and this project need not be.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: everything is in the folder

import json

import torch
from datasets import Dataset
from step_result import step_arguments, step_result
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]
from workload import InputError, Workload, read_workload


class StepEnds(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        """Starts empty."""
        self.seconds: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """Notes the time, on a GPU once the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter())


def train(
    work: Workload, steps: int, seed: int, ends: StepEnds, trainer_class: type[GRPOTrainer] = GRPOTrainer
) -> list[dict[str, float]]:
    """Trains with TRL's defaults wherever the workload says nothing.

    Returns:
        What TRL logged at each step.
    """
    gpu = torch.cuda.is_available()
    with (
        (work.folder / "prompts.jsonl").open(encoding="utf-8") as lines,
        tempfile.TemporaryDirectory() as output,
    ):
        trainer = trainer_class(
            model=str(work.folder / "model"),
            processing_class=AutoTokenizer.from_pretrained(work.folder / "model"),
            reward_funcs=work.reward,
            train_dataset=Dataset.from_list([json.loads(line) for line in lines]),
            callbacks=[ends],
            args=GRPOConfig(
                # The workload.
                per_device_train_batch_size=work.prompts_per_step * work.group_size,
                num_generations=work.group_size,
                max_completion_length=work.completion,
                temperature=work.temperature,
                learning_rate=work.learning_rate,
                beta=work.beta,
                loss_type=work.loss,
                num_iterations=work.num_iterations,
                max_steps=steps,
                seed=seed,
                # The machine.
                use_cpu=not gpu,
                bf16=gpu,
                gradient_checkpointing=False,
                # Nothing but the steps.
                output_dir=output,
                logging_steps=1,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            ),
        )
        trainer.train()
    return [row for row in trainer.state.log_history if "reward" in row]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the JSON line last, after TRL's own; returns the exit status, 2 for input that does not do."""
    try:
        arguments = step_arguments("Times the steps of TRL's GRPOTrainer on a workload.", argv)
        work = read_workload(arguments.directory)
    except InputError as error:
        print(f"trl_step.py: error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    ends = StepEnds()
    last = train(work, arguments.steps, arguments.seed, ends)[-1]
    print(step_result("trl", work, ends.seconds, last["completions/mean_length"], last.get("kl"), last["reward"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
