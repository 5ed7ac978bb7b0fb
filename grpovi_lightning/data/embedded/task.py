"""Writing an embedded task to a folder: tokenizer, prompts, demonstrations, preference pairs and their statistics."""

import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from grpovi_lightning.data.embedded.gold import GOLD_RANGE
from grpovi_lightning.data.embedded.noise import NoisyWriter
from grpovi_lightning.data.embedded.prompts import Instruction, count_prompts, render, sample_instruction
from grpovi_lightning.data.embedded.samples import compare, demonstrate, gold_statistics, pair_statistics
from grpovi_lightning.data.embedded.size import TaskSize
from grpovi_lightning.data.embedded.tokenizer import build_tokenizer, word_types
from grpovi_lightning.errors import UserError

TASK_FILE = "task.json"
# To raise whenever the same parameters give other files, so that an old folder is not taken for a new one.
GENERATOR_VERSION = 1


def write_task(
    output: str,
    seed: int = 0,
    n_train: int = 20_000,
    n_validation: int = 512,
    n_test: int = 512,
    n_demonstrations: int = 12_000,
    n_validation_demonstrations: int = 512,
    n_pairs: int = 20_000,
    n_validation_pairs: int = 1_000,
    preference_scale: float = 20.0,
    **sizes: int,
) -> Path:
    """Write an embedded task: a small language, prompts, demonstrations and preference pairs, made from a seed.

    The folder appears whole or not at all. A folder that holds the same task already is left as it is.

    Args:
        output: folder to write; it must not exist, be empty, or hold this very task.
        seed: seed of everything that is drawn; the same seed and sizes give the same bytes.
        n_train: number of prompts to train a policy on.
        n_validation: number of prompts to evaluate on while training.
        n_test: number of prompts kept for the end.
        n_demonstrations: number of demonstrations to fine-tune on.
        n_validation_demonstrations: number of held-out demonstrations.
        n_pairs: number of preference pairs to train a reward model on.
        n_validation_pairs: number of held-out preference pairs.
        preference_scale: Bradley-Terry scale: a preference has probability sigmoid(scale * gold difference).
        sizes: those of `TaskSize`.

    Returns:
        the folder.

    Raises:
        UserError: a parameter is out of its range, or the folder holds something else.
    """
    size = TaskSize(**sizes)
    counts = {
        "n_train": n_train,
        "n_validation": n_validation,
        "n_test": n_test,
        "n_demonstrations": n_demonstrations,
        "n_validation_demonstrations": n_validation_demonstrations,
        "n_pairs": n_pairs,
        "n_validation_pairs": n_validation_pairs,
    }
    _check(counts, seed, preference_scale, size)
    parameters = {"seed": seed, **counts, "preference_scale": preference_scale, **asdict(size)}
    folder = Path(output)
    if _holds(folder, parameters):
        return folder
    partial = folder.absolute().with_name(f".{folder.absolute().name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        _write_files(partial, parameters, size)
        partial.rename(folder)  # only now, so that an interrupted run leaves no half of a task
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check(counts: Mapping[str, int], seed: int, preference_scale: float, size: TaskSize) -> None:
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"got {name}={value}: expected at least 1; give a positive number")
    if seed < 0:
        raise UserError(f"got seed={seed}: expected 0 or more; give a non-negative integer")
    if not 0.0 < preference_scale < float("inf"):
        raise UserError(f"got preference_scale={preference_scale}: expected a positive number; try the default 20")
    n_prompts = sum(counts.values())
    if 2 * n_prompts > count_prompts(size):
        raise UserError(
            f"got {n_prompts} lines in all, each with its own prompt: expected at most half of the "
            f"{count_prompts(size)} prompts of this language; lower the counts or raise n_nouns, n_adjectives or "
            "max_topics"
        )


