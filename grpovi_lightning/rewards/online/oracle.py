"""Who says which of two completions is better: a simulated labeller, or whoever answers through files."""

import hashlib
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

MAX_POLL_SECONDS = 10.0
"""A wait between two looks: short enough that whatever else wants to be heard is."""


@dataclass(frozen=True)
class Question:
    """Which of two completions of a prompt is better?

    Attributes:
        name: of the question, unique in a run. It follows from the step and the texts, so that a run that is continued
            and then samples otherwise never takes the answer to one comparison for that to another.
        first: place of one completion among the B of the rollout; the label 1 prefers it.
        second: place of the other; the label 0 prefers it.
    """

    name: str
    first: int
    second: int

    @staticmethod
    def about(rollout: Rollout, pairs: Sequence[tuple[int, int]]) -> "list[Question]":
        """The questions on pairs of places."""
        found: dict[str, Question] = {}
        for first, second in pairs:
            prompt = rollout.prompts.texts[first // rollout.group_size]
            texts = json.dumps([prompt, rollout.texts[first], rollout.texts[second]])
            name = f"{rollout.step}-{hashlib.sha256(texts.encode()).hexdigest()[:12]}"
            while name in found:  # the same texts twice in one round, of other tokens
                name += "+"
            found[name] = Question(name, first, second)
        return list(found.values())


@dataclass(frozen=True)
class Answers:
    """What an oracle knows now.

    Attributes:
        labels: question's name -> 1 where the first completion is better, 0 where the second is. Questions without an
            answer are absent.
        waiting: whether more may come soon: the oracle wants to be asked again before training goes on.
        gold: [B] the rewards that the answers come from, where there are any; nothing learns from them.
        problems: what the person who runs the training should hear of, a line each.
    """

    labels: Mapping[str, int]
    waiting: bool = False
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

        It is called again with the same arguments while it says that it is `waiting`, and returns within seconds each
        time: what must be heard meanwhile, such as a request to stop, is heard in between.

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
    answers to one question the one in the later file (by name), and there the later line, counts. Other keys are
    ignored. Write an answer file under another ending and rename it when it is whole.

    Training waits for the round's answers up to `timeout_seconds`, then goes on with the reward model as it is.
    Answers that come later are learned from in the next round. Lines that are no answers, and answers to questions that
    nobody asked, are reported and left alone, so that they can be mended.

    Nothing in the folder is ever taken away. A run that is continued finds the answers to the questions that it asks
    again. Answers that had come late may now be there in time; then it samples otherwise, and adds its new questions.
    """

    def __init__(self, folder: str, timeout_seconds: float = 3600.0, poll_seconds: float = 1.0) -> None:
        """Takes the folder, which is made when the first questions are asked.

        Args:
            folder: of one run, or of several that may share answers to the same comparisons.
            timeout_seconds: how long a round waits; 0 does not.
            poll_seconds: how often it looks.

        Raises:
            UserError: a time is not a number, or too small.
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
        """Refuses a path on which there cannot be a folder."""
        for path in (self.folder, *self.folder.parents):
            if path.exists():
                if not (path.is_dir() and os.access(path, os.W_OK)):
                    raise UserError(
                        f"oracle folder {self.folder}: {path} is no folder that can be written; name another"
                    )
                return

    def answer(self, rollout: Rollout, questions: Sequence[Question], unanswered: Sequence[str], seed: int) -> Answers:
        """See `Oracle`."""
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
        """Adds the questions that the step's file does not hold yet."""
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
        """Whether any question file has the name."""
        if name not in self._known:
            for file in (self.folder / "questions").glob("*.jsonl"):
                self._known |= _names(file.read_text(encoding="ascii", errors="replace"), file)
        return name in self._known


def _names(questions: str, file: Path) -> set[str]:
    """Names in the text of a question file, which nobody but an oracle writes."""
    try:
        return {json.loads(line)["name"] for line in questions.splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"oracle: {file} holds a line that is no question; restore it or name another folder"
        ) from error


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
