"""Who says which of two completions is better: a simulated labeller, or whoever answers through files."""

import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from grpovi_lightning.errors import UserError
from grpovi_lightning.randomness import label_uniforms
from grpovi_lightning.rewards.functions import RewardFunction
from grpovi_lightning.structures import Rollout


@dataclass(frozen=True)
class Question:
    """Which of two completions of a prompt is better?

    Attributes:
        name: of the question, unique in a run: `<step>-<number>`.
        first: place of one completion among the B of the rollout; the label 1 prefers it.
        second: place of the other; the label 0 prefers it.
    """

    name: str
    first: int
    second: int


@dataclass(frozen=True)
class Answers:
    """What an oracle knows now.

    Attributes:
        labels: question's name -> 1 where the first completion is better, 0 where the second is. Questions without an
            answer are absent.
        gold: [B] the rewards that the answers come from, where there are any; nothing learns from them.
        problems: what the person who runs the training should hear of, a line each.
    """

    labels: Mapping[str, int]
    gold: Sequence[float] | None = None
    problems: Sequence[str] = ()


class Oracle(ABC):
    """Answers comparisons. A question without an answer is no error: training goes on, and it is asked for again."""

    def check(self) -> None:
        """Raises `UserError` where it can be told before training that no question could be answered."""
        return

    @abstractmethod
    def answer(self, rollout: Rollout, questions: Sequence[Question], unanswered: Sequence[str], seed: int) -> Answers:
        """Asks new questions, and returns what is known of them and of earlier ones.

        Args:
            rollout: the completions that the questions are about, and their step.
            questions: those of this round.
            unanswered: names of those of earlier rounds that have no answer yet.
            seed: the run's seed; simulated answers are a function of it, of the step and of the question's place.
        """


class BradleyTerryOracle(Oracle):
    """Answers at random: the first is better with probability sigmoid(scale * (gold(first) - gold(second)))."""

    def __init__(self, function: str | Callable[..., list[float | None]], scale: float = 1.0) -> None:
        """Takes the gold reward.

        Args:
            function: a reward function with TRL's signature, or its import path; it must score every completion.
            scale: how sure the answers are; at 0 they would be coin flips.

        Raises:
            UserError: the function is not there, or the scale is not positive.
        """
        if not 0.0 < scale < math.inf:
            raise UserError(f"oracle scale: got {scale}, expected a finite number above 0")
        self.scale, self.reward = scale, RewardFunction(function)

    def answer(self, rollout: Rollout, questions: Sequence[Question], unanswered: Sequence[str], seed: int) -> Answers:
        """See `Oracle`.

        Raises:
            UserError: the function cannot score a completion.
        """
        gold = self.reward.components(rollout)[self.reward.name].double()
        for row in gold.isnan().nonzero().flatten().tolist():
            raise UserError(
                f"oracle: {self.reward.name} gave no reward for {rollout.texts[row][:60]!r}, expected a number for "
                "every completion; use a function that scores them all"
            )
        margins = [float(gold[question.first] - gold[question.second]) for question in questions]
        draws = label_uniforms(seed, rollout.step, len(questions))
        chances = torch.sigmoid(self.scale * torch.tensor(margins, dtype=torch.float64)).tolist()
        labels = {
            question.name: int(draw < chance) for question, draw, chance in zip(questions, draws, chances, strict=True)
        }
        return Answers(labels, gold=gold.tolist())


class FileOracle(Oracle):
    """Asks through files that a person or another program answers.

    Each round writes `questions/<step>.jsonl`, a line a question: `{"name", "prompt", "first", "second"}`. Any
    `answers/*.jsonl` beside it may answer it with `{"name": ..., "label": 1}` (the first is better) or 0; of two
    answers to one question the one in the later file (by name), and there the later line, counts. Write an answer
    file under another ending and rename it when it is whole.

    Training waits for the round's answers up to `timeout_seconds`, then goes on with the reward model as it is.
    Answers that come later are learned from in the next round. Lines that are no answers are reported and left alone,
    so that they can be mended. A run that is continued asks its questions under the same names, and finds the answers
    that it got before.
    """

    def __init__(self, folder: str, timeout_seconds: float = 3600.0, poll_seconds: float = 1.0) -> None:
        """Takes the folder of one run, which is made where it does not exist.

        Raises:
            UserError: a time is negative, or not a number.
        """
        for name, value in (("timeout_seconds", timeout_seconds), ("poll_seconds", poll_seconds)):
            if not 0.0 <= value < math.inf:
                raise UserError(f"oracle {name}: got {value}, expected a finite number of at least 0")
        self.folder = Path(folder)
        self.timeout_seconds, self.poll_seconds = timeout_seconds, poll_seconds

    def check(self) -> None:
        """Refuses a path on which there cannot be a folder; it is made when the first questions are asked."""
        for path in (self.folder, *self.folder.parents):
            if path.exists():
                if not (path.is_dir() and os.access(path, os.W_OK)):
                    raise UserError(
                        f"oracle folder {self.folder}: {path} is no folder that can be written; name another"
                    )
                return

    def answer(self, rollout: Rollout, questions: Sequence[Question], unanswered: Sequence[str], seed: int) -> Answers:
        """See `Oracle`.

        Raises:
            UserError: the folder holds other questions of this step.
        """
        self._ask(rollout, questions)
        fresh = {question.name for question in questions}
        wanted = fresh | set(unanswered)
        deadline = time.monotonic() + self.timeout_seconds
        while True:
            answers = self._read(wanted)
            missing = fresh - answers.labels.keys()
            if not missing:
                return answers
            if time.monotonic() >= deadline:
                late = (
                    f"oracle {self.folder}: questions had no answer after {self.timeout_seconds:g} s; training goes on "
                    "with the reward model as it is, and later answers still count (online/unanswered says how many)"
                )
                return replace(answers, problems=[*answers.problems, late])
            time.sleep(min(self.poll_seconds, max(deadline - time.monotonic(), 0.0)))

    def _ask(self, rollout: Rollout, questions: Sequence[Question]) -> None:
        for name in ("questions", "answers"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        file = self.folder / "questions" / f"{rollout.step:08d}.jsonl"
        lines = [
            {
                "name": question.name,
                "prompt": rollout.prompts.texts[question.first // rollout.group_size],
                "first": rollout.texts[question.first],
                "second": rollout.texts[question.second],
            }
            for question in questions
        ]
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        if file.exists():
            if file.read_text(encoding="utf-8") != content:
                raise UserError(f"oracle: {file} holds other questions; name a folder of this run's own")
            return
        draft = file.with_suffix(".tmp")
        draft.write_text(content, encoding="utf-8")
        draft.replace(file)

    def _read(self, wanted: set[str]) -> Answers:
        labels: dict[str, int] = {}
        problems: list[str] = []
        for file in sorted((self.folder / "answers").glob("*.jsonl")):
            for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                if not line.strip():
                    continue
                found = _parsed(line)
                if found is None:
                    problems.append(
                        f'oracle {file}, line {number}: got {line[:60]!r}, expected {{"name": ..., "label": 0 or 1}}; '
                        "it counts as no answer"
                    )
                elif found[0] in wanted:
                    labels[found[0]] = found[1]
        return Answers(labels, problems=problems)


def _parsed(line: str) -> tuple[str, int] | None:
    """(name, label) of a line of an answer file; None where it is none."""
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    label = entry.get("label")
    return (entry["name"], label) if type(label) is int and label in (0, 1) else None
