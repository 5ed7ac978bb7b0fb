"""What a step of GRPO takes on GPUs, by arithmetic: python benchmarks/scaling_arithmetic.py; see docs/scaling.md."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from command import run_command
from reporting import consoles, print_table

GB = 1e9


@dataclass(frozen=True)
class Shape:
    """A Llama: its weights, those of embedding and head, and what makes the size of its cache."""

    name: str
    weights: float
    outer: float
    layers: int
    hidden: int
    cached: int
    """Key-value heads times the size of a head."""


@dataclass(frozen=True)
class Work:
    """What one GPU does in a step."""

    prompts: int = 8
    group: int = 8
    prompt_tokens: int = 512
    completion_tokens: int = 1024

    @property
    def tokens(self) -> int:
        """Tokens that go through a model where each prompt runs once for its group."""
        return self.prompts * (self.prompt_tokens + self.group * self.completion_tokens)

    @property
    def plain_tokens(self) -> int:
        """The same where prompts run with each completion."""
        return self.prompts * self.group * (self.prompt_tokens + self.completion_tokens)


SHAPES = (
    Shape("1 B", 1.24e9, 0.26e9, 16, 2048, 8 * 64),
    Shape("8 B", 8.03e9, 1.05e9, 32, 4096, 8 * 128),
    Shape("70 B", 70.6e9, 2.1e9, 80, 8192, 8 * 128),
)
RANKS = (1, 8, 64)
MEMORY, BANDWIDTH, FLOPS, LINK = 80e9, 3.35e12, 0.4 * 989e12, {1: 1.0, 8: 400e9, 64: 50e9}
"""Of an H100 by its data sheet; 40 % of its speed in bfloat16; bytes a second to the other processes."""


def state(shape: Shape, ranks: int, adapters: bool) -> float:
    """Return the bytes of weights, gradients, AdamW's moments and a reference on one of the GPUs.

    All weights: float32, each with a gradient and two moments, and the reference beside them. Adapters: bfloat16 below
    them, which is the reference, too; the adapters themselves are small.
    """
    return (2 if adapters else 4 + 4 + 8 + 4) * shape.weights / ranks


def gathered(shape: Shape, ranks: int, layers: bool) -> float:
    """Return the bytes of gathered bfloat16 weights: all, or the outer ones with two layers."""
    if ranks == 1:
        return 2 * shape.weights
    body = shape.weights - shape.outer
    return 2 * (shape.outer + 2 * body / shape.layers) if layers else 2 * shape.weights


def cache(shape: Shape, work: Work) -> float:
    """Return the bytes of the keys and values of a rollout, bfloat16, each prompt's once."""
    return 2 * 2 * shape.layers * shape.cached * work.tokens


def activations(shape: Shape, work: Work) -> float:
    """Return the bytes that the update of one prompt's group keeps with gradient checkpointing, plain passes.

    Each layer's input, and of one layer 34 bytes a number (arXiv 2205.05198, eq. 1, without the attention matrix).
    """
    tokens = work.plain_tokens / work.prompts
    return (2 * shape.layers + 34) * shape.hidden * tokens


def memory(shape: Shape, ranks: int, layers: bool, adapters: bool) -> float:
    """Return the bytes of the fullest moment: the rollout with its cache, or the update with its activations."""
    work = Work()
    whole = 0.0 if adapters and ranks == 1 else gathered(shape, ranks, layers)  # in bfloat16 already
    return state(shape, ranks, adapters) + whole + max(cache(shape, work), activations(shape, work))


def seconds(shape: Shape, ranks: int, layers: bool) -> dict[str, float]:
    """Return the least time of each part of a step that trains all weights."""
    work = Work()
    # Every token reads the weights and, on average, half of the completions' cache.
    decode = work.completion_tokens * (2 * shape.weights + cache(shape, work) / 2) / BANDWIDTH
    scored = work.plain_tokens if layers else work.tokens
    gathers = (work.completion_tokens + 3 if layers else 3) * 2 * shape.weights
    reduced = 4 * shape.weights * work.prompts  # float32, once for each prompt's group
    return {
        "decode": decode,
        "reference": 2 * shape.weights * scored / FLOPS,
        # Gradient checkpointing: each forward pass twice, and prompts with each completion.
        "update": 8 * shape.weights * work.plain_tokens / FLOPS,
        "gather and reduce": 0.0 if ranks == 1 else (gathers + reduced) / LINK[ranks],
    }


def memory_rows() -> list[Sequence[str]]:
    """Return a row for each model and number of GPUs: GB of a GPU, all weights by both ways, and adapters."""
    rows = []
    for shape in SHAPES:
        for ranks in RANKS:
            cases = [memory(shape, ranks, False, False), memory(shape, ranks, True, False)]
            cases += [memory(shape, ranks, False, True), memory(shape, ranks, True, True)]
            cells = [f"{case / GB:,.0f}" + ("" if case < MEMORY else " (no)") for case in cases]
            rows.append([shape.name, str(ranks), *cells])
    return rows


def time_rows() -> list[Sequence[str]]:
    """Return a row for each model and number of GPUs that it fits on: seconds of a step's parts."""
    rows = []
    for shape in SHAPES:
        for ranks in RANKS:
            for layers in (False, True):
                fits = memory(shape, ranks, layers, False) < MEMORY
                if fits and not (layers and ranks == 1):
                    parts = seconds(shape, ranks, layers)
                    cells = [f"{value:,.1f}" for value in (*parts.values(), sum(parts.values()))]
                    rows.append([shape.name, str(ranks), "layers" if layers else "once", *cells])
    return rows


def run(_: argparse.Namespace) -> None:
    """Print both tables."""
    console = consoles()[0]
    columns = ["policy", "GPUs", "all, once", "all, layers", "adapters, once", "adapters, layers"]
    print_table(console, "GB of a GPU", columns, memory_rows())
    columns = ["policy", "GPUs", "gather", "decode", "reference", "update", "gather and reduce", "step"]
    print_table(console, "Seconds of a step, at least", columns, time_rows())


def main(argv: list[str] | None = None) -> int:
    """Parse arguments and run; return the exit status."""
    return run_command(argparse.ArgumentParser(prog="scaling_arithmetic.py", description=__doc__), run, argv)


if __name__ == "__main__":
    sys.exit(main())