def _holds(folder: Path, parameters: Mapping[str, Any]) -> bool:
    """Return whether the folder holds this task; raise a UserError if it holds anything else."""
    remedy = "give another output folder, or remove this one first"
    task_file = folder / TASK_FILE
    holds = f"got the output folder {str(folder)!r}, which holds"
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"got the output {str(folder)!r}, a file: expected a folder; {remedy}")
    if not any(folder.iterdir()):
        return False
    if not task_file.exists():
        raise UserError(f"{holds} other files and no {TASK_FILE}: expected a new or empty folder; {remedy}")
    try:
        found = json.loads(task_file.read_text(encoding="utf-8"))
        version, found_parameters = found["generator_version"], found["parameters"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"got {str(task_file)!r}, which is no task description ({error!r}): {remedy}") from error
    if version != GENERATOR_VERSION:
        expected = f"expected version {GENERATOR_VERSION}"
        raise UserError(f"{holds} a task of generator version {version}: {expected}; {remedy}")
    different = [name for name in parameters if found_parameters.get(name) != parameters[name]]
    if different:
        changes = ", ".join(f"{name}={found_parameters.get(name)} not {parameters[name]}" for name in different)
        raise UserError(f"{holds} a different task ({changes}): expected the same parameters; {remedy}")
    return True


def _write_files(folder: Path, parameters: Mapping[str, Any], size: TaskSize) -> None:
    """Write all files; no two lines of different files share a prompt."""
    seed, scale = parameters["seed"], parameters["preference_scale"]
    build_tokenizer(size).save_pretrained(str(folder / "tokenizer"))
    fresh = _distinct_instructions(size, random.Random(f"{seed}/prompts"))
    prompt_lengths: list[int] = []

    def take(file: str) -> list[Instruction]:
        taken = [next(fresh) for _ in range(parameters[f"n_{file}"])]
        prompt_lengths.extend(len(render(instruction).split()) for instruction in taken)
        return taken

    statistics: dict[str, Any] = {}
    writer = NoisyWriter(size, size.lexicon())
    # Held-out sets first: they stay the same when a training set is made larger.
    for split in ("validation", "test"):
        _write_lines(folder / f"prompts_{split}.jsonl", map(_prompt_line, take(split)))
    for prefix, suffix in (("validation_", "_validation"), ("", "")):
        rng = random.Random(f"{seed}/demonstrations{suffix}")
        answers = [demonstrate(instruction, writer, rng) for instruction in take(f"{prefix}demonstrations")]
        lines = ({"prompt": render(answer.instruction), "completion": answer.text} for answer in answers)
        _write_lines(folder / f"demonstrations{suffix}.jsonl", lines)
        statistics[f"demonstrations{suffix}"] = gold_statistics([answer.gold for answer in answers]) | {
            "mean_tokens": fmean(len(answer.text.split()) + 1 for answer in answers)
        }
    for prefix, suffix in (("validation_", "_validation"), ("", "")):
        rng = random.Random(f"{seed}/preferences{suffix}")
        pairs = [compare(instruction, writer, scale, rng) for instruction in take(f"{prefix}pairs")]
        lines = ({"prompt": render(p.instruction), "chosen": p.chosen, "rejected": p.rejected} for p in pairs)
        _write_lines(folder / f"preferences{suffix}.jsonl", lines)
        statistics[f"preferences{suffix}"] = pair_statistics(pairs, scale)
    _write_lines(folder / "prompts_train.jsonl", map(_prompt_line, take("train")))
    description = {
        "generator_version": GENERATOR_VERSION,
        "parameters": parameters,
        "n_word_types": len(word_types(size)),
        "n_distinct_prompts": count_prompts(size),
        "gold_range": GOLD_RANGE,
        "prompt_tokens": {"min": min(prompt_lengths), "mean": fmean(prompt_lengths), "max": max(prompt_lengths)},
        "statistics": statistics,
    }
    (folder / TASK_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _distinct_instructions(size: TaskSize, rng: random.Random) -> Iterator[Instruction]:
    """Yield instructions without end, no two with the same prompt."""
    lexicon, seen = size.lexicon(), set[Instruction]()
    while True:
        instruction = sample_instruction(size, lexicon, rng)
        if instruction not in seen:
            seen.add(instruction)
            yield instruction


def _prompt_line(instruction: Instruction) -> dict[str, Any]:
    return {
        "prompt": render(instruction),
        "topics": [str(topic) for topic in instruction.topics],
        "tone": instruction.tone,
        "length": instruction.length,
    }


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
