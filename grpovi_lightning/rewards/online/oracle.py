"""Labellers, which say which of two completions is better: a simulated one, and people or programs through files."""

import hashlib
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.randomness import label_uniforms
from grpovi_lightning.rewards.functions import RewardFunction
from grpovi_lightning.structures import Rollout

MAX_POLL_SECONDS = 10.0
"""The longest wait between two looks, so that a request to stop the run is not kept waiting."""


@dataclass(frozen=True)
class Question:
    """Which of two completions of a prompt is better?

    Attributes:
        name: unique in a run. It is made of the step and the texts: a run that is continued and samples other
            completions then never takes an answer for that to another comparison.
        first: row of one completion among the B of the rollout; label 1 prefers it.
        second: row of the other; label 0 prefers it.
    """

    name: str
    first: int
    second: int

    @staticmethod
    def about(rollout: Rollout, pairs: Sequence[tuple[int, int]]) -> "list[Question]":
        """Return the questions about pairs of rows (first, second) of the rollout."""
        found: dict[str, Question] = {}
        for first, second in pairs:
            prompt = rollout.prompts.texts[first // rollout.group_size]
            texts = json.dumps([prompt, rollout.texts[first], rollout.texts[second]])
            name = f"{rollout.step}-{hashlib.sha256(texts.encode()).hexdigest()[:12]}"
            while name in found:  # the same texts twice in one round: other tokens can have the same text
                name += "+"
            found[name] = Question(name, first, second)
        return list(found.values())


@dataclass(frozen=True)
class Answers:
    """What an oracle knows now.

    Attributes:
        labels: question's name -> 1 where the first completion is better, 0 where the second is. Questions without an
            answer are absent.
        waiting: whether the oracle is to be asked again before training goes on, as more answers may come soon.
        gold: [B] the rewards behind simulated answers; nothing learns from them. None where there are none.
        problems: messages for the person who runs the training, a line each.
    """

    labels: Mapping[str, int]
    waiting: bool = False
    gold: Sequence[float] | None = None
    problems: Sequence[str] = ()


class Oracle(ABC):
    """Labels comparisons. A question without an answer is no error: training goes on, and asks for it again later."""

    def check(self) -> None:
        """Raise `UserError` if it can be told before training that no question could be answered."""
        return

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise `UserError` if answering needs a column that the training prompts lack."""
        return

    @abstractmethod
    def answer(self, rollout: Rollout, questions: Sequence[Question], unanswered: Sequence[str], seed: int) -> Answers:
        """Ask new questions, and return the answers known so far to them and to earlier ones.

        While the result says `waiting`, it is called again with the same arguments. Each call returns within seconds,
        so that a request to stop the run is seen between two calls.

        Args:
            rollout: the completions that the questions are about, and their step.
            questions: those of this round.
            unanswered: names of the questions of earlier rounds that have no answer yet.
            seed: the run's seed. Simulated answers depend on it, the step and the question's place in the round only.
        """


class BradleyTerryOracle(Oracle):
    """A simulated labeller: prefers the first with probability sigmoid(scale * (gold(first) - gold(second)))."""

    def __init__(self, function: str | Callable[..., list[float | None]], scale: float = 1.0) -> None:
        """Import the gold reward.

        Args:
            function: a reward function with TRL's signature, or its import path; it must score every completion.
            scale: how sure the answers are; near 0 they are coin flips.

        Raises:
            UserError: the function cannot be imported, or the scale is not positive and finite.
        """
        if not 0.0 < scale < math.inf:
            raise UserError(f"oracle scale: got {scale}, expected a finite number above 0")
        self.scale, self.reward = scale, RewardFunction(function)

    def check_columns(self, columns: Collection[str]) -> None:
        self.reward.check_columns({"train": columns})

    def answer(self, rollout: Rollout, questions: Sequence[Question], unanswered: Sequence[str], seed: int) -> Answers:
        gold = self.reward.components(rollout)[self.reward.name].double()
        for row in gold.isnan().nonzero().flatten().tolist():
            raise TrainingError(
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

    Each round writes `questions/<step>.jsonl`, a line a question: `{"name", "prompt", "first", "second"}`. An answer is
    a line `{"name": ..., "label": 1}` (the first is better) or `0` in any file `answers/*.jsonl`, with other keys or
    without. Of two answers to one question the later line counts, files in the order of their names. Write an answer
    file under another ending, and rename it when it is complete.

    Training waits for the round's answers up to `timeout_seconds`, then goes on with the reward model as it is. The
    next round learns from answers that came later. Lines that are no answers, and answers to questions that nobody
    asked, are reported and kept, so that they can be corrected.

    Nothing in the folder is ever deleted. A run that is continued finds the answers to the questions that it asks
    again. If answers that were late are there in time now, it learns from them earlier, samples other completions, and
    adds its new questions.
    """

    def __init__(self, folder: str, timeout_seconds: float = 3600.0, poll_seconds: float = 1.0) -> None:
        """Check the times; the folder is made when the first questions are asked.

        Args:
            folder: of one run, or of several that may share answers to the same comparisons.
            timeout_seconds: the longest that a round waits; 0 for no wait.
            poll_seconds: time between two looks at the answers, up to `MAX_POLL_SECONDS`.

        Raises:
            UserError: a time is out of its range.
        """
        if not 0.0 <= timeout_seconds < math.inf:
            raise UserError(f"oracle timeout_seconds: got {timeout_seconds}, expected a finite number of at least 0")
        if not 0.0 < poll_seconds <= MAX_POLL_SECONDS:
            raise UserError(f"oracle poll_seconds: got {poll_seconds}, expected above 0 and up to {MAX_POLL_SECONDS:g}")
        self.folder = Path(folder).expanduser()
        self.timeout_seconds, self.poll_seconds = timeout_seconds, poll_seconds
        self._round: tuple[list[str], float] = ([], 0.0)
        self._known: set[str] = set()

    def check(self) -> None:
        path = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if not (path.is_dir() and os.access(path, os.W_OK)):
            raise UserError(f"oracle folder {self.folder}: {path} is no folder that can be written; name another")

    def answer(self, rollout: Rollout, questions: Sequence[Question], unanswered: Sequence[str], seed: int) -> Answers:
        names = [question.name for question in questions]
        if self._round[0] != names:
            self._ask(rollout, questions)
            self._round = names, time.monotonic() + self.timeout_seconds
        else:
            time.sleep(min(self.poll_seconds, max(self._round[1] - time.monotonic(), 0.0)))
        answers = self._read({*names, *unanswered})
        if all(name in answers.labels for name in names):
            return answers
        if time.monotonic() < self._round[1]:
            return replace(answers, waiting=True)
        late = (
            f"oracle {self.folder}: questions had no answer after {self.timeout_seconds:g} s; training goes on with "
            "the reward model as it is, and later answers still count (online/unanswered says how many)"
        )
        return replace(answers, problems=[*answers.problems, late])

    def _ask(self, rollout: Rollout, questions: Sequence[Question]) -> None:
        """Add the questions that the step's file does not hold yet."""
        try:
            for name in ("questions", "answers"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            file = self.folder / "questions" / f"{rollout.step:08d}.jsonl"
            asked = file.read_text(encoding="ascii", errors="replace") if file.exists() else ""
            names = _names(asked, file)
            lines = [
                {
                    "name": question.name,
                    "prompt": rollout.prompts.texts[question.first // rollout.group_size],
                    "first": rollout.texts[question.first],
                    "second": rollout.texts[question.second],
                }
                for question in questions
                if question.name not in names
            ]
            if lines:
                draft = file.with_suffix(".tmp")
                # ASCII, so that no character of a text can be taken for the end of a line.
                draft.write_text(asked + "".join(json.dumps(line) + "\n" for line in lines), encoding="ascii")
                draft.replace(file)
        except OSError as error:
            raise UserError(f"oracle folder {self.folder}: {error}; mend it or name another folder") from error

    def _read(self, wanted: set[str]) -> Answers:
        labels: dict[str, int] = {}
        problems: list[str] = []
        for file in sorted((self.folder / "answers").glob("[!.]*.jsonl")):
            try:
                lines = file.read_text(encoding="utf-8-sig", errors="replace").split("\n")
            except OSError as error:
                problems.append(f"oracle {file}: {error.strerror}; its answers do not count")
                continue
            for number, line in enumerate(lines, 1):
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
                elif not self._was_asked(found[0]):
                    problems.append(f"oracle {file}, line {number}: no question has the name {found[0][:60]!r}")
        return Answers(labels, problems=problems)

    def _was_asked(self, name: str) -> bool:
        """Tell whether any question file has the name."""
        if name not in self._known:
            for file in (self.folder / "questions").glob("*.jsonl"):
                self._known |= _names(file.read_text(encoding="ascii", errors="replace"), file)
        return name in self._known


def _names(questions: str, file: Path) -> set[str]:
    """Return the names in the text of a question file; `UserError` where the file is damaged."""
    try:
        return {json.loads(line)["name"] for line in questions.splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"oracle: {file} holds a line that is no question; restore it or name another folder"
        ) from error


def _parsed(line: str) -> tuple[str, int] | None:
    """Return (name, label) of a line of an answer file; None where it is no answer."""
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    label = entry.get("label")
    return (entry["name"], label) if type(label) is int and label in (0, 1) else None
