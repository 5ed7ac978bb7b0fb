"""What is remembered of prompts, by their stable numbers."""

from typing import Any

import torch
from torch import nn


class PromptMemory(nn.Module):
    """A number for each prompt that was remembered; part of the checkpoint.

    Attributes:
        values: number of the prompt -> what is remembered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[int, float] = {}

    def get_extra_state(self) -> dict[str, Any]:
        """Return its content as tensors."""
        values = torch.tensor(list(self.values.values()), dtype=torch.float64)
        return {"prompts": torch.tensor(list(self.values), dtype=torch.long), "values": values}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.values = dict(zip(state["prompts"].tolist(), state["values"].tolist(), strict=True))


class MemoryBank(PromptMemory):
    """At most `capacity` prompts that are worth another round, each with a priority."""

    def __init__(self, capacity: int, momentum: float) -> None:
        """Set its size, and how much a priority keeps of itself when its prompt is measured again."""
        super().__init__()
        self.capacity, self.momentum = capacity, momentum

    def first(self, count: int, without: set[int]) -> list[int]:
        """Return up to `count` prompts of the highest priorities, ties by their numbers, but none of `without`."""
        return [number for number in self._ranked() if number not in without][:count]

    def measure(self, measured: dict[int, float], threshold: float) -> None:
        """Let prompts, number -> value, enter with the value or move their priority; below the threshold they leave."""
        for number, value in measured.items():
            if value < threshold:
                self.values.pop(number, None)
            elif number in self.values:
                self.values[number] = self.momentum * self.values[number] + (1.0 - self.momentum) * value
            else:
                self.values[number] = value
        for number in self._ranked()[self.capacity :]:
            del self.values[number]

    def _ranked(self) -> list[int]:
        return sorted(self.values, key=lambda number: (-self.values[number], number))
