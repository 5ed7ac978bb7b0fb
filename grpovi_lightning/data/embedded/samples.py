"""Demonstrations and preference pairs for given instructions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from statistics import fmean, pstdev

from grpovi_lightning.data.embedded.gold import GoldScore, score
from grpovi_lightning.data.embedded.lexicon import STOP
from grpovi_lightning.data.embedded.noise import FEWEST_TOKENS, NoisyWriter
from grpovi_lightning.data.embedded.prompts import Instruction

# Noise of a demonstration is uniform in this range.
DEMONSTRATION_NOISE = (0.2, 0.9)
# A demonstrator rambles: this many times the asked number of words, and mostly no full stop.
DEMONSTRATION_LENGTH = 1.5
DEMONSTRATION_STOP_LOST = 0.8
# Share of pairs in which one answer is a demonstrator's, so that a reward model knows where a policy starts.
DEMONSTRATED_SHARE = 0.4
# Noise of a text in a preference pair is uniform in this range.
PAIR_NOISE = (0.0, 1.0)
# How the two texts of a pair are drawn, and how often.
PAIR_KINDS = {"independent": 0.4, "contrast": 0.3, "mutation": 0.15, "degenerate": 0.15}


@dataclass(frozen=True)
class Demonstration:
    """One imperfect answer to an instruction, and the parts of its gold reward."""

    instruction: Instruction
    text: str
    gold: GoldScore


@dataclass(frozen=True)
class Pair:
    """Two answers to one instruction, the one that was preferred and the other, and their gold rewards."""

    instruction: Instruction
    chosen: str
    rejected: str
    chosen_gold: float
    rejected_gold: float


def preference_probability(gold: float, other: float, scale: float) -> float:
    """Return 1 / (1 + exp(-scale * (gold - other))), the Bradley-Terry probability that the first is preferred."""
    return 1.0 / (1.0 + exp(-scale * (gold - other)))


def demonstrate(instruction: Instruction, writer: NoisyWriter, rng: random.Random) -> Demonstration:
    """Draw an imperfect answer."""
    words = _ramble(instruction, writer, rng)
    return Demonstration(instruction, " ".join(words), score(instruction, words))


def _ramble(instruction: Instruction, writer: NoisyWriter, rng: random.Random) -> list[str]:
    """Answer at too great a length, noisily, and mostly without the full stop."""
    longest = writer.size.max_completion_length - 2
    longer = replace(instruction, length=min(round(DEMONSTRATION_LENGTH * instruction.length), longest))
    words = writer.write(longer, rng.uniform(*DEMONSTRATION_NOISE), rng)
    if words[-1] == STOP and len(words) > FEWEST_TOKENS and rng.random() < DEMONSTRATION_STOP_LOST:
        words.pop()
    return words


def compare(instruction: Instruction, writer: NoisyWriter, scale: float, rng: random.Random) -> Pair:
    """Draw two different answers and a preference between them.

    The first answer is a noisy one, or a demonstrator's with probability `DEMONSTRATED_SHARE`. The second is one of
    four `PAIR_KINDS`: another noisy answer, `NoisyWriter.contrast` of the first, one to three of its mutations, or an
    answer that is bad on purpose. `scale` is Bradley and Terry's: how many nats of preference a gold reward of 1 is
    worth.
    """
    # The square makes good answers more frequent: a single fault in a good answer is easier to learn from.
    noise = rng.uniform(*PAIR_NOISE) ** 2
    demonstrated = rng.random() < DEMONSTRATED_SHARE
    first = _ramble(instruction, writer, rng) if demonstrated else writer.write(instruction, noise, rng)
    second = first
    while second == first:
        second = _counterpart(first, noise, instruction, writer, rng)
    gold, other_gold = score(instruction, first).reward, score(instruction, second).reward
    if rng.random() < preference_probability(gold, other_gold, scale):
        return Pair(instruction, " ".join(first), " ".join(second), gold, other_gold)
    return Pair(instruction, " ".join(second), " ".join(first), other_gold, gold)


def _counterpart(
    words: list[str], noise: float, instruction: Instruction, writer: NoisyWriter, rng: random.Random
) -> list[str]:
    kind = rng.choices(list(PAIR_KINDS), weights=list(PAIR_KINDS.values()))[0]
    if kind == "independent":
        return writer.write(instruction, rng.uniform(*PAIR_NOISE), rng)
    if kind == "contrast":
        return writer.contrast(words, instruction, noise, rng)
    if kind == "degenerate":
        return writer.degenerate(instruction, rng)
    for _ in range(rng.randint(1, 3)):
        words = writer.mutate(words, instruction, rng)
    return words


def gold_statistics(golds: Sequence[GoldScore]) -> dict[str, float]:
    """Return mean, population standard deviation and quantiles of gold rewards, and the means of their parts."""
    rewards = sorted(gold.reward for gold in golds)
    parts = ("topics", "tone", "length", "grammar", "novelty", "ending")
    return {
        "mean": fmean(rewards),
        "std": pstdev(rewards),
        "min": rewards[0],
        "tenth_percentile": rewards[len(rewards) // 10],
        "median": rewards[len(rewards) // 2],
        "ninetieth_percentile": rewards[(9 * len(rewards)) // 10],
        "max": rewards[-1],
        **{f"mean_{part}": fmean(getattr(gold, part) for gold in golds) for part in parts},
    }


def pair_statistics(pairs: Sequence[Pair], scale: float) -> dict[str, float]:
    """Return how well gold rewards predict the preference labels, and means of gold rewards.

    `bayes_accuracy` is the expected accuracy of a judge that always names the answer of larger gold reward: no reward
    model can expect more. `label_accuracy` is the judge's accuracy on these labels.
    """
    gaps = [pair.chosen_gold - pair.rejected_gold for pair in pairs]
    return {
        "bayes_accuracy": fmean(preference_probability(abs(gap), 0.0, scale) for gap in gaps),
        "label_accuracy": fmean(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps),
        "mean_gap": fmean(abs(gap) for gap in gaps),
        "mean_chosen_gold": fmean(pair.chosen_gold for pair in pairs),
        "mean_rejected_gold": fmean(pair.rejected_gold for pair in pairs),
    }
