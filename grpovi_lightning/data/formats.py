"""What a row of a table says: its prompt and its answers, each as text or as messages, told by their content."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from grpovi_lightning.conversations import Answer, Prompt, is_messages
from grpovi_lightning.data.conversations import Conversations, fault_in_answer, fault_in_prompt, shared_opening
from grpovi_lightning.data.tables import Table, fault_in_text
from grpovi_lightning.data.unpaired import Unpaired, labelled_true, truth

_log = logging.getLogger(__name__)

Row = Mapping[str, Any]
Fault = tuple[str, str]
"""A column, and what is wrong with its value: "got ..., expected ..."."""


@dataclass(frozen=True)
class RowFormat(ABC):
    """How prompts and answers stand in the rows of a table.

    Attributes:
        prompt: column of the prompt.
        conversations: how rows become conversations.
    """

    prompt: str
    conversations: Conversations

    def arranged(self, table: Table) -> Table:
        """Return a table whose rows are of this format, of one whose rows have to be chosen or joined first.

        Raises:
            UserError: that cannot be done.
        """
        return table

    @abstractmethod
    def columns(self, there: Collection[str]) -> list[str]:
        """Return the columns that are read of a table with those of `there`; the first tells its kind."""

    @abstractmethod
    def roles(self, row: Row) -> dict[str, Prompt | Answer]:
        """Return role ("prompt", "chosen", ...) -> what stands there."""

    def asked(self, row: Row) -> Any:
        """Return the prompt as it stands in a row: rows of which it is the same ask the same."""
        return row[self.prompt]

    @abstractmethod
    def fault(self, row: Row, conversational: bool) -> Fault | None:
        """Return what is wrong with a row of a table of text, or of messages."""

    def check(self, table: Table) -> None:
        """Check every row, and say in the log what they are.

        Raises:
            UserError: a column is missing; or the first row that is wrong, and how many are.
        """
        columns = self.columns(table.columns)
        table.require(columns)
        conversational = is_messages(table[0][columns[0]])
        if not conversational:
            self.conversations.check_of_text(table.name)
        faults = {i: fault for i, row in enumerate(table) if (fault := self.fault(row, conversational))}
        if faults:
            number, (column, text) = next(iter(faults.items()))
            raise table.fault(number, column, text, len(faults))
        kind = "messages" if conversational else "text"
        _log.info(f"{table.name}: {len(table)} rows of {kind} in {', '.join(columns)}")


@dataclass(frozen=True)
class PromptRows(RowFormat):
    """A prompt a row, with the columns that reward functions read."""

    def columns(self, there: Collection[str]) -> list[str]:
        return [self.prompt]

    def roles(self, row: Row) -> dict[str, Prompt | Answer]:
        return {"prompt": self.conversations.prompt(row[self.prompt], row)}

    def fault(self, row: Row, conversational: bool) -> Fault | None:
        return _first((self.prompt, _in_prompt(row[self.prompt], conversational)))


@dataclass(frozen=True)
class DemonstrationRows(RowFormat):
    """A prompt with the completion to imitate; or one conversation, in which all that an assistant says is imitated.

    Attributes:
        completion: column of the completion.
        messages: column of whole conversations, in a table without prompts.
        label: column of truth values, where there is one: what is labelled true is imitated; None: it is not looked at.
    """

    completion: str = "completion"
    messages: str = "messages"
    label: str | None = None

    def arranged(self, table: Table) -> Table:
        labelled = self.label in table.columns and truth(table[0][self.label]) is not None
        return labelled_true(table, self.label) if self.label is not None and labelled else table

    def columns(self, there: Collection[str]) -> list[str]:
        whole = self.prompt not in there and self.messages in there
        return [self.messages] if whole else [self.prompt, self.completion]

    def roles(self, row: Row) -> dict[str, Prompt | Answer]:
        if self.prompt in row:
            prompt = self.conversations.prompt(row[self.prompt], row)
            return {"prompt": prompt, "completion": self.conversations.answer(row[self.completion], prompt)}
        opening, rest = [], row[self.messages]
        if rest[0]["role"] in ("system", "developer"):
            opening, rest = rest[:1], rest[1:]
        prompt = self.conversations.prompt(opening, row)
        return {"prompt": prompt, "completion": self.conversations.answer(rest, prompt)}

    def asked(self, row: Row) -> Any:
        if self.prompt in row:
            return row[self.prompt]
        return list(takewhile(lambda message: message["role"] != "assistant", row[self.messages]))

    def fault(self, row: Row, conversational: bool) -> Fault | None:
        if self.prompt not in row:
            return _first((self.messages, fault_in_answer(row[self.messages])))
        prompt, completion = row[self.prompt], row[self.completion]
        return _first(
            (self.prompt, _in_prompt(prompt, conversational)),
            (self.completion, _in_answer(completion, conversational)),
        )


@dataclass(frozen=True)
class PreferenceRows(RowFormat):
    """A prompt with a preferred and another answer; in a table without prompts, each answer begins with it.

    Rows of a table without the two, of a completion and a label each, are paired.

    Attributes:
        chosen: column of the preferred answer.
        rejected: column of the other one.
        completion: column of the completion of an unpaired row.
        label: column of the truth value of an unpaired row.
    """

    chosen: str = "chosen"
    rejected: str = "rejected"
    completion: str = "completion"
    label: str = "label"

    def arranged(self, table: Table) -> Table:
        unpaired = Unpaired(self.prompt, self.completion, self.label)
        if {self.chosen, self.rejected} & set(table.columns) or not unpaired.are_in(table.columns):
            return table
        return unpaired.paired(table, self.chosen, self.rejected)

    def columns(self, there: Collection[str]) -> list[str]:
        answers = [self.chosen, self.rejected]
        return [self.prompt, *answers] if self.prompt in there or not set(answers) <= set(there) else answers

    def roles(self, row: Row) -> dict[str, Prompt | Answer]:
        prompt, *answers = self._parted(row)
        found = self.conversations.prompt(prompt, row)
        chosen, rejected = (self.conversations.answer(answer, found) for answer in answers)
        return {"prompt": found, "chosen": chosen, "rejected": rejected}

    def asked(self, row: Row) -> Any:
        return self._parted(row)[0]

    def fault(self, row: Row, conversational: bool) -> Fault | None:
        whole = row[self.chosen], row[self.rejected]
        if whole[0] == whole[1]:
            return self.rejected, "got the same answer as the chosen one, expected another; remove the row"
        if self.prompt not in row:
            faults = [_in_answer(answer, conversational) for answer in whole]
            if not any(faults) and shared_opening(*whole) is None:
                faults[0] = f"got another beginning than {self.rejected}, expected a prompt that both begin with"
            return _first(*zip((self.chosen, self.rejected), faults, strict=True))
        return _first(
            (self.prompt, _in_prompt(row[self.prompt], conversational)),
            (self.chosen, _in_answer(whole[0], conversational)),
            (self.rejected, _in_answer(whole[1], conversational)),
        )

    def _parted(self, row: Row) -> tuple[Any, Any, Any]:
        if self.prompt in row:
            return row[self.prompt], row[self.chosen], row[self.rejected]
        parted = shared_opening(row[self.chosen], row[self.rejected])
        assert parted is not None, "check() comes before reading"
        return parted


def _first(*faults: tuple[str, str | None]) -> Fault | None:
    return next(((column, fault) for column, fault in faults if fault), None)


def _in_prompt(value: Any, conversational: bool) -> str | None:
    return fault_in_prompt(value) if conversational else fault_in_text(value, may_be_empty=False)


def _in_answer(value: Any, conversational: bool) -> str | None:
    if conversational and not isinstance(value, str):
        return fault_in_answer(value)
    return fault_in_text(value, may_be_empty=True)
