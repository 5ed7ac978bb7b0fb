"""Which prompts of a rollout are updated on together, and which go through the model at once."""

from collections.abc import Iterator

from grpovi_lightning.randomness import minibatch_order
from grpovi_lightning.structures import Rollout


def minibatches(n_prompts: int, num_iterations: int, num_minibatches: int, seed: int, step: int) -> Iterator[list[int]]:
    """Yield the prompts of each optimiser step on a rollout; every iteration passes over all of them.

    The prompts of a step are in random order already, so every m-th of them is a random minibatch. Dealt like this, the
    ranks' parts of a minibatch together are the minibatch of a single process. Iterations differ in the order in which
    the minibatches come.
    """
    for iteration in range(num_iterations):
        for first in minibatch_order(seed, step, iteration, num_minibatches):
            yield list(range(first, n_prompts, num_minibatches))


def micro_batches(
    rollout: Rollout,
    prompts: list[int],
    max_prompts: int | None,
    max_tokens: int | None,
    at_least: int = 1,
    shares_prefix: bool = True,
) -> list[list[int]]:
    """Split prompts, each with its whole group, into parts that fit into memory; groups of similar cost go together.

    Args:
        rollout: where the lengths are read.
        prompts: which of its prompts.
        max_prompts: of one part; None is no limit.
        max_tokens: of one part, padding included; a single group may exceed it. None is no limit.
        at_least: parts to make even where fewer would fit, at most as many as there are prompts.
        shares_prefix: whether the model runs a prompt once for its group, and not once for each completion.
    """
    if max_prompts is None and max_tokens is None and at_least == 1:
        return [prompts]
    costs = _Costs(rollout, shares_prefix)
    parts: list[list[int]] = []
    for prompt in sorted(prompts, key=lambda p: costs.tokens([p]), reverse=True):
        grown = [*parts[-1], prompt] if parts else []
        fits = (max_prompts is None or len(grown) <= max_prompts) and (
            max_tokens is None or costs.tokens(grown) <= max_tokens
        )
        if grown and fits:
            parts[-1] = grown
        else:
            parts.append([prompt])
    while len(parts) < min(at_least, len(prompts)):
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        part = parts.pop(largest)
        parts[largest:largest] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return parts


class _Costs:
    """Counts tokens that go through the model: each prompt, and its completions at the length of the longest."""

    def __init__(self, rollout: Rollout, shares_prefix: bool) -> None:
        self.group_size = rollout.group_size
        self.copies = 1 if shares_prefix else rollout.group_size
        self.prompt: list[int] = rollout.prompt_mask.sum(dim=1).tolist()
        self.completion: list[int] = rollout.grouped(rollout.lengths).amax(dim=1).tolist()

    def tokens(self, prompts: list[int]) -> int:
        longest_prompt = max((self.prompt[p] for p in prompts), default=0)
        longest_completion = max((self.completion[p] for p in prompts), default=0)
        return len(prompts) * (self.copies * longest_prompt + self.group_size * longest_completion)
