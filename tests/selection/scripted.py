"""Rollouts with rewards from a script, and a table that they come from."""

from dataclasses import replace

import torch
from helpers.rollouts import rollout_of_logprobs

from grpovi_lightning.selection import ScoredRollout, StepSampling
from grpovi_lightning.structures import PromptBatch

NAN = float("nan")


def batch_of(numbers, spare=None) -> PromptBatch:
    """The prompts with these numbers, with spare ones."""
    numbers = list(numbers)
    columns = {"answer": [f"a{number}" for number in numbers]}
    spare = None if spare is None else batch_of(spare)
    return PromptBatch([f"p{number}" for number in numbers], torch.tensor(numbers), columns, spare)


def scored_of(rewards, numbers=None, step=0) -> ScoredRollout:
    """A rollout with the rewards [P][G] of these prompts; completion g of a group has g + 1 tokens."""
    rewards = torch.tensor(rewards)
    n_prompts, size = rewards.shape
    rollout = rollout_of_logprobs([[-(10.0 * p + g)] * (g + 1) for p in range(n_prompts) for g in range(size)], size)
    texts = [f"{p} {g}" for p in range(n_prompts) for g in range(size)]
    prompts = batch_of(range(n_prompts) if numbers is None else numbers)
    rollout = replace(rollout, prompts=prompts, step=step, texts=texts)
    components = {"a": rewards.flatten() * 2}
    return ScoredRollout(rollout, components, rewards, rollout.lengths.sum())


class Script:
    """Rolls out groups whose rewards the script has, and remembers which prompts each call asked for."""

    def __init__(self, rewards):
        """`rewards` maps the number of a prompt to its group."""
        self.rewards, self.calls, self.step = rewards, [], 0

    def roll_out(self, prompts):
        numbers = prompts.indices.tolist()
        self.calls.append(numbers)
        return scored_of([self.rewards[number] for number in numbers], numbers, self.step)

    def prompts(self, numbers):
        return batch_of(numbers)

    def run(self, selection, numbers, spare=None, seed=1):
        """One step; the calls of this step alone are in `calls` afterwards."""
        self.calls = []
        sampling = StepSampling(self.roll_out, self, seed, self.step)
        found = selection(batch_of(numbers, spare), sampling)
        self.step += 1
        return found


def numbers_of(scored):
    return scored.rollout.prompts.indices.tolist()
