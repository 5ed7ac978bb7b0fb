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
    copies = 1 if shares_prefix else rollout.group_size
    prompt_lengths: list[int] = rollout.prompt_mask.sum(dim=1).tolist()
    completion_lengths: list[int] = rollout.grouped(rollout.lengths).amax(dim=1).tolist()

    def tokens(part: list[int]) -> int:
        """Count what goes through the model: each prompt, and its completions, at the length of the longest."""
        longest_prompt, longest_completion = (max(n[p] for p in part) for n in (prompt_lengths, completion_lengths))
        return len(part) * (copies * longest_prompt + rollout.group_size * longest_completion)

    def fits(part: list[int]) -> bool:
        return (max_prompts is None or len(part) <= max_prompts) and (max_tokens is None or tokens(part) <= max_tokens)

    parts: list[list[int]] = []
    for prompt in sorted(prompts, key=lambda p: tokens([p]), reverse=True):
        if parts and fits([*parts[-1], prompt]):
            parts[-1].append(prompt)
        else:
            parts.append([prompt])
    while len(parts) < min(at_least, len(prompts)):
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        part = parts.pop(largest)
        parts[largest:largest] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return parts
