"""Records what TRL's GRPO trains on: trl-env/bin/python benchmarks/trl_record.py DIR --output FILE; see README.md.

Runs where TRL is installed and this project need not be. `replay_trl.py` reads the file.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from step_result import step_arguments
from torch import Tensor
from trl import GRPOTrainer  # pyright: ignore[reportMissingImports]
from trl_step import StepEnds, train
from workload import InputError, read_workload

ROLLOUT = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


class Recorder(StepEnds):
    """The weights before the first step and after each."""

    def __init__(self) -> None:
        """Starts empty."""
        super().__init__()
        self.tensors: dict[str, Tensor] = {}

    def on_train_begin(self, *_: object, model: Any = None, **__: object) -> None:
        """Notes the initial weights."""
        self._note("start", model)

    def on_step_end(self, *_: object, model: Any = None, **__: object) -> None:
        """Notes the weights after the step."""
        super().on_step_end()
        self._note(f"{len(self.seconds) - 1}", model)

    def _note(self, when: str, model: Any) -> None:
        weights = [parameter.detach().flatten() for _, parameter in sorted(model.named_parameters())]
        self.tensors[f"{when}/weights"] = torch.cat(weights).clone()


def recording(tensors: dict[str, Tensor]) -> type:
    """A GRPOTrainer that notes the rollout of each step, rows of one prompt adjacent."""

    class RecordingTrainer(GRPOTrainer):
        """Notes, and changes nothing."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            found = super()._generate_and_score_completions(inputs)
            step = self.state.global_step
            tensors.update({f"{step}/{name}": found[name].detach().clone() for name in ROLLOUT})
            return found

    return RecordingTrainer


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the file; returns the exit status, 2 for input that does not do."""
    try:
        arguments = step_arguments("Records what TRL's GRPOTrainer trains on.", argv, output=True)
        work = read_workload(arguments.directory)
        if arguments.output.exists():
            raise InputError(f"--output {arguments.output}: already there; name a new file")
    except InputError as error:
        print(f"trl_record.py: error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    recorder = Recorder()
    history = train(work, arguments.steps, arguments.seed, recorder, recording(recorder.tensors))
    logged = [{name: row.get(name) for name in ("kl", "reward")} for row in history]
    save_file(recorder.tensors, arguments.output, {"logged": json.dumps(logged)})
    print(f"written: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
